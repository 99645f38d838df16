"""Class names of different lengths as few equal rows, several names one after another in a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpfpl_client.learning.text_tower import ClassTokens

__all__ = ["ROW_LENGTH", "PackedClasses", "pack"]

ROW_LENGTH = 16
"""Preferred tokens of a row: short rows waste little attention on other names, long ones keep the products large."""


@dataclass(frozen=True)
class PackedClasses:
    """Classes laid out in R rows of T tokens.

    Attributes:
        ids: [R, T] token ids; what no class fills repeats EOS and is seen by nobody.
        places: [R, T] position of each token within its own class, from 0.
        allowed: [R, T, T] bool, whether a query (second axis) sees a key (third): the same class, not later. A filler
            sees itself, so that no row of attention is empty.
        ends: [R, E] where in its row each class ends, padded with 0.
        class_of_end: [R, E] index of that class, -1 for padding.
        singly: row r is class r.
    """

    ids: Tensor
    places: Tensor
    allowed: Tensor
    ends: Tensor
    class_of_end: Tensor
    singly: bool = False

    def part(self, rows: slice) -> "PackedClasses":
        """Some of the rows."""
        return PackedClasses(
            self.ids[rows], self.places[rows], self.allowed[rows], self.ends[rows], self.class_of_end[rows]
        )


def pack(tokens: ClassTokens, row_length: int = ROW_LENGTH, *, singly: bool = False) -> PackedClasses:
    """Every class whole in one row, the longest first into the fullest row that still has room.

    Args:
        tokens: the classes.
        row_length: preferred length of a row; the longest class may ask for more. The rows are then made as short as
            their fullest one.
        singly: one class a row, in the order given.
    """
    lengths = tokens.lengths.tolist()
    rows = [[index] for index in range(len(lengths))] if singly else _assigned(lengths, max(row_length, *lengths))
    width = max(sum(lengths[index] for index in row) for row in rows)
    most = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), int(tokens.ids[0, int(tokens.lengths[0]) - 1]))
    places = torch.zeros((len(rows), width), dtype=torch.long)
    owner = -1 - torch.arange(width).repeat(len(rows), 1)  # fillers: each a class of its own
    ends = torch.zeros((len(rows), most), dtype=torch.long)
    class_of_end = torch.full((len(rows), most), -1)
    for number, row in enumerate(rows):
        start = 0
        for place, index in enumerate(row):
            stop = start + lengths[index]
            ids[number, start:stop] = tokens.ids[index, : lengths[index]]
            places[number, start:stop] = torch.arange(lengths[index])
            owner[number, start:stop] = index
            ends[number, place] = stop - 1
            class_of_end[number, place] = index
            start = stop
    allowed = (owner[:, :, None] == owner[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    return PackedClasses(ids, places, allowed, ends, class_of_end, singly)


def _assigned(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row, left in enumerate(room) if left >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda row: room[row])
        else:
            best = len(rows)
            rows.append([])
            room.append(capacity)
        rows[best].append(index)
        room[best] -= lengths[index]
    return rows
