"""The privacy ledger for people: what was released, what it cost, and whether the files still say so."""

from typing import Any

from dpfpl_client.agent.anchor import events_to_json
from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.ledger import LEDGER_FILE, Ledger
from dpfpl_client.agent.locks import StateLock
from dpfpl_client.agent.registry import Registry
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.registration import lost_ledger
from dpfpl_client.site_settings import SiteSettings
from dpfpl_client.spending import observed_ledger, summarise, towards_recipients
from dpfpl_common.errors import StateError

__all__ = ["accept_rollback", "summarise", "towards_recipients", "verify"]


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
