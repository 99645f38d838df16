"""What we change in another package's internals, written down so that a change of theirs is noticed.

Each side of a federation keeps its patches in one module. A patch says which of the package's functions it relies on,
with a digest of their source as it was read when the patch was written: a test compares them with what is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Patch"]


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
