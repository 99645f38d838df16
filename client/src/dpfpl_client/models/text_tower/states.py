"""What a forward pass through the fast text tower leaves behind for the ways back.

Symbols as in ``fast``: N rows (m of the context, then R x T of classes), B cotangents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from dpfpl_client.models.text_tower.attention import Attention
from dpfpl_client.models.text_tower.layers import FoldedLayer, FrozenProduct, Normed

__all__ = [
    "ROW_LENGTH",
    "ClassTokens",
    "LayerState",
    "MemoryPlan",
    "PackedClasses",
    "Part",
    "SharedKeys",
    "Weights",
    "at_ends",
    "by_rows",
    "pack",
    "slices",
]


@dataclass(frozen=True)
class ClassTokens:
    """Class names as token ids.

    Attributes:
        ids: [classes, longest], each ``<name>.<EOS>`` padded on the right.
        lengths: [classes], tokens of each including EOS.
        bos_id: id of the begin token.
    """

    ids: Tensor
    lengths: Tensor
    bos_id: int

    @classmethod
    def build(cls, suffixes: Sequence[Sequence[int]], bos_id: int) -> "ClassTokens":
        """From ragged lists of ids, each ending in EOS."""
        longest = max(len(suffix) for suffix in suffixes)
        ids = torch.tensor([[*suffix, *[suffix[-1]] * (longest - len(suffix))] for suffix in suffixes])
        return cls(ids=ids, lengths=torch.tensor([len(suffix) for suffix in suffixes]), bos_id=bos_id)

    def to(self, device: torch.device) -> "ClassTokens":
        """The same on another device."""
        return ClassTokens(self.ids.to(device), self.lengths.to(device), self.bos_id)


# Class names of different lengths as few equal rows, several names one after another in a row.


ROW_LENGTH = 16
"""Most tokens of a row: short rows waste little attention on other names, long ones leave less room unfilled."""

ATTENTION_COST = 256
"""A row of so many tokens would make a token's attention within it as dear as its products (measured at width 512)."""


@dataclass(frozen=True)
class PackedClasses:
    """Classes laid out in R rows of T tokens, on the device of their tokens.

    Attributes:
        ids: [R, T] token ids; what no class fills holds some token and is seen by nobody.
        places: [R, T] position of each token within its own class, from 0.
        allowed: [R, T, T] bool, whether a query (second axis) sees a key (third): the same class, not later. A filler
            sees itself, so that no row of attention is empty.
        ends: [R, E] where in its row each class ends, padded with 0.
        class_of_end: [R, E] index of that class, -1 for padding.
        singly: row r is class r.
        classes: how many there are in all, also if these are only some of their rows.
    """

    ids: Tensor
    places: Tensor
    allowed: Tensor
    ends: Tensor
    class_of_end: Tensor
    singly: bool = False
    classes: int = 0

    def part(self, rows: slice) -> "PackedClasses":
        """Some of the rows; classes keep their indices."""
        return self._taken(rows, singly=self.singly)

    def of_rows(self, rows: Tensor) -> "PackedClasses":
        """Some of the rows in any order, repeated where asked for."""
        return self._taken(rows, singly=False)

    def _taken(self, rows: slice | Tensor, *, singly: bool) -> "PackedClasses":
        return PackedClasses(
            self.ids[rows],
            self.places[rows],
            self.allowed[rows],
            self.ends[rows],
            self.class_of_end[rows],
            singly,
            self.classes,
        )


def pack(tokens: ClassTokens, row_length: int = ROW_LENGTH, *, singly: bool = False) -> PackedClasses:
    """Every class whole in one row, in rows of the length that leaves the least unfilled.

    Args:
        tokens: the classes.
        row_length: most tokens of a row; the longest class may ask for more.
        singly: one class a row, in the order given.
    """
    layout, owners = _layout(tuple(tokens.lengths.tolist()), row_length, singly, tokens.ids.device)
    return replace(layout, ids=tokens.ids[owners, layout.places])


@lru_cache(maxsize=32)
def _layout(
    lengths: tuple[int, ...], row_length: int, singly: bool, device: torch.device
) -> tuple[PackedClasses, Tensor]:
    """The layout for classes of these lengths, its ids left out, and the owner [R, T] of every token."""
    rows = [[index] for index in range(len(lengths))] if singly else _assigned(lengths, row_length)
    width = max(sum(lengths[index] for index in row) for row in rows)
    most = max(len(row) for row in rows)
    places = torch.zeros((len(rows), width), dtype=torch.long)
    owner = -1 - torch.arange(width).repeat(len(rows), 1)  # fillers: each a class of its own
    ends = torch.zeros((len(rows), most), dtype=torch.long)
    class_of_end = torch.full((len(rows), most), -1)
    for number, row in enumerate(rows):
        start = 0
        for place, index in enumerate(row):
            stop = start + lengths[index]
            places[number, start:stop] = torch.arange(lengths[index])
            owner[number, start:stop] = index
            ends[number, place] = stop - 1
            class_of_end[number, place] = index
            start = stop
    allowed = (owner[:, :, None] == owner[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    places = places.to(device)
    layout = PackedClasses(
        places, places, allowed.to(device), ends.to(device), class_of_end.to(device), singly, len(lengths)
    )
    return layout, owner.clamp(min=0).to(device)


def _assigned(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of classes for the capacity at which all rows together, all as long as the fullest, cost least."""
    longest = max(lengths)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    best: tuple[int, list[list[int]]] | None = None
    for capacity in range(max(longest, row_length // 2), max(longest + longest // 2, row_length) + 1):
        rows = _best_fit(lengths, order, capacity)
        fullest = max(sum(lengths[index] for index in row) for row in rows)
        cost = len(rows) * fullest * (fullest + ATTENTION_COST)
        if best is None or cost < best[0]:
            best = cost, rows
    assert best is not None
    return best[1]


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """The classes, the longest first, each into the fullest row that still has room for it."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for index in order:
        length = lengths[index]
        room = next((room for room in range(length, capacity + 1) if by_room[room]), None)
        if room is None:
            rows.append([])
            room, number = capacity, len(rows) - 1
        else:
            number = by_room[room].pop()
        rows[number].append(index)
        by_room[room - length].append(number)
    return rows


@dataclass(frozen=True)
class MemoryPlan:
    """Bounds on memory; they change no result.

    Attributes:
        chunk_rows: rows of one product in a pullback: enough for full speed, few enough to stay in the cache.
        state_bytes: about how much a forward pass keeps for its pullback; more classes are computed again by parts.
        gradient_bytes: about how large the gradients of all rows get; more cotangents are pulled back by parts.
        row_length: preferred tokens of a packed row.
    """

    chunk_rows: int = 512
    state_bytes: int = 2**27
    gradient_bytes: int = 2**26
    row_length: int = ROW_LENGTH


@dataclass(frozen=True)
class LayerState:
    """What the pullback through a layer needs. ``first`` normed rows before attention, ``second`` before the rest."""

    first: Normed
    context: Attention | None
    classes: Attention
    second: Normed
    slope: Tensor


@dataclass(frozen=True)
class Part:
    """A forward pass over some of the classes, with the context's rows or without.

    Attributes:
        rows: of the context, 0 where another part has them.
        packed: the classes.
        layers: kept states; empty if not kept.
        final: normed rows at the ends, [R, E, d].
        features: at the ends, [R, E, feature size], not normalised.
    """

    rows: int
    packed: PackedClasses
    layers: list[LayerState]
    final: Normed
    features: Tensor


SharedKeys = list[tuple[Tensor, Tensor]]
"""Of every layer: keys and values [H, P, e] of begin token and context."""


@dataclass(frozen=True)
class Weights:
    """What a pullback needs of the tower: ``layers``, the ``projection`` behind them, the ``plan`` for memory."""

    layers: list[FoldedLayer]
    projection: FrozenProduct
    plan: MemoryPlan


def by_rows(x: Tensor) -> Tensor:
    """[H, R, T, e] as [R T, d]."""
    return x.permute(1, 2, 0, 3).reshape(x.shape[1] * x.shape[2], -1)


def at_ends(packed: PackedClasses, before: int) -> Tensor:
    """[R, E], indices of the ends among all rows when ``before`` others come first."""
    rows, length = packed.ids.shape
    return before + packed.ends + length * torch.arange(rows, device=packed.ends.device)[:, None]


def slices(total: int, size: int) -> Iterator[slice]:
    """``range(total)`` in the fewest pieces of at most ``size``, as equal as can be."""
    pieces = -(-total // size)
    for piece in range(pieces):
        yield slice(piece * total // pieces, (piece + 1) * total // pieces)
