"""The privacy ledger for people: what was released, what it cost, and whether the files still say so."""

from itertools import groupby
from typing import Any

from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.policy import load_policy
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.site_settings import SiteSettings
from dpfpl_common.accounting import epsilon, json_epsilon
from dpfpl_common.errors import StateError

__all__ = ["summarise", "verify"]


def summarise(settings: SiteSettings) -> dict[str, Any]:
    """Charges by experiment, the epsilon of each, and the sum over the data's lifetime against the cap."""
    policy, ledger = load_policy(settings.path(settings.policy)), _open(settings)
    charges = sorted(ledger.charges(), key=lambda charge: charge.experiment)
    experiments = []
    for name, group in groupby(charges, key=lambda charge: charge.experiment):
        own = list(group)
        experiments.append(
            {
                "experiment": name,
                "rounds": len({charge.round for charge in own}),
                "charges": len(own),
                "released": sum(bool(charge.release_digest) for charge in own),
                "epsilon": json_epsilon(epsilon(ledger.events(name), policy.delta)),
            }
        )
    return {
        "experiments": experiments,
        "spent_epsilon": json_epsilon(epsilon(ledger.events(), policy.delta)),
        "max_epsilon_lifetime": policy.max_epsilon_lifetime,
        "delta": policy.delta,
    }


def verify(settings: SiteSettings) -> list[str]:
    """What is wrong with the ledger or the stored releases; empty if nothing is."""
    ledger, store = _open(settings), DiskStore(settings.state_folder)
    problems = ledger.damage()
    if problems:
        return problems
    charges = ledger.charges()
    for charge in charges:
        if not charge.release_digest:
            continue
        try:
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


def _open(settings: SiteSettings) -> Ledger:
    path = settings.state_folder / "ledger.sqlite"
    if not path.exists():
        raise StateError(
            code="NO_LEDGER", message="Nothing was ever charged at this site.", advice="It fills with the first round."
        )
    return Ledger(path)
