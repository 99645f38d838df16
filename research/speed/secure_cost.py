"""What one secure sum costs: CPU seconds of a site and of the server, bytes, and the server's memory beyond its
program's. Part of ``make bench``; alone, for as many sites as named: ``python -m research.speed.secure_cost 10000``.

The sum is of 100 classes of 512 numbers; the noise, which every trust needs, is not counted but timed beside it. The
server is a process of its own, so that its memory holds no site's; one reply at a time comes to it, as from a network.
"""

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.secure import STEPS
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import SiteSum
from dpfpl_common.secure.terms import Terms

__all__ = ["HEAD", "measure_secure", "secure_table"]

SIZE = 100 * 512
HEAD = (
    "sites",
    "neighbours",
    "site, CPU s",
    "over making its noise",
    "site, kB up / down",
    "server, CPU s",
    "server, MiB",
)


def measure_secure(quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a number of sites."""
    say("secure sums")
    return [cost(count) for count in ((10, 100) if quick else (10, 100, 200, 1000))]


def secure_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as cells under ``HEAD``."""
    return [
        [
            f"{row['sites']:,}",
            str(row["neighbours"]),
            f"{row['site_s']:.3f}",
            f"{row['over_noise']:.1f}",
            f"{row['bytes_up'] / 1e3:.0f} / {row['bytes_down'] / 1e3:.0f}",
            f"{row['server_s']:.2f}",
            f"{row['server_mib']:.0f}",
        ]
        for row in rows
    ]


def serve(line: Connection, terms: Terms) -> None:
    """The server's part: gives each step's requests, takes the replies until None, gives the sum and what it cost."""
    before, spent = _peak_kb(), 0.0
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
    line.send((total, spent + time.process_time() - began, _peak_kb() - before))


def cost(count: int) -> dict[str, Any]:
    """Of one sum over so many sites; a tenth of them is gone before the last step. The site is the first one."""
    dropouts = count // 10
    names = tuple(f"site-{number:04}" for number in range(count))
    terms = Terms("0" * 64, "rows", 1, names, dropouts, 1)
    values = np.arange(SIZE)
    sites = {name: SiteSum(terms, name) for name in names}
    context = multiprocessing.get_context("spawn")
    line, far = context.Pipe()
    process = context.Process(target=serve, args=(far, terms))
    process.start()
    site_cpu, up, down = 0.0, 0, 0
    gone = set(names[-dropouts:]) if dropouts else set()
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
    return {
        "sites": count,
        "neighbours": terms.degree,
        "site_s": site_cpu,
        "over_noise": site_cpu / _noise_seconds(),
        "bytes_up": up,
        "bytes_down": down,
        "server_s": server_cpu,
        "server_mib": memory / 1024,
    }


def _noise_seconds() -> float:
    """CPU seconds of making the noise of one site's part."""
    source, nothing, taken = SystemNoise(), np.zeros(SIZE), []
    for _ in range(3):
        began = time.process_time()
        source.add(nothing, 1.0)
        taken.append(time.process_time() - began)
    return median(taken)


def _peak_kb() -> int:
    """Most memory that this program was in (Linux); getrusage would begin with the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


if __name__ == "__main__":
    print(" | ".join(HEAD))
    for asked in sys.argv[1:]:
        print(" | ".join(secure_table([cost(int(asked))])[0]), flush=True)
