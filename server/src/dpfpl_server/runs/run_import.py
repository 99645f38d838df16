"""Takes a run over that an earlier release left as checkpoint.npz, events.jsonl, nodes.json and final.json."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_common.errors import StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.federation.checkpoint import Checkpoint
from dpfpl_server.runs.store import RunStore

__all__ = ["import_earlier_run"]

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What NumPy and zipfile raise on a file that is cut, changed or of another kind."""


def import_earlier_run(folder: Path, experiment: Experiment, store: RunStore) -> None:
    """Copy the old files into the store; they stay where they are.

    Raises:
        StateError: the old checkpoint is damaged; nothing was written.
    """
    checkpoint = _checkpoint(folder / "checkpoint.npz", experiment)
    for line in _text(folder / "events.jsonl").splitlines():
        event = _json(line)
        if isinstance(event, dict) and "phase" in event:
            store.add_event(event)
    final = _json(_text(folder / "final.json"))
    if final is not None:
        store.set_fact("final", final)
    store.save(experiment, checkpoint)


def _checkpoint(file: Path, experiment: Experiment) -> Checkpoint:
    try:
        with np.load(file, allow_pickle=False) as content:
            checkpoint = Checkpoint(
                round=int(content["round"]),
                global_context=content["global_context"].astype("<f4"),
                optimizer=OptimizerState(content["first"], content["second"], int(content["steps"])),
                history=tuple(json.loads(content["history"].tobytes())),
            )
    except DAMAGE:
        checkpoint = None
    if checkpoint is None or checkpoint.global_context.shape != experiment.context_shape:
        raise StateError(
            code="CHECKPOINT_DAMAGED",
            message=f"{file} cannot be read.",
            advice="Restore it from a backup, or start the experiment under a new name.",
        )
    return checkpoint


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _json(text: str) -> Any | None:
    try:
        return json.loads(text)
    except ValueError:
        return None
