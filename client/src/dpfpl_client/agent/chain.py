"""Records that vouch for each other: the hash of each covers its content and the hash before it.

Whoever changes, removes, inserts or exchanges a record breaks the chain at that record. Records cut off at the end
leave a chain that is whole but shorter; that is found by :mod:`dpfpl_client.agent.anchor`. There is no secret key:
somebody who may write the file can forge a whole new chain, and is not defended against.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["ROOT", "BrokenChainError", "Link", "canonical", "chained", "follow"]

ROOT = "0" * 64
"""What the first record's hash covers in place of a hash before it."""


@dataclass(frozen=True)
class Link:
    """One record: its place from 1 on, its content as canonical JSON, and its hash."""

    sequence: int
    content: str
    hash: str

    def parsed(self) -> dict[str, Any]:
        """The content as a dictionary."""
        table: dict[str, Any] = json.loads(self.content)
        return table


class BrokenChainError(Exception):
    """The record ``sequence`` is not what was once written there."""

    def __init__(self, sequence: int, what: str) -> None:
        super().__init__(f"Record {sequence} {what}.")
        self.sequence = sequence


def canonical(content: dict[str, Any]) -> str:
    """The one JSON text of a record's content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def chained(previous: str, content: str) -> str:
    """sha256 over the previous record's hash and this content."""
    return hashlib.sha256(f"{previous}\n{content}".encode(errors="surrogateescape")).hexdigest()


def follow(links: Iterable[Link]) -> Iterator[Link]:
    """The links, each one checked as it passes.

    Raises:
        BrokenChainError: naming the first record that is missing or is not what was written.
    """
    previous = Link(0, "", ROOT)
    for link in links:
        if link.sequence != previous.sequence + 1:
            raise BrokenChainError(previous.sequence + 1, "is missing")
        if link.hash != chained(previous.hash, link.content):
            raise BrokenChainError(link.sequence, "was changed")
        yield link
        previous = link
