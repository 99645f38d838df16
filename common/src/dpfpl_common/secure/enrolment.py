"""What a site says of the keys that it made itself: public halves under one signature, in a file that may travel.

The aggregation key signs the other two, so one fingerprint, compared by people, vouches for the whole file.
"""

import base64
import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
    ssh_key_fingerprint,
)

from dpfpl_common.config import ImpossibleError, build, settings
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import SiteName

__all__ = ["FINGERPRINT", "Enrolment", "PublicKey", "fingerprint", "public_line", "read_enrolment"]

FINGERPRINT = r"SHA256:[A-Za-z0-9+/]{43}"
"""How a fingerprint looks."""

PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey
_DOMAIN = "DP-FPL enrolment of a site, 1"


def public_line(key: PublicKey) -> str:
    """A public key as one OpenSSH line without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def fingerprint(key: PublicKey | str) -> str:
    """SHA-256 of a public key or its OpenSSH line, written as ``ssh-keygen -l`` writes it."""
    loaded = load_ssh_public_key(key.encode()) if isinstance(key, str) else key
    assert isinstance(loaded, PublicKey)
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(loaded, SHA256())).decode().rstrip("=")


@settings
class Enrolment:
    """The public halves of a site's keys, each one OpenSSH line.

    Attributes:
        site: its name.
        node_key: with which its SuperNode connects; ECDSA on P-384.
        agent_key: with which its agent signs replies; Ed25519.
        aggregation_key: with which its agent signs its part of secure sums; Ed25519.
        signature: of the aggregation key over all of this, base64.
    """

    site: SiteName
    node_key: str
    agent_key: str
    aggregation_key: str
    signature: str

    def __post_init__(self) -> None:
        for name in ("node_key", "agent_key"):
            _load(name, getattr(self, name))
        signer = _load("aggregation_key", self.aggregation_key)
        assert isinstance(signer, Ed25519PublicKey)
        if self.agent_key == self.aggregation_key:
            raise ImpossibleError("aggregation_key", self.aggregation_key, "another key than agent_key")
        try:
            signature = base64.b64decode(self.signature, validate=True)
            signer.verify(signature, _signed(self.site, self.node_key, self.agent_key, self.aggregation_key))
        except (ValueError, InvalidSignature):
            raise ImpossibleError("signature", self.signature, "the aggregation key's, over this very file") from None

    @classmethod
    def sign(cls, site: str, node_key: str, agent_key: str, aggregation: Ed25519PrivateKey) -> "Enrolment":
        """The enrolment of these keys."""
        own = public_line(aggregation.public_key())
        signature = aggregation.sign(_signed(site, node_key, agent_key, own))
        return cls(site, node_key, agent_key, own, base64.b64encode(signature).decode())


def read_enrolment(path: Path) -> Enrolment:
    """Read the file that ``dpfpl-client enroll`` wrote.

    Raises:
        ConfigError: it is missing, is another file, or was changed on its way.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            code="FILE_UNREADABLE", message=f"{path} cannot be read ({error.strerror}).", advice="Check the path."
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(
            code="BAD_ENROLMENT",
            message=f"{path} is not the public file of a site.",
            advice="Ask the site for NAME.public.json, which dpfpl-client enroll wrote; its *.key files stay there.",
        ) from None
    return build(Enrolment, table, path.name)


def _load(name: str, line: str) -> PublicKey:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if name == "node_key":
        right, kind = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1), "ECDSA P-384"
    else:
        right, kind = isinstance(key, Ed25519PublicKey), "Ed25519"
    if not right or not isinstance(key, PublicKey) or public_line(key) != line:
        raise ImpossibleError(name, line, f"a key of the kind {kind}, as one OpenSSH line without a comment")
    return key


def _signed(*parts: str) -> bytes:
    """What is signed: no part has a line break, as each is a site's name or a key's line."""
    return "\n".join((_DOMAIN, *parts)).encode()
