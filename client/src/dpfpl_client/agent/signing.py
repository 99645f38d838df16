"""Signs what leaves the agent with the site's own key, which the SuperNode and its ClientApp never see."""

import dataclasses
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dpfpl_client.agent.endpoint import Agent
from dpfpl_common.errors import StateError
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest, signed_text

__all__ = ["SigningAgent", "load_signing_key"]


class SigningAgent:
    """An agent whose every reply carries the site's signature; refusals carry none.

    A stored release is signed again, with the same outcome; after the site was given a new key, with that key.

    Args:
        agent: does the work.
        key: the site's Ed25519 key.
    """

    def __init__(self, agent: Agent, key: Ed25519PrivateKey) -> None:
        self._agent = agent
        self._key = key

    def train(self, request: TrainRequest) -> SiteReply:
        """See ``Agent``."""
        return self._signed(request, self._agent.train(request))

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """See ``Agent``."""
        return self._signed(request, self._agent.evaluate(request))

    def add_up(self, request: SumRequest) -> SumReply:
        """See ``Agent``."""
        reply = self._agent.add_up(request)
        return dataclasses.replace(reply, signature=self._key.sign(signed_text(request, reply)))

    def _signed(self, request: TrainRequest | EvaluateRequest, reply: SiteReply) -> SiteReply:
        return dataclasses.replace(reply, signature=self._key.sign(signed_text(request, reply)))


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``agent.key``: PEM, a regular file of this user that nobody else may read (mode 0600).

    Raises:
        StateError: it is missing, readable by others, or no Ed25519 key.
    """
    try:
        state = path.stat()
        content = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077 or state.st_uid != os.getuid():
        raise _bad(path, "is not this user's alone")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad(path, "holds no Ed25519 key")
    return key


def _bad(path: Path, what: str) -> StateError:
    return StateError(
        code="SIGNING_KEY",
        message=f"The site's signing key {path} {what}.",
        advice="Give it to the agent's user alone (chmod 600); site.toml [agent] says where it is. If it is lost, make "
        "new keys with dpfpl-client enroll --force, or ask the operator for a new kit if the old one brought it.",
    )
