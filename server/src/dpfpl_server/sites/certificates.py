"""How long the federation's certificates still last, and a new server certificate under the same authority."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dpfpl_common.errors import DeploymentError
from dpfpl_common.secure.enrolment import public_line
from dpfpl_server.sites.kits import write_private, write_public

__all__ = [
    "WARN_DAYS",
    "Expiry",
    "Issued",
    "certificate_covers",
    "expiries",
    "expiry_warnings",
    "load_authority",
    "matching",
    "new_agent_key",
    "new_authority",
    "new_node_key",
    "new_server_certificate",
    "renew_server_certificate",
    "require_key",
]


# The federation's own certificate authority, the server's TLS certificate and the sites' keys.
#
# Keys are elliptic curve P-384 (TLS 1.3 accepts it, and Flower wants a NIST curve for node keys), but those of the
# agents are Ed25519: their signatures have to be deterministic.
# Flower's formats: node keys are OpenSSH (private and public), everything for TLS is PEM.


AUTHORITY_YEARS = 10
SERVER_DAYS = 825  # the longest that common TLS clients accept
_CLOCK_SKEW = timedelta(hours=1)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Issued:
    """A private key and what the world may see of it, both as file content."""

    private: bytes
    public: bytes


def new_authority(name: str = "DP-FPL federation") -> Issued:
    """Create a certificate authority that may sign server certificates and nothing below it."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _unsigned(subject, subject, key.public_key(), timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Issued(_pem_key(key), certificate.public_bytes(serialization.Encoding.PEM))


def new_server_certificate(authority: Issued, addresses: Iterable[str]) -> Issued:
    """Create the server's key and a certificate for these host names and IP addresses, and for loopback."""
    ca_key = serialization.load_pem_private_key(authority.private, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not an elliptic curve key")
    ca = x509.load_pem_x509_certificate(authority.public)
    hosts = list(dict.fromkeys([*addresses, *_LOOPBACK]))
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DP-FPL server")])
    certificate = (
        _unsigned(subject, ca.subject, key.public_key(), timedelta(days=SERVER_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    return Issued(_pem_key(key), certificate.public_bytes(serialization.Encoding.PEM))


def new_node_key() -> Issued:
    """Create a key pair with which a site's SuperNode proves who it is, in Flower's OpenSSH format."""
    key = ec.generate_private_key(ec.SECP384R1())
    return Issued(_pem_key(key, serialization.PrivateFormat.OpenSSH), f"{public_line(key.public_key())}\n".encode())


def new_agent_key() -> Issued:
    """Create a key pair with which a site's agent signs its replies: the private key PEM, the public one OpenSSH."""
    key = ed25519.Ed25519PrivateKey.generate()
    return Issued(_pem_key(key), f"{public_line(key.public_key())}\n".encode())


def certificate_covers(certificate: bytes, addresses: Iterable[str]) -> bool:
    """Tell whether a PEM certificate is valid now and names every one of these addresses."""
    loaded = x509.load_pem_x509_certificate(certificate)
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return loaded.not_valid_after_utc > datetime.now(UTC) and all(_general_name(a) in names for a in addresses)


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem_key(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


WARN_DAYS = 30
"""From this many days before a certificate's end on, everything that looks at it says so."""

_NAMES = {"ca.crt": "the federation's authority", "server.crt": "the server's certificate"}
_RENEW = {
    "ca.crt": "Provision a new federation in time: every site needs a new kit then.",
    "server.crt": "Run dpfpl-server renew and restart the server; the sites notice nothing.",
}


@dataclass(frozen=True)
class Expiry:
    """When one certificate ends; ``file`` is its name in the server's folder."""

    file: str
    not_before: datetime
    not_after: datetime

    def days_left(self, now: datetime) -> float:
        """Days until it ends; negative afterwards."""
        return (self.not_after - now).total_seconds() / 86400.0


def expiries(folder: Path) -> list[Expiry]:
    """The ends of the authority's and of the server's certificate, as far as the files are there and readable."""
    found = []
    for name in _NAMES:
        try:
            certificate = x509.load_pem_x509_certificate((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        found.append(Expiry(name, certificate.not_valid_before_utc, certificate.not_valid_after_utc))
    return found


def expiry_warnings(folder: Path) -> list[str]:
    """One sentence for each certificate that has ended, has not begun or ends within :data:`WARN_DAYS` days."""
    said, moment = [], datetime.now(UTC)
    for expiry in expiries(folder):
        what, left = _NAMES[expiry.file], expiry.days_left(moment)
        if expiry.not_before > moment:
            said.append(f"{expiry.file}: {what} is not valid before {expiry.not_before:%Y-%m-%d %H:%M} UTC.")
        elif left <= 0:
            said.append(f"{expiry.file}: {what} ended on {expiry.not_after:%Y-%m-%d}. {_RENEW[expiry.file]}")
        elif left < WARN_DAYS:
            said.append(f"{expiry.file}: {what} ends in {int(left)} days. {_RENEW[expiry.file]}")
    return said


def matching(key: bytes, certificate: bytes) -> bool:
    """Whether a private key, PEM, belongs to a certificate."""
    loaded = serialization.load_pem_private_key(key, password=None)
    return loaded.public_key() == x509.load_pem_x509_certificate(certificate).public_key()


def load_authority(folder: Path, ca_key: Path | None = None) -> Issued | None:
    """The authority of a server's folder; its private part is empty where the key is kept elsewhere.

    Args:
        folder: the server's folder.
        ca_key: the authority's key where it is kept offline, on a stick for instance.

    Returns:
        None if there is no authority yet.

    Raises:
        DeploymentError: the certificate is missing beside its key, or the key belongs to another one.
    """
    key, certificate = ca_key or folder / "ca.key", folder / "ca.crt"
    if not certificate.exists():
        if not key.exists():
            return None
        raise DeploymentError(
            code="AUTHORITY_INCOMPLETE",
            message=f"{folder} has no ca.crt to {key}.",
            advice="Restore it from a backup, or provision into a new, empty folder.",
        )
    public = certificate.read_bytes()
    if not key.exists():
        if ca_key is None:
            return Issued(b"", public)
        raise DeploymentError(code="AUTHORITY_KEY", message=f"{ca_key} does not exist.", advice="Check the path.")
    private = key.read_bytes()
    try:
        fits = matching(private, public)
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise DeploymentError(
            code="AUTHORITY_KEY",
            message=f"{key} is not the key of {certificate}.",
            advice="Give the key that was made together with this authority.",
        )
    return Issued(private, public)


def renew_server_certificate(folder: Path, ca_key: Path | None = None) -> Expiry:
    """Issue a new server certificate for the same names, under the same authority; sites keep their kits.

    Raises:
        DeploymentError: nothing is provisioned, or the authority's key is not here.
    """
    authority = load_authority(folder, ca_key)
    old = folder / "server.crt"
    if authority is None or not old.exists():
        raise DeploymentError(
            code="NOT_PROVISIONED",
            message=f"{folder} has no {'authority' if authority is None else 'server.crt'}.",
            advice="Run dpfpl-server provision first.",
        )
    require_key(authority, folder)
    names = x509.load_pem_x509_certificate(old.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    hosts = [
        str(name.value)
        for name in names.value
        if isinstance(name.value, str | ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    issued = new_server_certificate(authority, hosts)
    write_private(folder / "server.key", issued.private)
    write_public(old, issued.public)
    return next(expiry for expiry in expiries(folder) if expiry.file == "server.crt")


def require_key(authority: Issued, folder: Path) -> None:
    """Refuse to issue without the authority's key.

    Raises:
        DeploymentError: AUTHORITY_OFFLINE.
    """
    if not authority.private:
        raise DeploymentError(
            code="AUTHORITY_OFFLINE",
            message=f"A certificate is to be issued, and {folder} has no ca.key.",
            advice="Say where the authority's key is kept: --ca-key PATH.",
        )
