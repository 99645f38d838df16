"""I1: whatever arrives at the RPC gets a documented code, soon; the agent neither ends, nor hangs, nor grows."""

import random
import time
from collections import Counter

import grpc
import pytest
from fuzz_messages import KINDS, anything, variants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpfpl_client.agent.endpoint import read_token
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import CODES, MAX_MESSAGE_BYTES

pytestmark = [pytest.mark.privacy, pytest.mark.processes]

METHODS = ("Train", "Evaluate")
AFTER_READING = {
    "NOT_A_MEMBER",
    "NOISE_NOT_RESOLVED",
    "OTHER_MODEL",
    "WRONG_WIDTH",
    "EXPERIMENT_NOT_APPROVED",
}
"""What a message that could be read may still be told by an agent whose policy approves nothing."""
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
SLOWEST_S = 30.0
"""A hang, on a busy machine too; idle an answer takes milliseconds, which the long run shows."""


def decode(method, data):
    """The code that a message gets from the decoder; empty if it is valid."""
    try:
        wire.decode_request(wire.parse(KINDS[method], data))
    except PayloadError as error:
        return error.code
    return ""


class Target:
    """A live agent that approves nothing, and what it answered."""

    def __init__(self, site):
        self.site = site
        self.pid = site.driver.start(site.state, policy="closed")
        self.connection = grpc.insecure_channel(f"unix:{site.state}/agent.sock")
        self.header = (("authorization", f"Bearer {read_token(site.state / 'agent.token')}"),)
        self.codes, self.slowest = Counter(), 0.0

    def throw(self, method, data):
        began = time.perf_counter()
        call = self.connection.unary_unary(f"/dpfpl.v1.SiteAgent/{method}")
        if len(data) > MAX_MESSAGE_BYTES:  # gRPC itself ends the call, before the message is read
            with pytest.raises(grpc.RpcError) as caught:
                call(data, metadata=self.header, timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            self.codes["RESOURCE_EXHAUSTED"] += 1
            return
        reply = agent_pb2.Reply.FromString(call(data, metadata=self.header, timeout=60))
        self.slowest = max(self.slowest, time.perf_counter() - began)
        assert reply.WhichOneof("outcome") == "refusal"
        assert reply.refusal.code in CODES or reply.refusal.code in AFTER_READING, reply
        self.codes[reply.refusal.code] += 1

    @property
    def rss_mib(self):
        with open(f"/proc/{self.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

    def stop(self):
        self.connection.close()
        self.site.driver.kill(self.pid)

    def throw_many(self, method, count):
        @given(anything(method))
        @settings(max_examples=count, **QUIET)
        def run(data):
            self.throw(method, data)

        run()

    def throw_very_many(self, method, count):
        """Twenty damaged copies of each message on top."""

        @given(anything(method), st.integers(0, 2**32))
        @settings(max_examples=count // 21 + 1, **QUIET)
        def run(data, seed):
            for message in (data, *variants(data, random.Random(seed), 20)):
                self.throw(method, message)

        run()

    def is_untouched(self):
        assert self.site.charges == []
        assert not (self.site.state / "experiments").exists()


@pytest.fixture
def target(site):
    made = Target(site)
    yield made
    made.stop()


@pytest.mark.parametrize("method", METHODS)
def test_I1_any_message_gets_a_documented_code_from_the_decoder(method):
    codes = Counter()

    @given(anything(method))
    @settings(max_examples=700, **QUIET)
    def run(data):
        began = time.thread_time()
        codes[decode(method, data)] += 1
        assert time.thread_time() - began < 1.0

    run()
    assert set(codes) <= {*CODES, ""}
    assert len(codes) > 8, codes  # the messages are not all stopped at the first check


@pytest.mark.parametrize("method", METHODS)
def test_I1_any_message_gets_a_documented_code_from_a_live_agent(target, method):
    target.throw_many(method, 600)
    assert target.slowest < SLOWEST_S
    assert len(target.codes) > 8, target.codes
    target.is_untouched()


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", METHODS)
def test_I1_a_hundred_thousand_messages(target, method, capsys):
    target.throw_many(method, 2_000)  # warm
    before, began = target.rss_mib, time.monotonic()
    for _ in range(5):
        target.throw_very_many(method, 20_200)
    after = target.rss_mib
    with capsys.disabled():
        print(
            f"\n{method}: {sum(target.codes.values())} messages in {time.monotonic() - began:.0f} s, slowest answer "
            f"{1000 * target.slowest:.0f} ms, RSS {before:.1f} MiB before, {after:.1f} after; {dict(target.codes)}"
        )
    assert sum(target.codes.values()) >= 100_000
    assert after - before < 20
    assert target.slowest < 1.0
    target.is_untouched()
