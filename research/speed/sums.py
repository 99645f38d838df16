"""What adding up the class sums of many sites costs, 100 classes of 512 numbers: pooled in the clear, and masked.

A secure sum is measured without the noise, which every trust needs, but the making of the noise is timed beside it. Its
server is a process of its own, so that its memory holds no site's; one reply at a time comes to it, as from a network.
"""

import multiprocessing
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from dpfpl_common.evidence import pool_rows
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.secure import STEPS
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import SiteSum
from dpfpl_common.secure.terms import Terms
from research.speed.timing import cpu_seconds, most_memory

__all__ = ["measure_pooling", "measure_secure"]

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

    def __getitem__(self, place: Any) -> Any:
        return self._block[place % len(self._block)].astype(np.float64)

    def __iter__(self) -> Iterator[Floats]:
        return (self[place] for place in range(len(self)))


def measure_pooling(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a number of sites: CPU seconds of the pool over those of the sum, in turns; bytes beyond the rows, over
    those of one site's rows.
    """
    return [_pooled(1000, 5, say), _pooled(10_000, 1, say)]


def _pooled(sites: int, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"pooling {sites} sites")
    rows = _Rows(sites)
    ratios, seconds = [], []
    for _ in range(turns):
        alone = cpu_seconds(lambda: _sum(rows))
        seconds.append(cpu_seconds(lambda: pool_rows(rows, NOISE)))
        ratios.append(seconds[-1] / alone)
    tracemalloc.start()
    pool_rows(rows, NOISE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "sites": sites,
        "cpu_seconds": median(seconds),
        "over_sum": median(ratios),
        "bytes_over_one_site": peak / (CLASSES * SIZE * 8),
    }


def _sum(rows: _Rows) -> Floats:
    total = np.zeros((CLASSES, SIZE))
    for each in rows:
        total += each
    return total


def measure_secure(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a number of sites: CPU seconds of a site and of the server, bytes, the server's memory."""
    say("secure sums")
    return [_secure(count) for count in (10, 100, 200, 1000)]


def _secure(count: int) -> dict[str, Any]:
    """Of one sum over so many sites; a tenth of them is gone before the last step. The site is the first one."""
    dropouts = count // 10
    names = tuple(f"site-{number:04}" for number in range(count))
    terms = Terms("0" * 64, "rows", 1, names, dropouts, 1)
    values = np.arange(CLASSES * SIZE)
    sites = {name: SiteSum(terms, name) for name in names}
    context = multiprocessing.get_context("spawn")
    line, far = context.Pipe()
    process = context.Process(target=_serve, args=(far, terms))
    process.start()
    site_cpu, up, down = 0.0, 0, 0
    gone = set(names[count - dropouts :])
    for step in STEPS:
        requests = dict(iter(line.recv, None))
        for name, request in requests.items():
            if step == "masked" and name in gone:
                continue
            began = time.process_time()
            reply = sites[name].answer(step, request, values)
            if name == names[0]:
                site_cpu += time.process_time() - began
                up, down = up + len(reply), down + len(request)
            line.send((name, reply))
        line.send(None)
    total, server_cpu, memory = line.recv()
    process.join()
    assert np.array_equal(total, values * (count - dropouts))
    source, nothing = SystemNoise(), np.zeros(CLASSES * SIZE)
    return {
        "sites": count,
        "neighbours": terms.degree,
        "site_s": site_cpu,
        "over_noise": site_cpu / median(cpu_seconds(lambda: source.add(nothing, 1.0)) for _ in range(3)),
        "bytes_up": up,
        "bytes_down": down,
        "server_s": server_cpu,
        "server_mib": memory / 2**20,
    }


def _serve(line: Connection, terms: Terms) -> None:
    """The server's part: gives each step's requests, takes the replies until None, gives the sum and what it cost."""
    before, spent = most_memory(), 0.0
    server = ServerSum(terms)
    for _ in STEPS:
        began = time.process_time()
        requests = server.requests()
        spent += time.process_time() - began
        for site, request in requests.items():
            line.send((site, request))
        line.send(None)
        del requests
        while (reply := line.recv()) is not None:
            began = time.process_time()
            server.take(*reply)
            spent += time.process_time() - began
        server.close()
    began = time.process_time()
    total = server.total()
    line.send((total, spent + time.process_time() - began, most_memory() - before))
