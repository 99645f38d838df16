"""Replies are checked and added up as they come: memory stays what it is, and the order of arrival does not matter."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from server_samples import make_experiment, metadata
from wire_samples import reply_content

from dpfpl_common.evidence import pool_rows
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.evidence import Evidence
from dpfpl_server.federation.replies import Replies

SITES = tuple(f"site-{number:04d}" for number in range(60))
EXPERIMENT = make_experiment(SITES, width=512, clipping_norm=1.0)
REQUEST = TrainRequest(EXPERIMENT, 1, np.zeros(EXPERIMENT.context_shape, "<f4"), evaluate=False)
ASKED = dict.fromkeys((*SITES, "x"), REQUEST)
GRID = 2.0**-20


def update(number):
    """On the grid of released noise."""
    integers = np.random.default_rng(number).integers(-3000, 3000, EXPERIMENT.context_shape)
    return (integers * GRID).astype("<f4")


def message(site):
    reply = SiteReply(site, 1, update(SITES.index(site)), {"personal_local": 0.5})
    return Message(reply_content(reply, REQUEST), reply_to=Message(content=RecordDict(), metadata=metadata()))


def collect(sites):
    replies = Replies(EXPERIMENT, ASKED, 1e3)
    for site in sites:
        replies.take(site, message(site))
    return replies


def test_the_order_of_arrival_changes_no_bit():
    forwards, backwards = collect(SITES), collect(reversed(SITES))
    assert forwards.updates.count == backwards.updates.count == len(SITES)
    assert np.array_equal(forwards.updates.total, backwards.updates.total)
    assert np.array_equal(forwards.updates.total, sum(update(n).astype(float) for n in range(len(SITES))))


def test_R3_nothing_of_a_reply_but_its_numbers_stays():
    """However many sites: a message and its arrays are free as soon as they were added."""
    replies = Replies(EXPERIMENT, ASKED, 1e3)
    gone = []
    for site in SITES:
        incoming = message(site)
        gone.append(weakref.ref(incoming))
        replies.take(site, incoming)
        del incoming
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(SITES)
    assert all(reply.update is None for reply in replies.accepted.values())
    assert replies.bytes > len(SITES) * REQUEST.global_context.nbytes


@pytest.mark.parametrize(("norm_cap", "site", "code"), [(1e-9, SITES[0], "NORM_TOO_LARGE"), (1e3, "x", "OTHER_SITE")])
def test_a_bad_reply_adds_nothing_and_has_its_reason(norm_cap, site, code):
    replies = Replies(EXPERIMENT, ASKED, norm_cap)
    replies.take(site, message(SITES[0]))
    assert str(replies.failures[site]).startswith(code)
    assert (replies.updates.count, replies.accepted) == (0, {})
    assert not replies.updates.total.any()


def test_class_sums_are_in_double_precision_one_site_at_a_time():
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
