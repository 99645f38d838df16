"""Checks that a reply was signed by the agent of the site that it names."""

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dpfpl_common.errors import ConfigError, PayloadError
from dpfpl_common.wire.payloads import AnyRequest, SiteReply, SumReply, signed_text

__all__ = ["SignatureCheck"]


class SignatureCheck:
    """Knows the public signing key of every site of an experiment.

    Args:
        keys: one OpenSSH line (``ssh-ed25519 ...``) by site name, as in the server's register.

    Raises:
        ConfigError: a line is no Ed25519 key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {site: _public_key(site, line) for site, line in keys.items()}

    def __call__(self, request: AnyRequest, reply: SiteReply | SumReply, site: str) -> None:
        """Let a reply pass that ``site`` signed as its answer to ``request``.

        Raises:
            PayloadError: SIGNATURE_MISSING or SIGNATURE_WRONG.
        """
        key = self._keys.get(site)
        if not reply.signature or key is None:
            raise PayloadError(code="SIGNATURE_MISSING", message="The reply is not signed by the site's agent.")
        try:
            key.verify(reply.signature, signed_text(request, reply))
        except InvalidSignature:
            raise PayloadError(
                code="SIGNATURE_WRONG", message="The signature is not the site's own, or not of this reply."
            ) from None


def _public_key(site: str, line: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            code="NO_SIGNING_KEY",
            message=f"The register holds no signing key of the site {site!r}.",
            advice=f"Give the site a new kit: dpfpl-server provision --site {site} --force.",
        )
    return key
