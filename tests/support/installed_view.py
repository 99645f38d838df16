"""A folder that shows only some of the installed packages, as an environment would that holds no others."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["closure_of", "make_view"]


def make_view(folder: Path, distributions: Iterable[str]) -> None:
    """Link the top-level files of these distributions, and no others, into a folder."""
    folder.mkdir()
    for name in distributions:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if target.suffix != ".pth" and not (folder / top).exists():
                (folder / top).symlink_to(target)


def closure_of(names: Iterable[str]) -> set[str]:
    """Canonical names of what ``pip install NAMES`` brings, these included."""
    seen: set[tuple[str, str]] = set()
    queue = [(canonicalize_name(name), "") for name in names]
    while queue:
        entry = queue.pop()
        if entry in seen:
            continue
        seen.add(entry)
        for text in importlib.metadata.requires(entry[0]) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": entry[1]}):
                queue += [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in seen}
