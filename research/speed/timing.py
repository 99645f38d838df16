"""Fair timing on a machine that is not quiet: contestants take turns, CPU time counts, medians of ratios."""

import ctypes
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "Timed",
    "cpu_seconds",
    "give_back_free_memory",
    "most_memory",
    "peak_memory",
    "processor",
    "take_turns",
]

LONG_S: Final = 2.0
"""Calls longer than this are not repeated."""


@dataclass(frozen=True)
class Timed:
    """CPU seconds of one contestant, ``seconds``, and over the yardstick's of the same turn, ``ratios``."""

    seconds: Sequence[float]
    ratios: Sequence[float]

    def as_table(self) -> dict[str, Any]:
        """Medians and spread for bench.json."""
        return {
            "cpu_seconds": statistics.median(self.seconds),
            "ratio": statistics.median(self.ratios),
            "ratio_range": [min(self.ratios), max(self.ratios)],
            "turns": len(self.seconds),
        }


def take_turns(
    contestants: Mapping[str, tuple[Callable[[], object], int]], yardstick: str, turns: int
) -> dict[str, Timed]:
    """Time contestants, each once a turn.

    What a contestant leaves in the caches must not burden the next one, so each is called once before the call that
    counts, unless one call takes so long that it brings its own data anyway.

    Args:
        contestants: what to call, and in how many of the turns at most (slow ones need fewer).
        yardstick: whose time the ratios are over; it runs before and after each other one, and both count.
        turns: how many.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    ratios: dict[str, list[float]] = {name: [] for name in contestants}
    measure, _ = contestants[yardstick]
    for turn in range(turns):
        before = _warm_seconds(measure)
        for name, (call, most) in contestants.items():
            if turn >= most or name == yardstick:
                continue
            taken = _warm_seconds(call)
            after = _warm_seconds(measure)
            seconds[name].append(taken)
            ratios[name].append(taken / ((before + after) / 2))
            seconds[yardstick].append(after)
            before = after
    ratios[yardstick] = [1.0] * len(seconds[yardstick])
    return {name: Timed(seconds[name], ratios[name]) for name in contestants}


def _warm_seconds(call: Callable[[], object]) -> float:
    first = cpu_seconds(call)
    return first if first > LONG_S else cpu_seconds(call)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process in one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes that a call needs beyond what is there already: measured in a forked copy of this process (POSIX only)."""
    if not hasattr(os, "fork"):
        return None
    give_back_free_memory()  # before the fork: what is resident then is where the child's peak begins
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = most_memory()
            call()
            os.write(writer, str(most_memory() - before).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer) if answer else None


def give_back_free_memory() -> None:
    """Freed memory that the allocator keeps would be used again without showing (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def most_memory() -> int:
    """Bytes that this process held at its largest (Linux); elsewhere it or what started it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor() -> str:
    """What the machine's processor is called."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
