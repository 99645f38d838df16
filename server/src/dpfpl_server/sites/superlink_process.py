"""Flower's SuperLink with our doors: ``python -m dpfpl_server.sites.superlink_process SERVER_FOLDER OPTIONS...``.

Flower's own servicers, state and HTTP application behind two guards, :mod:`dpfpl_server.sites.fleet_guard` at the
sites' port and :mod:`dpfpl_server.sites.control_secret` at the port of this machine, with a receive limit and limits on
slow callers. Runs are executed by :mod:`dpfpl_server.sites.executor`, a process of its own. OPTIONS are those of
``flower-superlink``.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import logging  # noqa: E402  after the switch
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import uvicorn  # noqa: E402

from dpfpl_common.ops.http import PAGE_LIMITS  # noqa: E402
from dpfpl_server.flower_patches import guarded_superlink  # noqa: E402
from dpfpl_server.sites.control_secret import ControlGuard, control_secret  # noqa: E402
from dpfpl_server.sites.fleet_guard import FleetGuard  # noqa: E402
from dpfpl_server.sites.life import life_of  # noqa: E402

__all__ = ["cut_log_lines", "main"]

LONGEST_LINE = 2000


def main(arguments: list[str]) -> None:
    """Serve until stopped."""
    folder = Path(arguments[0])
    secret = control_secret(folder)
    cut_log_lines()
    application, options = guarded_superlink(arguments[1:], lambda known: FleetGuard(known, _say))
    with life_of("superlink", folder):
        uvicorn.run(
            ControlGuard(application, secret),
            host=options.host,
            port=options.port,
            ssl_keyfile=options.ssl_keyfile,
            ssl_certfile=options.ssl_certfile,
            **{**PAGE_LIMITS, "lifespan": "on", "log_level": "info"},
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cut_log_lines() -> None:
    """No line of Flower's log longer than :data:`LONGEST_LINE`, whatever a caller sent."""

    def cut(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if len(text) > LONGEST_LINE:
            record.msg, record.args = f"{text[:LONGEST_LINE]} ... ({len(text)} characters)", ()
        return True

    logging.getLogger("flwr").addFilter(cut)


if __name__ == "__main__":
    main(sys.argv[1:])
