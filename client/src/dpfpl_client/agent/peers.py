"""The aggregation keys of secure sums: this site's own, and whose keys of other sites its people have compared.

``peers.toml``, beside policy.toml, holds the fingerprints that were pinned; where it names any, a site that it does not
name, or whose keys another key signed, is refused before a share is sealed to it. ``peers.seen.json`` in the state
folder holds the fingerprints that the server sent for the last sum, for people to compare; nothing rests on it.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpfpl_client.agent.policy_file import require_protected
from dpfpl_client.agent.signing import load_signing_key
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.config import read_toml
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import SITE_NAME
from dpfpl_common.ops.files import make_folder_durably, write_durably
from dpfpl_common.secure.enrolment import FINGERPRINT, fingerprint
from dpfpl_common.secure.terms import Keys

__all__ = ["NO_KEYS", "AggregationKeys", "aggregation_keys"]

_HEAD = """\
# Fingerprints of the aggregation keys of other sites, as their people read them to yours. Where this file names any,
# your site takes part in a secure sum with these sites and keys only. dpfpl-client peers pin writes it.
"""


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
