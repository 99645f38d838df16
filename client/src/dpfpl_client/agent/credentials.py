"""Signs what leaves the agent with the site's own key, which the SuperNode and its ClientApp never see."""

import dataclasses
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dpfpl_client.agent.endpoint import Agent
from dpfpl_common.errors import StateError
from dpfpl_common.ops.files import fsync_folder
from dpfpl_common.wire.payloads import (
    EvaluateRequest,
    SiteReply,
    SumReply,
    SumRequest,
    TrainRequest,
    kind_of,
    signed_sum_text,
    signed_text,
)

__all__ = ["HEADER", "Credential", "SigningAgent", "load_signing_key", "read_token"]


# The token with which a caller shows the agent that it belongs to the site.


HEADER = "authorization"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


class Credential:
    """The agent's side: knows the token and recognises it.

    Args:
        path: the token file; made with a fresh random token, mode 0600, if it does not exist.
        group: the callers' group, if they are another user; it may read the file (mode 0640), which then lies in a
            folder that gives it this group.

    Raises:
        StateError: TOKEN_FILE, the file is no token or other users can read it.
    """

    def __init__(self, path: Path, group: int | None = None) -> None:
        try:
            if not path.exists():
                _create(path, 0o600 if group is None else 0o640)
            state = path.stat()
        except OSError as error:
            raise _bad(path, f"cannot be made ({error.strerror})") from None
        open_to_others = state.st_mode & 0o077 if group is None else state.st_mode & 0o037 or state.st_gid != group
        if not stat.S_ISREG(state.st_mode) or open_to_others or state.st_uid != os.getuid():
            raise _bad(path, "is not this user's alone" if group is None else "is open to others than its callers")
        token = read_token(path)
        if token is None:
            raise _bad(path, "holds no token")
        self._expected = f"Bearer {token}".encode()

    def matches(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call's metadata carry the token exactly once; compared in constant time."""
        values = [value for key, value in metadata if key == HEADER]
        if len(values) != 1:
            return False
        value = values[0]
        return hmac.compare_digest(value if isinstance(value, bytes) else value.encode(), self._expected)


def read_token(path: Path) -> str | None:
    """The token in the file; None while there is none yet."""
    try:
        with path.open("rb") as file:
            text = file.read(1024).decode("ascii", errors="replace").strip()
    except OSError:
        return None
    return text if _TOKEN.fullmatch(text) else None


def _create(path: Path, mode: int) -> None:
    """Write a fresh token; of two agents that do so at once, one wins and both read the same."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".token-", dir=path.parent)  # mode 0600
    try:
        os.write(descriptor, secrets.token_urlsafe(32).encode() + b"\n")
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        Path(temporary).unlink()
    fsync_folder(path.parent)


def _bad(path: Path, what: str) -> StateError:
    return StateError(
        code="TOKEN_FILE",
        message=f"The token file {path} {what}.",
        advice="Delete it and start the agent again, which makes a new one.",
    )


class SigningAgent:
    """An agent whose every reply carries the site's signature; refusals carry none.

    The signature is computed anew for a stored release, with the same outcome, and with a new key after the site was
    given one.

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
        return dataclasses.replace(reply, signature=self._key.sign(signed_sum_text(request, reply)))

    def _signed(self, request: TrainRequest | EvaluateRequest, reply: SiteReply) -> SiteReply:
        text = signed_text(request.experiment, kind_of(request), reply)
        return dataclasses.replace(reply, signature=self._key.sign(text))


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``agent.key``: PEM, a regular file of this user that nobody else may read (mode 0600).

    Raises:
        StateError: it is missing, readable by others, or no Ed25519 key.
    """
    try:
        state = path.stat()
        content = path.read_bytes()
    except OSError as error:
        raise _bad_signing(path, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077 or state.st_uid != os.getuid():
        raise _bad_signing(path, "is not this user's alone")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_signing(path, "holds no Ed25519 key")
    return key


def _bad_signing(path: Path, what: str) -> StateError:
    return StateError(
        code="SIGNING_KEY",
        message=f"The site's signing key {path} {what}.",
        advice="Take it from the site's kit and give it to the agent's user alone (chmod 600), or ask the operator for "
        "a new kit; site.toml [agent] key says where it is.",
    )
