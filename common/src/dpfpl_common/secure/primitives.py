"""The cryptography of secure aggregation: keys, masks, sealed shares.

Everything is bound to one sum of one attempt by a label, which enters every key (HKDF-SHA256, RFC 5869): a key, mask or
share of another experiment, sum, attempt, pair or purpose fits nowhere else. Secrets have 128 bits, as much as X25519
is worth; so one share of the library's field, GF(2^128), holds one secret.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpfpl_common.errors import PayloadError

__all__ = [
    "SECRET_BYTES",
    "Words",
    "agreed",
    "combined",
    "commitment",
    "derived",
    "framed",
    "mask",
    "opened",
    "private_key",
    "sealed",
    "shares",
    "unframed",
]

Words = npt.NDArray[np.uint64]

SECRET_BYTES = 16
"""Of every secret that is shared."""

_NO_NONCE = bytes(12)
"""Every key seals one message only, so its nonce may be constant."""


def framed(*parts: bytes) -> bytes:
    """The parts, each preceded by its length: no two different lists have the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unframed(content: bytes) -> list[bytes]:
    """The inverse of ``framed``.

    Raises:
        PayloadError: MALFORMED.
    """
    parts, at = [], 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "big")
        if at + 4 > len(content) or end > len(content):
            raise PayloadError(code="MALFORMED", message="A message of secure aggregation is cut off.")
        parts.append(content[at + 4 : end])
        at = end
    return parts


def derived(secret: bytes, label: bytes, *purpose: bytes, size: int = 32) -> bytes:
    """HKDF-SHA256 of a secret, for one purpose under one label; ``size`` bytes."""
    return HKDF(SHA256(), size, salt=None, info=framed(label, *purpose)).derive(secret)


def private_key(secret: bytes, label: bytes, *purpose: bytes) -> X25519PrivateKey:
    """The X25519 key that a secret stands for."""
    return X25519PrivateKey.from_private_bytes(derived(secret, label, *purpose))


def agreed(own: X25519PrivateKey, public: bytes) -> bytes:
    """X25519: the 32 bytes that the holder of the other private key computes, too.

    Raises:
        PayloadError: BAD_KEY, no point of the curve, or one of small order.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PayloadError(code="BAD_KEY", message="A peer's public key is none.") from None


def mask(key: bytes, size: int) -> Words:
    """``size`` uniform words modulo 2^64: the keystream of ChaCha20 (RFC 8439) under a key of 32 bytes, used once."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, dtype="<u8")


def sealed(key: bytes, content: bytes, about: bytes) -> bytes:
    """ChaCha20-Poly1305 under a key that seals nothing else."""
    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, content, about)


def opened(key: bytes, box: bytes, about: bytes) -> bytes:
    """The inverse of ``sealed``.

    Raises:
        PayloadError: FORGED_SHARE: changed, of another attempt, or of or to another site.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NO_NONCE, box, about)
    except InvalidTag:
        raise PayloadError(code="FORGED_SHARE", message="A share does not come from the peer that it names.") from None


def shares(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shamir's shares of a secret of SECRET_BYTES, for the holders 1 to ``count``; fewer than ``threshold`` of them say
    nothing about it. From PyCryptodome, as Flower uses it.
    """
    assert len(secret) == SECRET_BYTES
    if threshold == 1:  # the library's least is 2
        return [secret] * count
    return [share for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def combined(threshold: int, held: Sequence[tuple[int, bytes]]) -> bytes:
    """The secret of ``threshold`` shares, each with the number of its holder.

    Raises:
        PayloadError: BAD_SHARES: too few, or two of one holder.
    """
    if len({number for number, _ in held}) != len(held) or len(held) < threshold:
        raise PayloadError(code="BAD_SHARES", message=f"{len(held)} shares, {threshold} different ones are needed.")
    if threshold == 1:
        return held[0][1]
    return bytes(Shamir.combine(list(held[:threshold]), ssss=False))


def commitment(secret: bytes, label: bytes) -> bytes:
    """Tells later whether a secret is the right one, and nothing about it before."""
    return hashlib.sha256(derived(secret, label, b"commitment")).digest()
