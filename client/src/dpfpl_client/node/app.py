"""The ClientApp: hands each of the server's messages to the site's agent and the agent's answer back.

Flower starts a process per message and the operator decides what runs in it, so nothing of the site's is in here: no
data, no model, no policy, no torch. Whatever goes wrong becomes a reply with status "refused", whose code and advice
the strategy sees; an exception would travel to the server with its text.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import logging  # noqa: E402  after the switch
import secrets  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TypeVar  # noqa: E402

from flwr.app import Context, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from dpfpl_client.agent.channel import AgentChannel  # noqa: E402
from dpfpl_client.agent.endpoint import Agent  # noqa: E402
from dpfpl_client.node.records import (  # noqa: E402
    decode_evaluate_request,
    decode_sum_request,
    decode_train_request,
    encode_refusal,
    encode_reply,
    encode_sum_reply,
)
from dpfpl_common.errors import ConfigError, DpfplError, RefusedError  # noqa: E402
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest  # noqa: E402
from dpfpl_common.wire.refusal import internal_refusal, refusal_of  # noqa: E402

__all__ = ["app"]

app = ClientApp()

_LOG = logging.getLogger(__name__)
_MARGIN = 0.95
"""Share of the round's deadline that the agent gets; the rest is for the way back."""

R = TypeVar("R", TrainRequest, EvaluateRequest, SumRequest)
A = TypeVar("A", SiteReply, SumReply)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a train message."""
    return _answer(message, context, decode_train_request, lambda agent, request: agent.train(request), encode_reply)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an evaluate message."""
    return _answer(
        message, context, decode_evaluate_request, lambda agent, request: agent.evaluate(request), encode_reply
    )


@app.query()
def add_up(message: Message, context: Context) -> Message:
    """Answer a step of a secure sum; what it says only the agents can read."""
    return _answer(
        message,
        context,
        decode_sum_request,
        lambda agent, request: agent.add_up(request),
        lambda reply, _request: encode_sum_reply(reply),
    )


def _answer(
    message: Message,
    context: Context,
    decode: Callable[[RecordDict], R],
    act: Callable[[Agent, R], A],
    encode: Callable[[A, R], RecordDict],
) -> Message:
    site = str(context.node_config.get("site-name", ""))
    round_number = 0
    try:
        request = decode(message.content)
        round_number = request.round
        with _channel(context, _MARGIN * request.experiment.rounds.deadline) as agent:
            reply = act(agent, request)
        if reply.site != site:
            raise RefusedError(
                code="SITE_MISMATCH",
                message="The agent that answered belongs to another site.",
                advice="At the site: check the agent's address and the names in site.toml.",
            )
        content = encode(reply, request)
    except DpfplError as error:
        content = encode_refusal(refusal_of(error), site, round_number)
    except Exception as error:  # noqa: BLE001  Flower would send its text to the server
        incident = secrets.token_hex(8)
        _LOG.error("incident %s: %s at %s", incident, type(error).__name__, _place(error))
        content = encode_refusal(internal_refusal(incident), site, round_number)
    return Message(content, reply_to=message)


def _channel(context: Context, deadline_s: float) -> AgentChannel:
    """The way to the agent, as the site set it up when it started its SuperNode."""
    settings = [context.node_config.get(key) for key in ("agent-address", "agent-token-file", "site-name")]
    if not all(isinstance(value, str) and value for value in settings):
        raise RefusedError(
            code="NODE_CONFIG",
            message="The site's SuperNode lacks agent-address, agent-token-file or site-name.",
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
