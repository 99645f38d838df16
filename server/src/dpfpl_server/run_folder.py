"""What a run leaves on the operator's disk: experiment, checkpoint, progress and result."""

import io
import json
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpfpl_common.durable import write_durably
from dpfpl_common.errors import StateError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.payload import Context

__all__ = ["Checkpoint", "RunFolder"]

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


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a completed round.

    Attributes:
        round: rounds completed.
        global_context: p_G, float32 [num_context, width].
        optimizer: the server's optimizer state for it.
        history: one entry a round, as in result.json's ``rounds``.
    """

    round: int
    global_context: Context
    optimizer: OptimizerState
    history: tuple[dict[str, Any], ...] = ()


class RunFolder:
    """``runs/<name>``: every file is written whole, so a reader never sees half a one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, experiment: Experiment) -> None:
        """Make the folder for an experiment, or check that it is this experiment's.

        Raises:
            StateError: the folder belongs to another configuration.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "experiment.json"
        if file.exists():
            if parse_experiment(file.read_text()).digest() != experiment.digest():
                raise StateError(
                    code="OTHER_EXPERIMENT",
                    message=f"{self.path} holds a run of {experiment.name!r} with another configuration.",
                    advice="Give the changed experiment a new name, or move the old folder away.",
                )
            return
        write_durably(file, experiment.to_json().encode(), 0o644)

    def experiment(self) -> Experiment:
        """The experiment that the folder belongs to."""
        try:
            return parse_experiment((self.path / "experiment.json").read_text())
        except OSError:
            raise StateError(
                code="NO_RUN", message=f"{self.path} holds no run.", advice="Check the run's name."
            ) from None
        except UnicodeDecodeError:
            raise self._damaged("experiment.json") from None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a completed round; durable on return."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            round=np.int64(checkpoint.round),
            global_context=checkpoint.global_context,
            first=checkpoint.optimizer.first,
            second=checkpoint.optimizer.second,
            steps=np.int64(checkpoint.optimizer.steps),
            history=np.frombuffer(json.dumps(checkpoint.history).encode(), dtype=np.uint8),
        )
        write_durably(self.path / "checkpoint.npz", buffer.getvalue(), 0o644)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last completed round, or None before the first.

        Raises:
            StateError: the file is damaged.
        """
        file = self.path / "checkpoint.npz"
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as content:
                return Checkpoint(
                    round=int(content["round"]),
                    global_context=content["global_context"].astype("<f4"),
                    optimizer=OptimizerState(content["first"], content["second"], int(content["steps"])),
                    history=tuple(json.loads(content["history"].tobytes())),
                )
        except DAMAGE:
            raise StateError(
                code="CHECKPOINT_DAMAGED",
                message=f"{file} cannot be read.",
                advice="Restore it from a backup, or start the experiment under a new name.",
            ) from None

    def write_json(self, name: str, content: Any) -> None:
        """Replace a JSON file of the folder."""
        write_durably(self.path / name, (json.dumps(content, indent=2) + "\n").encode(), 0o644)

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the folder, or None.

        Raises:
            StateError: the file is damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise self._damaged(name) from None

    def add_event(self, event: dict[str, Any]) -> None:
        """Append what the strategy is doing to events.jsonl, which ``run`` and ``status`` read."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": round(time.time(), 3), **event}) + "\n")

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """The events so far, without the first ``skip``; a line still being written is left for later."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]
        return [event for line in complete.splitlines() if (event := _event(line)) is not None][skip:]

    def _damaged(self, name: str) -> StateError:
        return StateError(
            code="RUN_DAMAGED",
            message=f"{self.path / name} cannot be read.",
            advice="Restore it from a backup, or start the experiment under a new name.",
        )


def _event(line: str) -> dict[str, Any] | None:
    """The event in a line; None if the server was killed while writing it and a resumed run wrote on behind it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "phase" in event else None
