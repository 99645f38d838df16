"""Look at the server's TLS from this site, and say in plain words why it does not serve."""

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dpfpl_common.errors import ConfigError, DeploymentError

__all__ = ["ServerSeen", "authority_end", "host_and_port", "probe_server"]

_EXPIRED, _NOT_YET = 10, 9  # OpenSSL's X509_V_ERR_*
_NAMES = (62, 64)
_UNTRUSTED_ADVICE = (
    "Check the address in site.toml, and ask the operator whether this kit is the current one. A proxy in between must "
    "pass TLS through, not end it."
)


@dataclass(frozen=True)
class ServerSeen:
    """What a trusted server showed."""

    certificate_end: datetime
    tls_version: str


def host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of ``host:port`` or ``[v6]:port``; None if it is neither."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return None
    return host, int(port)


def probe_server(address: str, ca_certificate: Path) -> ServerSeen:
    """Open a TLS connection as the SuperNode would, and close it; nothing is sent.

    Raises:
        DeploymentError: ADDRESS_UNKNOWN, PORT_CLOSED, SERVER_UNREACHABLE, SERVER_SILENT, WRONG_SERVICE,
            CERTIFICATE_EXPIRED, CERTIFICATE_NOT_YET_VALID, CERTIFICATE_NAME or SERVER_NOT_TRUSTED.
        ConfigError: the address is no address.
    """
    host, port = host_and_port(address) or ("", 0)
    if port == 0:
        raise ConfigError(
            code="ADDRESS",
            message=f"site.toml [server] address is {address!r}.",
            advice="Write it like fl.example.org:9092; the operator's kit has it.",
        )
    context = _context(ca_certificate)
    try:
        with socket.create_connection((host, port), timeout=5.0) as plain:
            return _shake_hands(context, plain, host, address)
    except socket.gaierror as error:
        raise DeploymentError(
            code="ADDRESS_UNKNOWN",
            message=f"The name {host!r} cannot be resolved ({error.strerror}).",
            advice="Check the address in site.toml and this machine's name server.",
        ) from None
    except ConnectionRefusedError:
        raise DeploymentError(
            code="PORT_CLOSED",
            message=f"{address} refuses the connection: no program listens there, or a firewall says no.",
            advice="Ask the operator whether dpfpl-server start runs, and whether this is its port.",
        ) from None
    except OSError as error:
        raise DeploymentError(
            code="SERVER_UNREACHABLE",
            message=f"{address} cannot be reached ({error.strerror or error or 'no answer'}).",
            advice="Check this machine's network, and that firewalls let it out to this address and port.",
        ) from None


def authority_end(ca_certificate: Path) -> datetime:
    """When the federation's authority ends.

    Raises:
        DeploymentError: the file holds no certificate authority.
    """
    found = _context(ca_certificate).get_ca_certs()
    return min(_moment(str(certificate["notAfter"])) for certificate in found)


def _context(ca_certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cafile=ca_certificate)
    except (OSError, ssl.SSLError) as error:
        raise DeploymentError(
            code="CA_UNREADABLE",
            message=f"{ca_certificate} holds no readable certificate ({error.strerror or 'wrong content'}).",
            advice="Take ca.crt from the kit again, or ask the operator for a new kit.",
        ) from None
    if not context.get_ca_certs():
        raise DeploymentError(
            code="CA_UNREADABLE",
            message=f"{ca_certificate} holds no certificate authority.",
            advice="Take ca.crt from the kit again, or ask the operator for a new kit.",
        )
    return context


def _shake_hands(context: ssl.SSLContext, plain: socket.socket, host: str, address: str) -> ServerSeen:
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            certificate, chosen, version = secure.getpeercert(), secure.selected_alpn_protocol(), secure.version()
    except ssl.SSLCertVerificationError as error:
        raise _distrust(error, address) from None
    except TimeoutError:
        raise DeploymentError(
            code="SERVER_SILENT",
            message=f"{address} accepts the connection but sends nothing.",
            advice="Another program may listen there, or a firewall drops unknown traffic: ask the operator.",
        ) from None
    except (ssl.SSLError, ConnectionError):
        raise _wrong_service(address, "does not speak TLS") from None
    if chosen != "h2":
        raise _wrong_service(address, "speaks TLS, but not gRPC")
    assert certificate is not None
    return ServerSeen(_moment(str(certificate["notAfter"])), version or "")


def _distrust(error: ssl.SSLCertVerificationError, address: str) -> DeploymentError:
    if error.verify_code == _EXPIRED:
        return DeploymentError(
            code="CERTIFICATE_EXPIRED",
            message=f"The certificate of {address} has expired.",
            advice="The operator renews it (dpfpl-server renew, then a restart). If only you see it, check your clock.",
        )
    if error.verify_code == _NOT_YET:
        return DeploymentError(
            code="CERTIFICATE_NOT_YET_VALID",
            message=f"The certificate of {address} is not valid yet.",
            advice="This machine's clock is probably behind: set it by NTP.",
        )
    if error.verify_code in _NAMES:
        return DeploymentError(
            code="CERTIFICATE_NAME",
            message=f"The server's certificate is not for the address in {address}.",
            advice="Use the address that the operator provisioned, or let the operator add this one: "
            "dpfpl-server provision --address, then a restart.",
        )
    return DeploymentError(
        code="SERVER_NOT_TRUSTED",
        message=f"The certificate of {address} was not issued by the authority in this site's ca.crt.",
        advice=_UNTRUSTED_ADVICE,
    )


def _wrong_service(address: str, what: str) -> DeploymentError:
    return DeploymentError(
        code="WRONG_SERVICE",
        message=f"What listens at {address} {what}: it is not this federation's server.",
        advice="Check the port in site.toml; the sites' port is 9092 unless the operator chose another. A server of "
        "Flower 1.40 or later would look like this too: both sides need 1.39.",
    )


def _moment(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)
