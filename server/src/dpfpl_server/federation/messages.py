"""The server's side of the wire: requests as the content of Flower's messages, what came back, and who signed it."""

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import ConfigRecord, Message, RecordDict

from dpfpl_common.errors import ConfigError, PayloadError
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import RECORD, read_reply, request_record
from dpfpl_common.wire.payloads import (
    AnyRequest,
    EvaluateRequest,
    Refusal,
    SiteReply,
    SumReply,
    TrainRequest,
    signed_text,
)

__all__ = ["SignatureCheck", "content_bytes", "message_bytes", "reply_in", "request_content", "sum_reply_in"]


def request_content(request: AnyRequest) -> RecordDict:
    """The content of the message that carries a request, checked as the site will.

    Raises:
        PayloadError: it would be refused there.
    """
    data = wire.encode_request(request).SerializeToString(deterministic=True)
    return RecordDict({RECORD: ConfigRecord(request_record(data, request.experiment.rounds.deadline))})


def reply_in(content: RecordDict, request: TrainRequest | EvaluateRequest) -> SiteReply | Refusal:
    """What a site answered to ``request``.

    Raises:
        PayloadError: with one of ``codec.CODES``, if anything is wrong.
    """
    return wire.decode_reply(wire.parse(agent_pb2.Reply, read_reply(content)), request)


def sum_reply_in(content: RecordDict) -> SumReply | Refusal:
    """What a site answered to a step of a secure sum; raises as ``reply_in``."""
    return wire.decode_sum_reply(wire.parse(agent_pb2.Reply, read_reply(content)))


def message_bytes(message: Message) -> int:
    """Bytes of the message of ours that one of Flower's carries; what Flower adds is not counted."""
    return 0 if message.has_error() else content_bytes(message.content)


def content_bytes(content: RecordDict) -> int:
    """The same of a message's content."""
    return sum(len(value) for record in content.values() for value in record.values() if isinstance(value, bytes))


class SignatureCheck:
    """Knows the public signing key of every site of an experiment.

    Args:
        keys: one OpenSSH line (``ssh-ed25519 ...``) by site name, as in the server's register.

    Raises:
        ConfigError: a line is no Ed25519 key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {site: _public_key(site, line) for site, line in keys.items()}

    def __call__(self, request: AnyRequest, reply: SiteReply | SumReply, site: str) -> None:
        """Let a reply pass that ``site`` signed as its answer to ``request``.

        Raises:
            PayloadError: SIGNATURE_MISSING or SIGNATURE_WRONG.
        """
        key = self._keys.get(site)
        if not reply.signature or key is None:
            raise PayloadError(code="SIGNATURE_MISSING", message="The reply is not signed by the site's agent.")
        try:
            key.verify(reply.signature, signed_text(request, reply))
        except InvalidSignature:
            raise PayloadError(
                code="SIGNATURE_WRONG", message="The signature is not the site's own, or not of this reply."
            ) from None


def _public_key(site: str, line: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            code="NO_SIGNING_KEY",
            message=f"The register holds no signing key of the site {site!r}.",
            advice=f"Give the site a new kit: dpfpl-server provision --site {site} --force.",
        )
    return key
