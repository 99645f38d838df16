"""Ask the server's Fleet API about this site's key, clock and version, without changing anything there.

The question is an activation with an impossible heartbeat interval: Flower looks the key up first and refuses the
interval then, so the two refusals tell a known key from an unknown one, and no node comes online.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from dpfpl_common.errors import DeploymentError

__all__ = ["load_node_key", "probe_fleet"]

_WINDOW_S = 300.0
"""How much older than the server's clock a call may claim to be; it may be at most 5 s younger."""
_YOUNGER_S = 5.0
_FAR_S = 86_400.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _Answer:
    """How one question ended: ``known``, ``unknown``, ``clock``, or anything else in gRPC's words."""

    kind: str
    details: str = ""


def probe_fleet(address: str, ca_certificate: Path, node_key: Path) -> None:
    """Return if the server knows this site's key and takes its clock.

    Raises:
        DeploymentError: SITE_UNKNOWN, CLOCK_SKEW, VERSION_MISMATCH, WRONG_SERVICE, NODE_KEY,
            SERVER_UNREACHABLE or FLEET_REFUSED.
    """
    key = load_node_key(node_key)
    credentials = grpc.ssl_channel_credentials(ca_certificate.read_bytes())
    options = [("grpc.max_reconnect_backoff_ms", 1000)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        stub = FleetStub(grpc.intercept_channel(channel, RuntimeVersionClientInterceptor(component_name="SuperNode")))

        def ask(offset_s: float) -> _Answer:
            return _ask(stub, key, offset_s)

        answer = ask(0.0)
        if answer.kind == "clock":
            raise _skewed(_skew(ask))
    if answer.kind == "unknown":
        raise DeploymentError(
            code="SITE_UNKNOWN",
            message="The server does not know this site's node key.",
            advice="It may have been rotated or revoked: ask the operator for a current kit (dpfpl-server sites list).",
        )
    if answer.kind != "known":
        raise _other(answer)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The site's node key, OpenSSH.

    Raises:
        DeploymentError: it cannot be read or is no such key.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(
            code="NODE_KEY",
            message=f"{path} is no readable node key.",
            advice="Take it from the kit again, or ask the operator for new keys (dpfpl-server sites rotate).",
        )
    return key


def _ask(stub: Any, key: ec.EllipticCurvePrivateKey, offset_s: float) -> _Answer:
    """One question, signed for a time that differs from this machine's by ``offset_s``."""
    public = public_key_to_bytes(key.public_key())
    timestamp = (datetime.now(UTC) + timedelta(seconds=offset_s)).isoformat()
    metadata = (
        (PUBLIC_KEY_HEADER, public),
        (TIMESTAMP_HEADER, timestamp),
        (SIGNATURE_HEADER, sign_message(key, timestamp.encode("ascii"))),
    )
    request = ActivateNodeRequest(public_key=public, heartbeat_interval=0.0)
    try:
        stub.ActivateNode(request, timeout=_TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        details = str(error.details() or "")
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return _Answer("service", details)
        if error.code() is grpc.StatusCode.UNAUTHENTICATED and "timestamp" in details:
            return _Answer("clock")
        found = FlowerError.from_json(details)
        code = found.code if found else None
        if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return _Answer("known")
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return _Answer("unknown")
        if code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
            return _Answer("version", found.public_details or "" if found else "")
        return _Answer("other", f"{error.code().name} {details}")
    return _Answer("other", "the server took an impossible request")


def _skew(ask: Callable[[float], _Answer]) -> float | None:
    """Seconds by which the server's clock is ahead of ours, to about a second; None if by more than a day.

    A claimed time is taken from 300 s behind the server's clock to 5 s ahead of it. First a claim that is taken is
    looked for in steps that cannot miss that span, then the edge at +5 s is closed in on.
    """
    steps = int(_FAR_S / _WINDOW_S)
    for step in range(1, steps + 1):
        for offset in (step * _WINDOW_S, -step * _WINDOW_S):
            if ask(offset).kind != "clock":
                taken, refused = offset, offset + _WINDOW_S + 2 * _YOUNGER_S
                while refused - taken > 1.0:
                    middle = (taken + refused) / 2
                    if ask(middle).kind == "clock":
                        refused = middle
                    else:
                        taken = middle
                return taken - _YOUNGER_S
    return None


def _skewed(skew_s: float | None) -> DeploymentError:
    if skew_s is None:
        how = "by more than a day"
    else:
        how = f"by about {abs(skew_s):.0f} s ({'behind' if skew_s > 0 else 'ahead of'} the server's)"
    return DeploymentError(
        code="CLOCK_SKEW",
        message=f"This machine's clock is wrong {how}; the server takes 5 s ahead and 300 s behind.",
        advice="Set both clocks by NTP: timedatectl set-ntp true.",
    )


def _other(answer: _Answer) -> DeploymentError:
    if answer.kind == "service":
        return DeploymentError(
            code="WRONG_SERVICE",
            message="A gRPC server answers, but it has no Fleet API.",
            advice="Check the port in site.toml; the sites' port is 9092 unless the operator chose another.",
        )
    if answer.kind == "version":
        return DeploymentError(
            code="VERSION_MISMATCH",
            message=f"The server runs another release of Flower: {answer.details}",
            advice="Install the release that the operator names on both sides.",
        )
    if answer.details.startswith("UNAVAILABLE"):
        return DeploymentError(
            code="SERVER_UNREACHABLE",
            message=f"The server's Fleet API cannot be reached: {answer.details[:300]}",
            advice="Check the address and port in site.toml, and that both sides run Flower 1.39.",
        )
    return DeploymentError(
        code="FLEET_REFUSED",
        message=f"The server refuses this site: {answer.details[:300]}",
        advice="Ask the operator to look at the server's log.",
    )
