"""What a run leaves on the operator's disk: experiment, state and result.

::

    experiment.json             the experiment, noise level resolved; never changes
    run.sqlite                  rounds, drops, checkpoint, events, Flower runs: see run_store
    serverapp.lock              held by the ServerApp while it works on the run
    supervisor.lock             held by dpfpl-server run or resume meanwhile
    result.json, report.html    once it is finished
"""

import json
import logging
from pathlib import Path
from typing import Any

from dpfpl_common.errors import StateError
from dpfpl_common.experiment import Experiment, parse_experiment
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.heartbeat import Heartbeat, LifeSign, life_sign
from dpfpl_server.federation.evidence import Checkpoint
from dpfpl_server.runs.store import RunStore

__all__ = ["Checkpoint", "RunFolder"]


class RunFolder:
    """``runs/<name>``: a reader never sees half of anything."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = RunStore(path / "run.sqlite")
        self._experiment: Experiment | None = None

    def begin(self, experiment: Experiment) -> None:
        """Make the folder for an experiment, or check that it is this experiment's.

        Raises:
            StateError: the folder belongs to another configuration.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        file = self.path / "experiment.json"
        if file.exists():
            if parse_experiment(file.read_text()).digest() != experiment.digest():
                raise StateError(
                    code="OTHER_EXPERIMENT",
                    message=f"{self.path} holds a run of {experiment.name!r} with another configuration.",
                    advice="Give the changed experiment a new name, or move the old folder away.",
                )
        else:
            write_durably(file, experiment.to_json().encode(), 0o644)

    def experiment(self) -> Experiment:
        """The experiment that the folder belongs to."""
        if self._experiment is None:
            try:
                self._experiment = parse_experiment((self.path / "experiment.json").read_text())
            except (FileNotFoundError, NotADirectoryError):
                known = sorted(file.parent.name for file in self.path.parent.glob("*/experiment.json"))
                raise StateError(
                    code="NO_RUN",
                    message=f"{self.path} holds no run.",
                    advice=f"Check the run's name; there is {', '.join(known) or 'none yet'}. A run that was just "
                    "started needs some seconds.",
                ) from None
            except OSError as error:
                raise StateError(
                    code="RUN_UNREADABLE",
                    message=f"{self.path / 'experiment.json'} cannot be read ({error.strerror or error}).",
                    advice="Use the account that started the run, or let this one read its folder.",
                ) from None
            except UnicodeDecodeError:
                raise self._damaged("experiment.json") from None
        return self._experiment

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a completed round; durable on return."""
        self.store.save(self.experiment(), checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last completed round, or None before the first.

        Raises:
            StateError: it is damaged, or of another configuration.
        """
        return self.store.load(self.experiment())

    def add_event(self, event: dict[str, Any]) -> None:
        """Append what is going on, for ``run``, ``status`` and ``watch``; a warning goes to the server's log, too."""
        self.store.add_event(event)
        if event.get("warning"):
            logging.getLogger(__name__).warning("%s: %s", self.path.name, event["warning"])

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """The events so far, without the first ``skip``."""
        return self.store.events(skip)

    def server_pulse(self, wait_s: float = 0.0) -> Heartbeat:
        """To be held by the ServerApp: two of them on one run would overwrite each other's rounds."""
        return self._heartbeat("serverapp.lock", "runs this experiment", wait_s)

    def supervisor_pulse(self) -> Heartbeat:
        """Held by the process that submits runs and resumes them."""
        return self._heartbeat("supervisor.lock", "runs and supervises this experiment", 0.0)

    def _heartbeat(self, file: str, what: str, wait_s: float) -> Heartbeat:
        advice = "Look at it with dpfpl-server watch NAME, or end it with dpfpl-server stop NAME."
        return Heartbeat(self.path / file, what, wait_s, code="RUN_IN_PROGRESS", advice=advice)

    def server_life(self) -> LifeSign:
        """Whether a ServerApp works on the run now."""
        return life_sign(self.path / "serverapp.lock")

    def supervisor_life(self) -> LifeSign:
        """Whether somebody supervises the run now."""
        return life_sign(self.path / "supervisor.lock")

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

    def _damaged(self, name: str) -> StateError:
        return StateError(
            code="RUN_DAMAGED",
            message=f"{self.path / name} cannot be read.",
            advice="Restore it from a backup, or start the experiment under a new name.",
        )
