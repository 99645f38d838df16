"""What a site's agent signs: the text that ties a reply to one experiment, round, kind and site.

Operator code runs beside a site's connection and could send whatever it likes in the site's name; the agent's signature
is what the server believes instead. Ed25519 is deterministic: the same reply has the same signature, always.
"""

import hashlib
import struct
from typing import Literal

from dpfpl_common.experiment import Experiment
from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest

__all__ = ["Kind", "kind_of", "signed_text"]

Kind = Literal["train", "evaluate"]

DOMAIN = b"DP-FPL reply of a site, 1"
"""Keeps these signatures apart from any other use of the same key; another number where what is signed changes."""


def kind_of(request: TrainRequest | EvaluateRequest) -> Kind:
    """What kind of request a reply answers."""
    return "train" if isinstance(request, TrainRequest) else "evaluate"


def signed_text(experiment: Experiment, kind: Kind, reply: SiteReply) -> bytes:
    """The bytes that are signed: domain, experiment's digest, round, kind, site, digest of the reply's content.

    Every part is preceded by its length, so no two different replies have the same text. The signature itself is not a
    part of it.
    """
    parts = (
        DOMAIN,
        experiment.digest().encode(),
        str(reply.round).encode(),
        kind.encode(),
        reply.site.encode(),
        _content_digest(reply),
    )
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _content_digest(reply: SiteReply) -> bytes:
    """sha256 of update, metrics and seconds, as values: however they are encoded on a wire."""
    digest = hashlib.sha256()
    update = b"" if reply.update is None else reply.update.astype("<f4").tobytes()
    digest.update(len(update).to_bytes(8, "big") + update)
    for name, value in sorted(reply.metrics.items()):
        digest.update(len(name.encode()).to_bytes(8, "big") + name.encode() + struct.pack(">d", value))
    digest.update(struct.pack(">d", reply.seconds))
    return digest.digest()
