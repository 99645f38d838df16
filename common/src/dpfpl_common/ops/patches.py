"""What we change in another package's internals, written down so that a change of theirs is noticed.

Each side of a federation keeps its patches in one module. A patch says which of the package's functions it relies on,
with a digest of their source as it was read when the patch was written: a test compares them with what is installed.
"""

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Patch", "changed_targets", "source_digest"]


@dataclass(frozen=True)
class Patch:
    """One change.

    Attributes:
        name: of the function that makes the change.
        targets: ``module:qualified.name`` of every function or class that it replaces or relies on, with the digest of
            its source.
        reason: what goes wrong without it.
        upstream: the heading in docs/reference/upstream.md that says what the package should do instead.
    """

    name: str
    targets: Mapping[str, str]
    reason: str
    upstream: str


def source_digest(target: str) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of a target's source."""
    module, _, name = target.partition(":")
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]  # type: ignore[arg-type]


def changed_targets(patch: Patch) -> list[str]:
    """The targets that are not what they were when the patch was written, each with its present digest."""
    return [
        f"{target} {source_digest(target)}" for target, was in patch.targets.items() if source_digest(target) != was
    ]
