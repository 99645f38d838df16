"""Which processes make up a running server, and whether each of them is alive: by locks that the kernel drops.

``dpfpl-server health``, ``status``, ``doctor``, the console and the containers' health all read these.
"""

from pathlib import Path

from dpfpl_common.ops.diagnostics import Trouble
from dpfpl_common.ops.heartbeat import Heartbeat, life_sign

__all__ = ["PARTS", "life_of", "part_troubles"]

PARTS = {
    "supervisor": "starts the others again when they end",
    "superlink": "serves the sites",
    "executor": "starts the runs",
}
HANGS_S = 20.0
"""A process that has not renewed its sign for so long hangs."""


def life_of(part: str, server_folder: Path, *, by_itself: bool = True) -> Heartbeat:
    """The sign that a part's process holds as long as it lives."""
    folder = server_folder / "life"
    folder.mkdir(mode=0o700, exist_ok=True)
    advice = "Use that one, or stop it first."
    what = f"is the {part} of this server"
    return Heartbeat(folder / part, what, 10.0, code="ALREADY_RUNNING", advice=advice, by_itself=by_itself)


def part_troubles(server_folder: Path) -> list[Trouble]:
    """Which of the parts that were ever started are gone or hang."""
    found = []
    for part, purpose in PARTS.items():
        path = server_folder / "life" / part
        if not path.exists():
            continue
        sign = life_sign(path)
        if not sign.alive:
            found.append(Trouble(part, "PROCESS_DOWN", f"the {part}, which {purpose}, does not run"))
        elif sign.age_s is not None and sign.age_s > HANGS_S:
            text = f"the {part}, which {purpose}, has given no sign of life for {sign.age_s:.0f} s"
            found.append(Trouble(part, "PROCESS_HANGS", text))
    return found
