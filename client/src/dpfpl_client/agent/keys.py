"""The site's own keys, which the SuperNode and its ClientApp never see, and whose keys of other sites it knows.

``agent.key`` signs what leaves the agent. ``aggregation.key`` is for secure sums: ``peers.toml``, beside policy.toml,
holds the fingerprints of other sites that were pinned; where it names any, a site that it does not name, or whose keys
another key signed, is refused before a share is sealed to it. ``peers.seen.json`` in the state folder holds the
fingerprints that the server sent for the last sum, for people to compare; nothing rests on it.
"""

import contextlib
import dataclasses
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpfpl_client.agent.endpoint import Agent
from dpfpl_client.agent.policy_file import require_protected
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.config import read_toml
from dpfpl_common.errors import ConfigError, StateError
from dpfpl_common.experiment import SITE_NAME
from dpfpl_common.ops.files import make_folder_durably, write_durably
from dpfpl_common.secure.enrolment import FINGERPRINT, fingerprint
from dpfpl_common.secure.terms import Keys
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest, signed_text

__all__ = ["NO_KEYS", "AggregationKeys", "SigningAgent", "aggregation_keys", "load_signing_key"]


_HEAD = """\
# Fingerprints of the aggregation keys of other sites, as their people read them to yours. Where this file names any,
# your site takes part in a secure sum with these sites and keys only. dpfpl-client peers pin writes it.
"""


class SigningAgent:
    """An agent whose every reply carries the site's signature; refusals carry none.

    A stored release is signed again, with the same outcome; after the site was given a new key, with that key.

    Args:
        agent: does the work.
        key: the site's Ed25519 key.
    """

    def __init__(self, agent: Agent, key: Ed25519PrivateKey) -> None:
        self._agent = agent
        self._key = key

    def train(self, request: TrainRequest) -> SiteReply:
        """See ``Agent``."""
        return self._signed(request, self._agent.train(request))

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """See ``Agent``."""
        return self._signed(request, self._agent.evaluate(request))

    def add_up(self, request: SumRequest) -> SumReply:
        """See ``Agent``."""
        reply = self._agent.add_up(request)
        return dataclasses.replace(reply, signature=self._key.sign(signed_text(request, reply)))

    def _signed(self, request: TrainRequest | EvaluateRequest, reply: SiteReply) -> SiteReply:
        return dataclasses.replace(reply, signature=self._key.sign(signed_text(request, reply)))


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``agent.key``: PEM, a regular file of this user that nobody else may read (mode 0600).

    Raises:
        StateError: it is missing, readable by others, or no Ed25519 key.
    """
    try:
        state = path.stat()
        content = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077 or state.st_uid != os.getuid():
        raise _bad(path, "is not this user's alone")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad(path, "holds no Ed25519 key")
    return key


def _bad(path: Path, what: str) -> StateError:
    return StateError(
        code="SIGNING_KEY",
        message=f"The site's signing key {path} {what}.",
        advice="Give it to the agent's user alone (chmod 600); site.toml [agent] says where it is. If it is lost, make "
        "new keys with dpfpl-client enroll --force, or ask the operator for a new kit if the old one brought it.",
    )


@dataclass(frozen=True)
class AggregationKeys:
    """What a site knows of aggregation keys.

    Attributes:
        key: its own; None where it did not enrol.
        pins: peers.toml; None in simulations.
        sent: peers.seen.json.
    """

    key: Ed25519PrivateKey | None = None
    pins: Path | None = None
    sent: Path | None = None

    def pinned(self) -> dict[str, str]:
        """Fingerprint of each pinned site, read again at each call; none where there is no peers.toml.

        Raises:
            ConfigError: the file is not protected as policy.toml is, or says something else.
        """
        if self.pins is None or not self.pins.exists():
            return {}
        require_protected(self.pins)
        found = read_toml(self.pins)
        for site, text in found.items():
            if not SITE_NAME.fullmatch(site) or not isinstance(text, str) or not re.fullmatch(FINGERPRINT, text):
                raise ConfigError(
                    code="BAD_PINS",
                    message=f"{self.pins} says {site} = {text!r}, which is no site's name and fingerprint.",
                    advice='Write lines such as hospital-b = "SHA256:...", or use dpfpl-client peers pin.',
                )
        return found

    def pin(self, site: str, text: str | None) -> None:
        """Pin a fingerprint; None takes a pin away."""
        assert self.pins is not None
        pins = {**self.pinned(), site: text}
        lines = [f'{name} = "{value}"\n' for name, value in sorted(pins.items()) if value is not None]
        mode = self.pins.stat().st_mode & 0o777 if self.pins.exists() else 0o640
        write_durably(self.pins, (_HEAD + "".join(lines)).encode(), mode)

    def seen(self) -> dict[str, str]:
        """What the server sent of each peer of the last sum: a fingerprint, or "" where it signs nothing."""
        try:
            found: dict[str, str] = json.loads(self.sent.read_bytes()) if self.sent is not None else {}
        except (OSError, ValueError):
            return {}
        return found

    def see(self, keys: Mapping[str, Keys]) -> None:
        """Remember what the server sends, for people to compare."""
        now = {site: fingerprint(Ed25519PublicKey.from_public_bytes(k.signer)) if k.signer else ""
               for site, k in keys.items()}  # fmt: skip
        if self.sent is not None and now != self.seen():
            with contextlib.suppress(OSError):  # no request fails because of a file that only people read
                make_folder_durably(self.sent.parent)
                write_durably(self.sent, json.dumps(now, indent=1, sort_keys=True).encode())


NO_KEYS = AggregationKeys()
"""Of a site that did not enrol, in a simulation."""


def aggregation_keys(settings: SiteSettings, *, with_own: bool = True) -> AggregationKeys:
    """Those of a site on disk.

    Raises:
        StateError: its own key cannot be used.
    """
    path = settings.path(settings.agent.aggregation_key)
    key = load_signing_key(path) if with_own and path.exists() else None
    return AggregationKeys(key, settings.path(settings.agent.peers), settings.state_folder / "peers.seen.json")
