"""What one secure sum costs: ``python -m research.speed.secure_cost``. CPU seconds of a site and of the server, bytes,
and how much memory the server takes beyond that of its program.

The sum is of 100 classes of 512 numbers; the noise, which every trust needs, is not counted. The server is a process of
its own, so that its memory holds no site's; one reply at a time comes to it, as from a network.
"""

import multiprocessing
import re
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from dpfpl_common.secure import STEPS
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import SiteSum
from dpfpl_common.secure.terms import Terms

SIZE = 100 * 512


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


def cost(count: int) -> str:
    """One row of the table; a tenth of the sites is gone before the last step."""
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
    return f"| {count} | {terms.degree} | {site_cpu:.3f} | {up} | {down} | {server_cpu:.2f} | {memory / 1024:.0f} |"


def _peak_kb() -> int:
    """Most memory that this program was in (Linux); getrusage would begin with the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


if __name__ == "__main__":
    print("| sites | neighbours | site, CPU s | site, bytes up | site, bytes down | server, CPU s | server, MB |")
    print("|---|---|---|---|---|---|---|")
    for asked in sys.argv[1:] or ("10", "30", "100", "200"):
        print(cost(int(asked)), flush=True)
