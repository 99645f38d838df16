"""The federation's own certificate authority, the server's TLS certificate and the sites' keys.

Keys are elliptic curve P-384 (TLS 1.3 accepts it, and Flower wants a NIST curve for node keys), but those of the
agents are Ed25519: their signatures have to be deterministic.
Flower's formats: node keys are OpenSSH (private and public), everything for TLS is PEM.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "Issued",
    "certificate_covers",
    "fingerprint",
    "new_agent_key",
    "new_authority",
    "new_node_key",
    "new_server_certificate",
]

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
    return Issued(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n",
    )


def new_agent_key() -> Issued:
    """Create a key pair with which a site's agent signs its replies: the private key PEM, the public one OpenSSH."""
    key = ed25519.Ed25519PrivateKey.generate()
    return Issued(
        _pem_key(key),
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n",
    )


def certificate_covers(certificate: bytes, addresses: Iterable[str]) -> bool:
    """Tell whether a PEM certificate is valid now and names every one of these addresses."""
    loaded = x509.load_pem_x509_certificate(certificate)
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return loaded.not_valid_after_utc > datetime.now(UTC) and all(_general_name(a) in names for a in addresses)


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 fingerprint of a PEM certificate, to be compared by telephone."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex(":")


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


def _pem_key(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
