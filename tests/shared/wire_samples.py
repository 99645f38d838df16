"""What the tests of both ends of a message share: one small experiment, replies as Flower carries them, a caller."""

import contextlib

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from dpfpl_client.agent.channel import AgentChannel
from dpfpl_common.errors import PayloadError, RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import CODES, RECORD, read_reply, reply_record
from dpfpl_common.wire.payloads import Refusal

SHAPE = (4, 8)
EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=SHAPE[1]),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.5),
)
CONTEXT = np.random.default_rng(0).normal(size=SHAPE).astype("<f4")


@contextlib.contextmanager
def only_documented_errors():
    """Whatever is refused inside is refused with a code that fields.py lists; no error at all is fine, too."""
    try:
        yield
    except PayloadError as error:
        if error.code not in CODES:
            raise AssertionError(f"undocumented code {error.code}") from error


def content_of(message):
    """A ``Reply`` as a Flower message carries it."""
    return RecordDict({RECORD: ConfigRecord(reply_record(message.SerializeToString(deterministic=True)))})


def reply_content(reply, request):
    """A SiteReply as a Flower message carries it."""
    return content_of(wire.encode_reply(reply, request))


def message_in(content):
    """The ``Reply`` that a Flower message carries."""
    return agent_pb2.Reply.FromString(read_reply(content))


def array_of(array):
    """An array as the agent's protocol has it, whatever its type and shape."""
    rows, columns = (*np.shape(array), 1)[:2]
    return agent_pb2.Array(rows=rows, columns=columns, data=array.tobytes())


class Caller(AgentChannel):
    """An agent in another process, asked and understood; a refusal is an error."""

    def train(self, request):
        return self._understood(wire.decode_reply, "Train", wire.encode_request(request), request)

    def evaluate(self, request):
        return self._understood(wire.decode_reply, "Evaluate", wire.encode_request(request), request)

    def add_up(self, request):
        return self._understood(wire.decode_sum_reply, "AddUp", wire.encode_request(request))

    def _understood(self, decode, method, message, *request):
        answer = self.forward(method, message.SerializeToString(deterministic=True))
        outcome = decode(wire.parse(agent_pb2.Reply, answer), *request)
        if isinstance(outcome, Refusal):
            error = RefusedError(code=outcome.code, message=outcome.message, advice=outcome.advice)
            error.rule = outcome.rule
            raise error
        return outcome
