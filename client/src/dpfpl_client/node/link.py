"""What the SuperNode last knew of its link to the server: a small file that health checks and people read."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from dpfpl_common.ops.heartbeat import Heartbeat, LifeSign, life_sign

__all__ = ["HEARTBEAT_S", "LinkState", "link_file", "node_heartbeat", "node_life", "read_link", "write_link"]

HEARTBEAT_S = 30.0
"""Flower's heartbeat interval; a server that was silent for two of them counts as lost."""


@dataclass(frozen=True)
class LinkState:
    """The link as the SuperNode saw it; times are seconds since the epoch.

    Attributes:
        started_at: when the SuperNode started.
        answered_at: when the server last answered; 0 if it never did.
        failed_at: when a call last failed; 0 if none did.
        reason: why it failed, a code and a sentence; empty after the next answer.
    """

    started_at: float
    answered_at: float = 0.0
    failed_at: float = 0.0
    reason: str = ""

    def silent_s(self, now: float) -> float:
        """Seconds since the server last answered, or since the start if it never did."""
        return max(0.0, now - (self.answered_at or self.started_at))

    def trouble(self, now: float) -> str:
        """Why the link does not serve, or an empty text while it does."""
        silent = self.silent_s(now)
        if self.answered_at and silent <= 2.0 * HEARTBEAT_S:
            return ""
        said = f" ({self.reason})" if self.reason else ""
        if not self.answered_at:
            return f"SERVER_NOT_REACHED: the server has not answered since the start, {silent:.0f} s ago{said}"
        return f"SERVER_LOST: the server has not answered for {silent:.0f} s{said}"


def link_file(state_folder: Path) -> Path:
    """Where the SuperNode of a state folder writes."""
    return state_folder / "flower" / "link.json"


def node_heartbeat(flower_home: Path) -> Heartbeat:
    """The sign that a SuperNode's process holds as long as it lives."""
    advice = "Stop it first, or start this one from another state folder."
    return Heartbeat(flower_home / "node.lock", "is this site's SuperNode", 10.0, code="NODE_RUNNING", advice=advice)


def node_life(state_folder: Path) -> LifeSign:
    """Whether a SuperNode of a state folder lives; of Flower's own program nothing is known."""
    return life_sign(link_file(state_folder).with_name("node.lock"))


def read_link(path: Path) -> LinkState | None:
    """What was last written; None if there is nothing readable."""
    try:
        return LinkState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_link(path: Path, state: LinkState) -> None:
    """Replace the file; whole, but not durable: after a crash of the machine the link is another anyway."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        temporary.replace(path)
    except OSError:  # a full disk must not end the connection
        return
