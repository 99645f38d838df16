"""Flower's waits and retries in the ServerApp's process, which it offers no settings for."""

from typing import Any

from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils

__all__ = ["bear_broken_connections", "pull_again_soon"]

PULL_AGAIN_SECONDS = 0.05
PULL_AGAIN_AT_LEAST_SECONDS = 0.5
REST_OF_A_REPLY_SECONDS = 15.0
"""How long the other parts of a reply may take whose first one is here: a mebibyte at a megabit per second."""
_BROKEN = ("unexpected_eof", "eof occurred", "connection reset", "broken pipe")


def pull_again_soon(deadline_s: float) -> None:
    """Have this process ask soon again for a part of a message that its sender is still pushing, and not for ever.

    Flower waits a second, so a round would last that much longer whenever a look falls into a site's push; and it waits
    for minutes, with all other sites' replies behind it, for the rest of a reply whose sender stopped in the middle.
    """
    defaults: dict[str, Any] = inflatable_utils.pull_objects.__kwdefaults__ or {}
    defaults["initial_backoff"] = PULL_AGAIN_SECONDS
    defaults["backoff_cap"] = PULL_AGAIN_AT_LEAST_SECONDS
    defaults["max_time"] = min(REST_OF_A_REPLY_SECONDS, deadline_s / 4)


def bear_broken_connections(grid: Grid) -> None:
    """Have the grid try again where a connection to the SuperLink was closed within TLS, as it does where it was reset.

    Flower gives up at any error with "SSL" in its text, as if a certificate were wrong, and the run fails: seen once in
    387 runs on a busy machine. Errors of certificates are given up as before. Other grids are left as they are.
    """
    invoker = getattr(grid, "_retry_invoker", None)
    gives_up = getattr(invoker, "should_giveup", None)
    if invoker is None or gives_up is None:
        return

    def really_gives_up(error: Exception) -> bool:
        text = str(error).lower()
        return bool(gives_up(error)) and ("certificate" in text or not any(sign in text for sign in _BROKEN))

    invoker.should_giveup = really_gives_up
