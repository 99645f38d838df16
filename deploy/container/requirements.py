"""Print what our distributions need from elsewhere: ``python requirements.py common server client[agent]``.

Lets an image install (and cache) third-party packages before it copies our code, and a machine with an index collect
their wheels for one without.
"""

import re
import sys
import tomllib
from pathlib import Path

__all__ = ["requirements"]

BUILD = ("hatchling", "editables")
"""What building our own wheels takes; never part of an image's last stage."""


def requirements(folder: Path, distributions: list[str]) -> list[str]:
    """The third-party requirements of ``name`` or ``name[extra]``, sorted, without our own distributions."""
    found: set[str] = set()
    for text in distributions:
        name, extras = re.fullmatch(r"(\w+)(?:\[([\w,]+)\])?", text).groups()  # type: ignore[union-attr]
        project = tomllib.loads((folder / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        found.update(project["dependencies"])
        for extra in filter(None, (extras or "").split(",")):
            found.update(project["optional-dependencies"][extra])
    return sorted(need for need in found if not need.startswith("dpfpl-"))


if __name__ == "__main__":
    print("\n".join(BUILD if sys.argv[1:] == ["build"] else requirements(Path.cwd(), sys.argv[1:])))
