"""What pooling many sites' rows costs beside adding them up, and how much memory it takes."""

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from dpfpl_common.evidence import pool_rows

__all__ = ["measure_pooling"]

Floats = npt.NDArray[np.float64]
CLASSES, SIZE, NOISE = 100, 512, 5.0
KEPT = 1000
"""Sites with rows of their own; of more sites the rows come again, so that memory does not run out."""


class _Rows(Sequence[Floats]):
    """Every site's rows out of one block, float32 as replies keep them; a matrix of doubles exists while it is read."""

    def __init__(self, sites: int) -> None:
        generator = np.random.default_rng(0)
        truth = generator.normal(size=(CLASSES, SIZE)) / SIZE**0.5
        kept = min(sites, KEPT)
        held = generator.integers(0, 30, (kept, CLASSES, 1))
        self._sites, self._block = sites, np.empty((kept, CLASSES, SIZE), np.float32)
        for place in range(kept):
            self._block[place] = held[place] * truth + NOISE * generator.normal(size=truth.shape)

    def __len__(self) -> int:
        return self._sites

    @overload
    def __getitem__(self, place: int) -> Floats: ...

    @overload
    def __getitem__(self, place: slice) -> "Sequence[Floats]": ...

    def __getitem__(self, place: int | slice) -> "Floats | Sequence[Floats]":
        assert isinstance(place, int)
        rows: Floats = self._block[place % len(self._block)].astype(np.float64)
        return rows

    def __iter__(self) -> Iterator[Floats]:
        return (self[place] for place in range(len(self)))


def measure_pooling(quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a number of sites: CPU seconds of the pool over those of the sum, in turns; bytes beyond the rows, over
    those of one site's rows.
    """
    return [_measured(100, 3, say)] if quick else [_measured(1000, 5, say), _measured(10_000, 1, say)]


def _measured(sites: int, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"pooling {sites} sites")
    rows = _Rows(sites)
    ratios, seconds = [], []
    for _ in range(turns):
        alone = _cpu_seconds(lambda: _sum(rows))
        seconds.append(_cpu_seconds(lambda: pool_rows(rows, NOISE)))
        ratios.append(seconds[-1] / alone)
    tracemalloc.start()
    pool_rows(rows, NOISE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "sites": sites,
        "cpu_seconds": median(seconds),
        "over_sum": median(ratios),
        "over_sum_range": [min(ratios), max(ratios)],
        "peak_bytes": peak,
        "bytes_over_one_site": peak / (CLASSES * SIZE * 8),
    }


def _sum(rows: _Rows) -> Floats:
    total = np.zeros((CLASSES, SIZE))
    for each in rows:
        total += each
    return total


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
