"""Where an agent listens: a unix socket, or a host and port that strangers cannot reach."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from dpfpl_common.errors import ConfigError

__all__ = ["Address", "parse_address", "private_host"]

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


def private_host(address: Address, allow_any: bool) -> Address:
    """The address with its host resolved to a number, if only this machine or a private network can reach it.

    Args:
        address: of kind host and port.
        allow_any: let other addresses pass, for a container whose network is private although its address is not.

    Raises:
        ConfigError: BAD_ADDRESS, the host has no address; PUBLIC_ADDRESS, strangers could reach it.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise _bad(address.target, "a host that exists") from None
    numbers = [str(entry[4][0]) for entry in found]
    if not allow_any and not all(_is_private(number) for number in numbers):
        raise ConfigError(
            code="PUBLIC_ADDRESS",
            message=f"The agent's address {address.target} can be reached from outside.",
            advice="Use unix:/path, 127.0.0.1:port or the address of a private network; inside a container network "
            "that no one else can reach, allow any address explicitly.",
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
