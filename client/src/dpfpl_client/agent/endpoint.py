"""What an agent answers, where it listens, and the token with which a caller shows that it belongs to the site."""

import fcntl
import hmac
import ipaddress
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.ops.files import fsync_folder
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest

__all__ = ["HEADER", "Address", "Agent", "Credential", "SocketFile", "parse_address", "private_host", "read_token"]


# What an agent answers, whether over its RPC or in the same process.


class Agent(Protocol):
    """The data plane of a site agent: the only calls that the operator-pushable side can make."""

    def train(self, request: TrainRequest) -> SiteReply:
        """Take part in a round. Raises RefusedError, with a stable code, where policy or protocol forbids it."""
        ...

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """Report the accuracies of the final prompt, as far as policy lets them out."""
        ...

    def add_up(self, request: SumRequest) -> SumReply:
        """Take one step of a secure sum."""
        ...


# Where an agent listens: a unix socket, or a host and port that strangers cannot reach.


_MAX_SOCKET_PATH = 100
"""Bytes of a unix socket's path; Linux allows 107, macOS 103."""
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")


@dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
        path: the unix socket, or None.
        host: name or IP number otherwise.
        port: 0 lets the system choose.
    """

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """As gRPC writes it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``unix:/absolute/path`` or ``host:port``; an IPv6 number stands in brackets."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or "\0" in text or len(str(path).encode()) > _MAX_SOCKET_PATH:
            raise _bad(text, f"unix: and an absolute path of at most {_MAX_SOCKET_PATH} bytes")
        return Address(path=path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise _bad(text, "unix:/path or host:port")
    return Address(host=host, port=int(port))


def private_host(address: Address) -> Address:
    """The address with its host resolved to a number, if only this machine or a private network can reach it.

    Raises:
        ConfigError: BAD_ADDRESS, the host has no address; PUBLIC_ADDRESS, strangers could reach it.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise _bad(address.target, "a host that exists") from None
    numbers = [str(entry[4][0]) for entry in found]
    if not all(_is_private(number) for number in numbers):
        raise ConfigError(
            code="PUBLIC_ADDRESS",
            message=f"The agent's address {address.target} can be reached from outside.",
            advice="Use unix:/path, 127.0.0.1:port or the address of a private network.",
        )
    return Address(host=numbers[0], port=address.port)


def _is_private(number: str) -> bool:
    ip = ipaddress.ip_address(number)
    if ip.is_loopback:
        return True
    return ip.is_private and not (ip.is_unspecified or ip.is_multicast or ip.is_reserved)


def _bad(text: str, expected: str) -> ConfigError:
    return ConfigError(
        code="BAD_ADDRESS",
        message=f"The agent's address is {text[:200]!r}, expected {expected}.",
        advice="Correct the address in site.toml.",
    )


class SocketFile:
    """Holds a socket's path from :meth:`claim` to :meth:`release`.

    A lock on a file beside the socket, which the system drops when its holder dies, tells a dead agent from a live one:
    the holder of the lock may remove what a dead agent left.

    Args:
        path: the socket.
        group: the group of the callers, if they are another user; its folder must then be this user's with exactly that
            group and mode 2750, so that the socket gets the group too.
    """

    def __init__(self, path: Path, group: int | None = None) -> None:
        self._path = path
        self._group = group
        self._lock: int | None = None

    def claim(self) -> None:
        """Make or check the folder, take the lock, remove a dead agent's socket.

        Raises:
            StateError: SOCKET_FOLDER, others may write to or look into the folder; AGENT_ALREADY_RUNNING;
                SOCKET_PATH_OCCUPIED, something that is no socket lies there.
        """
        self._private_folder()
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_stale()
        except BlockingIOError:
            os.close(lock)
            raise self._running() from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def protect(self) -> None:
        """Give the bound socket mode 0600, or 0660 for its callers' group; until then the folder alone guards it."""
        self._path.chmod(0o600 if self._group is None else 0o660)

    def release(self) -> None:
        """Remove the socket and give the path to the next agent."""
        if self._lock is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _private_folder(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = folder.lstat()
        except OSError as error:
            raise StateError(
                code="SOCKET_FOLDER",
                message=f"The folder {folder} of the agent's socket cannot be made ({error.strerror}).",
                advice="Choose another agent address.",
            ) from None
        if self._group is not None:
            if not _is_shared(state, self._group):
                raise StateError(
                    code="SOCKET_FOLDER",
                    message=f"The folder {folder} of the agent's socket is not the one that two users share.",
                    advice="As root: dpfpl-client separate",
                )
        elif not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise StateError(
                code="SOCKET_FOLDER",
                message=f"The folder {folder} of the agent's socket is not this user's alone.",
                advice=f"Choose a folder of its own for the socket, or: chmod 700 {folder}",
            )

    def _remove_stale(self) -> None:
        try:
            state = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(state.st_mode):
            raise StateError(
                code="SOCKET_PATH_OCCUPIED",
                message=f"{self._path} is not a socket.",
                advice="Move it away or choose another agent address.",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                self._path.unlink(missing_ok=True)
                return
            except OSError:
                pass
        raise self._running()

    def _running(self) -> StateError:
        return StateError(
            code="AGENT_ALREADY_RUNNING",
            message=f"Another agent answers at {self._path}.",
            advice="Stop it first, or choose another agent address.",
        )


def _is_shared(state: os.stat_result, group: int) -> bool:
    """Whether a folder is this user's, and may be entered, not written, by exactly this group."""
    mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    return mine and state.st_gid == group and stat.S_IMODE(state.st_mode) == 0o2750


# The token of those who may call: a file that only they can read.


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
            raise _bad_token(path, f"cannot be made ({error.strerror})") from None
        open_to_others = state.st_mode & 0o077 if group is None else state.st_mode & 0o037 or state.st_gid != group
        if not stat.S_ISREG(state.st_mode) or open_to_others or state.st_uid != os.getuid():
            raise _bad_token(
                path, "is not this user's alone" if group is None else "is open to others than its callers"
            )
        token = read_token(path)
        if token is None:
            raise _bad_token(path, "holds no token")
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


def _bad_token(path: Path, what: str) -> StateError:
    return StateError(
        code="TOKEN_FILE",
        message=f"The token file {path} {what}.",
        advice="Delete it and start the agent again, which makes a new one.",
    )
