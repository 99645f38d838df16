"""What a forward pass through the fast text tower leaves behind for the ways back.

Symbols as in ``fast_tower``: N rows (m of the context, then R x T of classes), B cotangents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpfpl_client.learning.folded_layers import FoldedLayer, Normed
from dpfpl_client.learning.packing import ROW_LENGTH, PackedClasses
from dpfpl_client.learning.products import FrozenProduct
from dpfpl_client.learning.shared_attention import Attention

__all__ = ["LayerState", "MemoryPlan", "Part", "SharedKeys", "Weights", "at_ends", "by_rows", "slices"]


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
