"""The server's side of the wire: requests as the sites read them, and what came back."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from server_samples import metadata
from wire_samples import CONTEXT, EXPERIMENT, content_of, reply_content

from dpfpl_client.agent.service import answer
from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import RoundSettings
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import MAX_MESSAGE_BYTES, read_request
from dpfpl_common.wire.payloads import EvaluateRequest, Refusal, SiteReply, SumReply, SumRequest, TrainRequest
from dpfpl_server.federation.messages import content_bytes, message_bytes, reply_in, request_content, sum_reply_in

TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT, evaluate=False)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)
SECURE = dataclasses.replace(
    EXPERIMENT,
    sites=("east", "north", "south"),
    privacy=dataclasses.replace(EXPERIMENT.privacy, mechanism="one_shot", trust="secure"),
)
SUM = SumRequest(SECURE, "rows", 1, "keys", b"hello")


class Agent:
    """Remembers what it was asked."""

    def train(self, request):
        self.asked = request
        return SiteReply(
            "north", request.round, 2 * request.global_context, {"global_local": 0.5}, (), bytes(range(64))
        )

    def evaluate(self, request):
        self.asked = request
        return SiteReply("south", request.round, None, {})

    def add_up(self, request):
        self.asked = request
        return SumReply("north", b"keys", bytes(64))


def asked(method, request):
    """What an agent was asked, and its answer as a Flower message carries it."""
    agent = Agent()
    told = answer(agent, method, read_request(request_content(request)).message)
    return agent.asked, content_of(agent_pb2.Reply.FromString(told))


def test_a_request_reaches_the_agent_and_its_answer_the_server():
    request, content = asked("Train", TRAIN)
    assert (request.experiment, request.round, request.evaluate) == (EXPERIMENT, 3, False)
    np.testing.assert_array_equal(request.global_context, CONTEXT)
    reply = reply_in(content, TRAIN)
    assert (reply.site, reply.round, reply.metrics, reply.scores) == ("north", 3, {"global_local": 0.5}, ())
    assert reply.signature == bytes(range(64))
    np.testing.assert_array_equal(reply.update, 2 * CONTEXT)

    request, content = asked("Evaluate", EVALUATE)
    assert (request.experiment, request.round) == (EXPERIMENT, 10)
    assert reply_in(content, EVALUATE) == SiteReply("south", 10, None, {})

    request, content = asked("AddUp", SUM)
    assert (request.experiment, request.sum, request.step, request.content) == (SECURE, "rows", "keys", b"hello")
    assert sum_reply_in(content) == SumReply("north", b"keys", bytes(64))


def test_the_site_has_the_rounds_deadline():
    slow = dataclasses.replace(EXPERIMENT, rounds=RoundSettings(deadline=7.0))
    assert read_request(request_content(TrainRequest(slow, 3, CONTEXT))).deadline_s == 7.0


def test_a_refusal_is_no_error():
    refusal = Refusal("CAP", "max_rounds", "The cap is 2 (rule max_rounds).", "Wait.")
    assert reply_in(content_of(wire.encode_refusal(refusal)), TRAIN) == refusal
    assert sum_reply_in(content_of(wire.encode_refusal(refusal))) == refusal
    answer_of_a_step = content_of(wire.encode_sum_reply(SumReply("north", b"", b"")))
    with pytest.raises(PayloadError, match="MISSING_FIELD"):
        reply_in(answer_of_a_step, TRAIN)
    with pytest.raises(PayloadError, match="MISSING_FIELD"):
        sum_reply_in(reply_content(SiteReply("north", 3, CONTEXT, {}), TRAIN))


def test_an_answer_that_no_message_holds_is_a_refusal_of_its_own():
    class Large(Agent):
        def add_up(self, request):
            return SumReply("north", bytes(MAX_MESSAGE_BYTES), bytes(64))

    told = answer(Large(), "AddUp", read_request(request_content(SUM)).message)
    assert sum_reply_in(content_of(agent_pb2.Reply.FromString(told))).code == "MESSAGE_TOO_LARGE"


def test_bytes_are_those_of_our_own_message():
    content = request_content(TRAIN)
    sent = read_request(content).message
    question = Message(content, metadata=metadata())
    assert content_bytes(content) == message_bytes(question) == len(sent) > CONTEXT.nbytes
    assert message_bytes(Message(Error(code=1), reply_to=question)) == 0
    assert content_bytes(RecordDict()) == 0


def test_the_largest_class_sums_fit_the_message():
    names = tuple(f"class {number}" for number in range(1000))
    experiment = dataclasses.replace(
        EXPERIMENT, classes=names, privacy=dataclasses.replace(EXPERIMENT.privacy, mechanism="one_shot", trust="local")
    )
    request = TrainRequest(experiment, 1, CONTEXT, collect=True)
    reply = SiteReply("north", 1, CONTEXT, {}, (), bytes(64), np.ones((1000, 1500), "<f4"))
    assert 6_000_000 < content_bytes(reply_content(reply, request)) < MAX_MESSAGE_BYTES
    assert reply_in(reply_content(reply, request), request).evidence.shape == (1000, 1500)
