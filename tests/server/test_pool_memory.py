"""The server pools a thousand sites' rows without a second copy of them all."""

import tracemalloc

import numpy as np

from dpfpl_common.evidence import pool_rows
from dpfpl_server.federation.evidence import Evidence


def test_the_rows_are_in_double_precision_one_site_at_a_time():
    generator = np.random.default_rng(0)
    rows = {f"site-{number:03}": generator.normal(size=(20, 512)).astype("<f4") for number in range(300)}
    expected, weights = pool_rows([rows[name].astype(np.float64) for name in sorted(rows)], 2.0)
    evidence = Evidence(rows=rows)
    tracemalloc.start()
    pool, found = evidence._pool_at(2.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * sum(2 * each.nbytes for each in rows.values())
    assert np.array_equal(pool.rows, expected.rows)
    assert np.array_equal(np.stack(list(found.values())), weights)
