"""Brings a ledger of the first schema, without a chain, to the present one: a backup, then one transaction."""

import hashlib
from pathlib import Path
from typing import Any

from dpfpl_client.agent.anchor import events_to_json
from dpfpl_client.agent.ledger_file import LedgerFile, create_schema
from dpfpl_common.accounting import PrivacyEvent
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.trust import ADVERSARIES, WHOLE_UPDATE, planned_events

__all__ = ["migrate"]

_CHARGES = """SELECT sequence, experiment, round, request_digest, mechanism, noise_multiplier, sample_rate, steps,
    release_digest, at FROM charges ORDER BY sequence"""


def migrate(file: LedgerFile) -> None:
    """Rewrite a file of schema 1 as chained records; the old file stays beside it as ``*.schema-1.backup``.

    The first schema kept what a prompt's recipient learns. What the others learned is computed from the experiment's
    configuration in the state folder; where that is gone, the operator is taken to have learned everything.
    """
    assert file.path is not None
    file.backup(file.path.with_name(file.path.name + ".schema-1.backup"))
    file.execute("BEGIN IMMEDIATE")
    try:
        names = file.execute("SELECT name, digest FROM experiments ORDER BY name").fetchall()
        charges = file.execute(_CHARGES).fetchall()
        for old in ("charges", "experiments"):
            file.execute(f"DROP TABLE {old}")
        create_schema(file)
        for record in _records(names, charges, file.path.parent):
            file.append(record)
        file.execute("COMMIT")
    except BaseException:
        file.execute("ROLLBACK")
        raise


def _records(names: list[Any], charges: list[Any], state: Path) -> list[dict[str, Any]]:
    """The old rows as records; a last one closes them."""
    # Copies of one old ledger must be known as such: its identity comes from its first rows, not from chance.
    identity = hashlib.sha256(repr((names[:1], charges[:1])).encode()).hexdigest()[:32]
    records: list[dict[str, Any]] = [{"kind": "genesis", "ledger": identity, "at": charges[0][-1] if charges else ""}]
    records += [{"kind": "bind", "experiment": name, "digest": digest, "at": ""} for name, digest in names]
    for _, experiment, number, request, mechanism, noise_multiplier, sample_rate, steps, release, at in charges:
        events = _events(state, experiment, PrivacyEvent("", mechanism, noise_multiplier, sample_rate, steps))
        records.append(
            {
                "kind": "reserve",
                "experiment": experiment,
                "round": number,
                "request": request,
                "events": events_to_json(events),
                "at": at,
            }
        )
        if release:
            records.append({"kind": "commit", "reserve": len(records), "release": release, "at": at})
    records.append({"kind": "migrated", "schema": 1, "charges": len(charges), "at": ""})
    return records


def _events(state: Path, name: str, known: PrivacyEvent) -> tuple[PrivacyEvent, ...]:
    experiment = _configuration(state, name)
    if experiment is None:
        multipliers = {"operator": 0.0, **({"prompt_recipient": 0.0} if known.mechanism == WHOLE_UPDATE else {})}
        rates: dict[str, float] = {}
    else:
        planned = {event.adversary: event for event in planned_events(experiment)}
        multipliers = {adversary: event.noise_multiplier for adversary, event in planned.items()}
        rates = {adversary: event.sample_rate for adversary, event in planned.items()}
    return tuple(
        PrivacyEvent(
            adversary,
            known.mechanism,
            multipliers.get(adversary, known.noise_multiplier),
            rates.get(adversary, known.sample_rate),
            known.steps,
        )
        for adversary in ADVERSARIES
    )


def _configuration(state: Path, name: str) -> Experiment | None:
    try:
        return parse_experiment((state / "experiments" / name / "experiment.json").read_text())
    except (OSError, ConfigError):
        return None
