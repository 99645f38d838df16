"""What one secure sum costs: ``python -m research.speed.secure_cost``. CPU seconds of a site and of the server, bytes.

The sum is of 100 classes of 512 numbers; the noise, which every trust needs, is not counted.
"""

import sys
import time

import numpy as np

from dpfpl_common.secure import STEPS
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import SiteSum
from dpfpl_common.secure.terms import Terms

SIZE = 100 * 512


def cost(count: int) -> str:
    """One row of the table; a tenth of the sites is gone before the last step."""
    dropouts = count // 10
    names = tuple(f"site-{number:04}" for number in range(count))
    terms = Terms("0" * 64, "rows", 1, names, dropouts, 1)
    values = np.arange(SIZE)
    sites = {name: SiteSum(terms, name) for name in names}
    server, site_cpu, up, down, server_cpu = ServerSum(terms), 0.0, 0, 0, 0.0
    gone = set(names[-dropouts:]) if dropouts else set()
    for step in STEPS:
        began = time.process_time()
        requests = server.requests()
        server_cpu += time.process_time() - began
        for name, request in requests.items():
            if step == "masked" and name in gone:
                continue
            began = time.process_time()
            reply = sites[name].answer(step, request, values)
            if name == names[0]:
                site_cpu += time.process_time() - began
                up, down = up + len(reply), down + len(request)
            began = time.process_time()
            server.take(name, reply)
            server_cpu += time.process_time() - began
        server.close()
    began = time.process_time()
    total = server.total()
    server_cpu += time.process_time() - began
    assert np.array_equal(total, values * (count - dropouts))
    return f"| {count} | {terms.degree} | {site_cpu:.3f} | {up} | {down} | {server_cpu:.2f} |"


if __name__ == "__main__":
    print("| sites | neighbours | site, CPU s | site, bytes up | site, bytes down | server, CPU s |")
    print("|---|---|---|---|---|---|")
    for asked in sys.argv[1:] or ("10", "30", "100"):
        print(cost(int(asked)), flush=True)
