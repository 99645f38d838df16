"""The server's state after a completed round, and its digest."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpfpl_common.config import to_table
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.privacy_plan import planned_events
from dpfpl_common.wire.payloads import Context
from dpfpl_server.federation.evidence import Evidence

__all__ = ["Checkpoint", "chained", "checkpoint_digest", "spent_events"]


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a completed round.

    Attributes:
        round: rounds completed.
        global_context: p_G, float32 [num_context, width].
        optimizer: the server's optimizer state for it.
        history: one entry a round, as in result.json's ``rounds``.
        evidence: class sums and votes of the sites so far.
    """

    round: int
    global_context: Context
    optimizer: OptimizerState
    history: tuple[dict[str, Any], ...] = ()
    evidence: Evidence = field(default_factory=Evidence)


def spent_events(experiment: Experiment, rounds: int) -> list[dict[str, Any]]:
    """The accountant's events of the first ``rounds`` rounds, for each adversary, as JSON."""
    if experiment.privacy.noise_multiplier is None:
        return []
    return [dict(to_table(event)) for event in planned_events(experiment, rounds * experiment.rounds.local_steps)]


def chained(entries: Iterable[Mapping[str, Any]]) -> str:
    """A digest of all entries in their order: each round's covers the one before."""
    link = ""
    for entry in entries:
        link = hashlib.sha256((link + json.dumps(entry, sort_keys=True)).encode()).hexdigest()
    return link


def checkpoint_digest(checkpoint: Checkpoint, configuration: str, events: list[dict[str, Any]]) -> str:
    """sha256 over everything that a resumed run starts from: arrays, counters, events, history and configuration."""
    digest = hashlib.sha256()
    state = checkpoint.optimizer
    texts: tuple[str, ...] = (
        configuration,
        str(checkpoint.round),
        str(state.steps),
        json.dumps(events, sort_keys=True),
        chained(checkpoint.history),
    )
    evidence = checkpoint.evidence
    if evidence.rows:
        shapes = {site: rows.shape for site, rows in sorted(evidence.rows.items())}
        texts = (*texts, json.dumps([shapes, sorted(evidence.votes)]))
    arrays = (
        *(rows.astype("<f4") for _, rows in sorted(evidence.rows.items())),
        *(row.astype("<f4") for _, row in sorted(evidence.votes.items())),
        checkpoint.global_context.astype("<f4"),
        state.first.astype("<f8"),
        state.second.astype("<f8"),
    )
    for part in (*(text.encode() for text in texts), *(np.ascontiguousarray(array).tobytes() for array in arrays)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
