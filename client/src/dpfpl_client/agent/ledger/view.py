"""The privacy ledger for people: what was released, what it cost, and whether the files still say so."""

from typing import Any

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.budget import spent
from dpfpl_client.agent.ledger.anchor import Registry, StateLock, events_to_json
from dpfpl_client.agent.ledger.book import LEDGER_FILE, ROWS, SCORES, VOTE, Charge, Ledger
from dpfpl_client.agent.ledger.dataset import lost_ledger
from dpfpl_client.agent.policy_file import load_policy
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import json_epsilon

__all__ = ["accept_rollback", "observed_ledger", "summarise", "towards_recipients", "verify"]


# What a site's data have paid so far, read from the ledger without torch: for views, probes and the doctor.


def summarise(settings: SiteSettings) -> dict[str, Any]:
    """Charges by experiment, the epsilons of each, and the sums over the data's lifetime against the caps.

    ``epsilon`` is what the caps of a prompt's recipient are about.
    """
    policy, ledger = load_policy(settings.path(settings.policy)), observed_ledger(settings)
    by_name: dict[str, list[Charge]] = {}
    for charge in ledger.charges():
        by_name.setdefault(charge.experiment, []).append(charge)
    experiments = []
    for name, own in sorted(by_name.items()):
        paid = spent(ledger, policy.delta, name)
        experiments.append(
            {
                "experiment": name or "(before an old ledger was accepted)",
                "rounds": len({charge.round for charge in own} - {SCORES, ROWS, VOTE}),
                "scored": any(charge.round == SCORES for charge in own),
                "charges": len(own),
                "released": sum(bool(charge.release_digest) for charge in own),
                "assumed": sum(not charge.request_digest for charge in own),
                "counts_whole": ledger.counts_whole(name),
                "first": min(charge.at for charge in own),
                "last": max(charge.at for charge in own),
                "epsilon": json_epsilon(towards_recipients(paid)),
                "epsilons": {adversary: json_epsilon(value) for adversary, value in paid.items()},
            }
        )
    paid = spent(ledger, policy.delta)
    caps = {"epsilon": policy.max_epsilon_lifetime, "operator": policy.max_epsilon_operator_lifetime}
    have = {"epsilon": towards_recipients(paid), "operator": paid["operator"]}
    ledger.close()
    return {
        "experiments": experiments,
        "spent_epsilon": json_epsilon(have["epsilon"]),
        "spent_epsilons": {adversary: json_epsilon(value) for adversary, value in paid.items()},
        "max_epsilon_lifetime": policy.max_epsilon_lifetime,
        "max_epsilon_operator_lifetime": policy.max_epsilon_operator_lifetime,
        "left_epsilon": max(0.0, caps["epsilon"] - have["epsilon"]),
        "left_epsilon_operator": max(0.0, caps["operator"] - have["operator"]),
        "delta": policy.delta,
        "records": ledger.records,
        "ledger": ledger.identity,
    }


def towards_recipients(paid: dict[str, float]) -> float:
    """The larger of the epsilons that the caps of a prompt's recipient are about."""
    return max(value for adversary, value in paid.items() if adversary != "operator")


def observed_ledger(settings: SiteSettings) -> Ledger:
    """The ledger, to look at only.

    Raises:
        StateError: NO_LEDGER, nothing was ever charged; or what ``Ledger`` raises.
    """
    path = settings.state_folder / LEDGER_FILE
    if not path.exists():
        raise StateError(
            code="NO_LEDGER", message="Nothing was ever charged at this site.", advice="It fills with the first round."
        )
    return Ledger(path, Registry(settings.registry_folder), observe=True)


def verify(settings: SiteSettings) -> list[str]:
    """What is wrong with the ledger, its chain, or the stored releases; empty if nothing is."""
    store = DiskStore(settings.state_folder)
    try:
        ledger = observed_ledger(settings)
    except StateError as error:
        if error.code == "NO_LEDGER":
            raise
        return [str(error)]
    problems = ledger.damage()
    charges = ledger.charges()
    ledger.close()
    if problems:
        return problems
    for charge in charges:
        if not charge.release_digest:
            continue
        try:
            if charge.round in (ROWS, VOTE):
                continue  # the integers go once their sum is unmasked
            if charge.round == SCORES and store.read_sum(charge.experiment, "scores").attempt:
                continue
            if charge.round == SCORES:
                store.read_scores(charge.experiment, charge.release_digest)
                continue
            record = store.read(charge.experiment, charge.round)
        except StateError as error:
            problems.append(f"{charge.experiment} round {charge.round}: {error.message}")
            continue
        if record is None or record.digest() != charge.release_digest:
            problems.append(f"{charge.experiment} round {charge.round}: the stored release is not the recorded one.")
    charged = {(charge.experiment, charge.round) for charge in charges}
    released = ((name, number) for name in store.experiments() for number in store.rounds(name))
    problems += [f"{name} round {number}: released, but never charged." for name, number in set(released) - charged]
    return sorted(problems)


def accept_rollback(settings: SiteSettings, *, nothing_lost: bool = False) -> dict[str, Any]:
    """Go on with an old copy of the ledger, as ``Ledger.accept_rollback``; no agent may be running."""
    lock = StateLock(settings.state_folder)
    try:
        path, registry = settings.state_folder / LEDGER_FILE, Registry(settings.registry_folder)
        identity = "" if path.exists() else lost_ledger(settings)
        charged = Ledger.accept_rollback(path, registry, identity=identity, nothing_lost=nothing_lost)
        rows = [
            {"experiment": name, "last_round": total.last_round, "events": events_to_json(total.events)}
            for name, total in charged.items()
        ]
        audit = AuditLog(settings.state_folder / AUDIT_FILE)
        audit.write("rollback_accepted", nothing_lost=nothing_lost, ledger_was_gone=bool(identity), charged=rows)
    finally:
        lock.release()
    return {"charged": rows}
