"""Which experiments the administrator approved, by name and configuration, and which ones wait for an answer."""

import json
import time
from pathlib import Path
from typing import Any

from dpfpl_common.durable import make_folder_durably, write_durably
from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.experiment import Experiment, parse_experiment

__all__ = ["Approvals"]

MOST_PENDING = 10


class Approvals:
    """``approved.json`` and ``pending.json`` in the state folder, read anew at every question."""

    def __init__(self, state: Path) -> None:
        self._approved, self._pending = state / "approved.json", state / "pending.json"

    def holds(self, experiment: Experiment) -> bool:
        """Whether this very configuration was approved under this name."""
        return self.approved().get(experiment.name, {}).get("digest") == experiment.digest()

    def approved(self) -> dict[str, dict[str, Any]]:
        """Digest and time of each approved name."""
        return _read(self._approved)

    def approve(self, experiment: Experiment) -> None:
        """Approve this configuration; one name has one approved configuration at a time."""
        entry = {"digest": experiment.digest(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self._write(self._approved, {**self.approved(), experiment.name: entry})
        self._write(self._pending, {n: e for n, e in _read(self._pending).items() if n != experiment.name})

    def revoke(self, name: str) -> bool:
        """Take an approval back; tells whether there was one."""
        approved = self.approved()
        known = approved.pop(name, None) is not None
        self._write(self._approved, approved)
        return known

    def wait(self, experiment: Experiment) -> None:
        """Remember what was refused for want of an approval: the last ten names, the last configuration of each."""
        pending = _read(self._pending)
        text = experiment.to_json()
        if pending.pop(experiment.name, None) == text and len(pending) < MOST_PENDING:
            return
        kept = dict([*pending.items(), (experiment.name, text)][-MOST_PENDING:])
        self._write(self._pending, kept)

    def pending(self) -> dict[str, Experiment]:
        """What waits for an answer, latest last."""
        found = {}
        for name, text in _read(self._pending).items():
            try:
                found[name] = parse_experiment(text)
            except ConfigError:
                continue  # written by another release
        return found

    def _write(self, path: Path, table: dict[str, Any]) -> None:
        make_folder_durably(path.parent)
        write_durably(path, json.dumps(table, indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StateError(
            code="APPROVALS_UNREADABLE",
            message=f"{path} cannot be read ({error}).",
            advice="Remove it and approve anew.",
        ) from None
    return table
