"""The ClientApp: hands each of the server's messages to the site's agent and the agent's answer back, both as bytes.

Flower starts a process per message and the operator decides what runs in it, so nothing of the site's is in here: no
data, no model, no policy, no torch. It reads the envelope alone (``dpfpl_common.wire.codec``); the agent checks all
that is in it. Where there is no answer, a refusal goes back instead; an exception would travel to the server with its
text.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import logging  # noqa: E402  after the switch
import secrets  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

from flwr.app import ConfigRecord, Context, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from dpfpl_client.agent.channel import AgentChannel  # noqa: E402
from dpfpl_common.errors import ConfigError, DpfplError, RefusedError  # noqa: E402
from dpfpl_common.wire.codec import (  # noqa: E402
    KINDS,
    RECORD,
    encode_refusal,
    read_request,
    reply_record,
)
from dpfpl_common.wire.payloads import Refusal, internal_refusal, refusal_of  # noqa: E402

__all__ = ["app"]

app = ClientApp()

_LOG = logging.getLogger(__name__)
_MARGIN = 0.95
"""Share of the deadline that the agent gets; the rest is for the way back."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a train message."""
    return _answer(message, context, KINDS["train"])


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an evaluate message."""
    return _answer(message, context, KINDS["evaluate"])


@app.query()
def add_up(message: Message, context: Context) -> Message:
    """Answer a step of a secure sum; what it says only the agents can read."""
    return _answer(message, context, KINDS["query"])


def _answer(message: Message, context: Context, method: str) -> Message:
    try:
        request = read_request(message.content)
        with _channel(context, _MARGIN * request.deadline_s) as agent:
            answer = agent.forward(method, request.message)
    except DpfplError as error:
        answer = _refused(refusal_of(error))
    except Exception as error:  # noqa: BLE001  Flower would send its text to the server
        incident = secrets.token_hex(8)
        _LOG.error("incident %s: %s at %s", incident, type(error).__name__, _place(error))
        answer = _refused(internal_refusal(incident))
    return Message(RecordDict({RECORD: ConfigRecord(reply_record(answer))}), reply_to=message)


def _refused(refusal: Refusal) -> bytes:
    data: bytes = encode_refusal(refusal).SerializeToString(deterministic=True)
    return data


def _channel(context: Context, deadline_s: float) -> AgentChannel:
    """The way to the agent, as the site set it up when it started its SuperNode."""
    settings = [context.node_config.get(key) for key in ("agent-address", "agent-token-file")]
    if not all(isinstance(value, str) and value for value in settings):
        raise RefusedError(
            code="NODE_CONFIG",
            message="The site's SuperNode lacks agent-address or agent-token-file.",
            advice="At the site: start it with dpfpl-client start.",
        )
    try:
        return AgentChannel(str(settings[0]), Path(str(settings[1])), deadline_s)
    except ConfigError as error:
        raise RefusedError(code="NODE_CONFIG", message=f"The agent's address is wrong ({error.code}).") from None


def _place(error: BaseException) -> str:
    """File and line of the error in our own code; never its text."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
