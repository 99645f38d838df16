"""The agent's monitoring endpoint: beside its data plane, on another socket, with a token of its own."""

import time
from collections.abc import Callable
from typing import Any

from dpfpl_client.agent.credential import Credential, read_token
from dpfpl_client.agent.metered import MeteredAgent, ledger_families
from dpfpl_client.link_state import link_file, read_link
from dpfpl_client.site_health import PARTS, site_troubles
from dpfpl_client.site_settings import SiteSettings
from dpfpl_client.spending import summarise
from dpfpl_common.errors import DpfplError
from dpfpl_common.health import Trouble
from dpfpl_common.monitor import Monitor, parse_monitor_address
from dpfpl_common.prometheus import Family

__all__ = ["site_families", "start_monitor"]

_LEDGER_EVERY_S = 10.0


def start_monitor(settings: SiteSettings, agent: MeteredAgent) -> Monitor | None:
    """Start the endpoint that site.toml's ``[monitoring]`` asks for; None if it asks for none.

    ``/metrics`` needs the token in ``state/metrics.token``, made on first start, mode 0600: the operator's code beside
    the agent reaches loopback too, and epsilons of other experiments are none of its business.

    Raises:
        ConfigError: the address is none or public.
        DeploymentError: it cannot be listened on.
        StateError: others can read the token file.
    """
    if not settings.monitoring.address:
        return None
    host, port = parse_monitor_address(settings.monitoring.address, public=settings.monitoring.public)
    token_file = settings.state_folder / "metrics.token"
    Credential(token_file)
    ledger = _Remembered(lambda: summarise(settings), _LEDGER_EVERY_S)
    return Monitor(
        host,
        port,
        health=lambda: site_troubles(settings, _parts(settings)),
        metrics=lambda: site_families(settings, agent, ledger.value()),
        token=read_token(token_file),
    )


def site_families(settings: SiteSettings, agent: MeteredAgent, summary: dict[str, Any] | None) -> list[Family]:
    """Everything that ``/metrics`` shows."""
    parts = _parts(settings)
    troubles = site_troubles(settings, parts)
    families = [
        Family("dpfpl_site_healthy", "gauge", "1 if the site can take part now.", [({}, 0 if troubles else 1)]),
        Family(
            "dpfpl_site_part_healthy",
            "gauge",
            "1 for each part that is in order.",
            [({"part": part}, _fine(part, troubles)) for part in parts],
        ),
        *agent.families(),
    ]
    link = read_link(link_file(settings.node_folder))
    if link is not None:
        silent: list[tuple[dict[str, str], float]] = [({}, link.silent_s(time.time()))]
        families.append(Family("dpfpl_site_server_silent_seconds", "gauge", "Since the server last answered.", silent))
    return families + (ledger_families(summary) if summary is not None else [])


def _parts(settings: SiteSettings) -> tuple[str, ...]:
    """What the agent's user can see: as a user of its own it cannot read the SuperNode's folder."""
    return tuple(part for part in PARTS if part != "link") if settings.separated else PARTS


def _fine(part: str, troubles: list[Trouble]) -> int:
    return 0 if any(trouble.part == part for trouble in troubles) else 1


class _Remembered:
    """A value that is computed at most every few seconds; None while it cannot be."""

    def __init__(self, compute: Callable[[], dict[str, Any]], every_s: float) -> None:
        self._compute = compute
        self._every_s = every_s
        self._at = -every_s
        self._value: dict[str, Any] | None = None

    def value(self) -> dict[str, Any] | None:
        """The value, as fresh as promised."""
        if time.monotonic() - self._at >= self._every_s:
            self._at = time.monotonic()
            try:
                self._value = self._compute()
            except DpfplError:
                self._value = None
        return self._value
