"""How long the federation's certificates still last, and a new server certificate under the same authority."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from dpfpl_common.errors import DeploymentError
from dpfpl_server.certificates import Issued, new_server_certificate
from dpfpl_server.kits import write_private, write_public

__all__ = [
    "WARN_DAYS",
    "Expiry",
    "expiries",
    "expiry_warnings",
    "load_authority",
    "matching",
    "renew_server_certificate",
    "require_key",
]

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


def expiry_warnings(folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> list[str]:
    """One sentence for each certificate that has ended, has not begun or ends within :data:`WARN_DAYS` days."""
    said, moment = [], now()
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
    """Issue the server's certificate anew, for the same names, under the same authority; sites keep their kits.

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
