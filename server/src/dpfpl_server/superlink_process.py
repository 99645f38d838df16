"""Flower's SuperLink with our doors: ``python -m dpfpl_server.superlink_process SERVER_FOLDER FLOWER'S OPTIONS...``.

Flower's own servicers, state and HTTP application, behind :class:`~dpfpl_server.fleet_guard.FleetGuard` (the sites'
port) and :class:`~dpfpl_server.control_secret.ControlGuard` (the port of this machine), with a receive limit and with
limits on slow callers. Runs are executed by :mod:`dpfpl_server.executor`, a process of its own.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

import sys  # noqa: E402  after the switch
from pathlib import Path  # noqa: E402

import uvicorn  # noqa: E402

from dpfpl_common.ops.http import PAGE_LIMITS  # noqa: E402
from dpfpl_server.control_secret import ControlGuard, control_secret  # noqa: E402
from dpfpl_server.federation.flower_patches import guarded_superlink  # noqa: E402
from dpfpl_server.life import life_of  # noqa: E402

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Serve until stopped."""
    folder = Path(arguments[0])
    secret = control_secret(folder)
    application, options = guarded_superlink(arguments[1:])
    with life_of("superlink", folder):
        uvicorn.run(
            ControlGuard(application, secret),
            host=options.host,
            port=options.port,
            ssl_keyfile=options.ssl_keyfile,
            ssl_certfile=options.ssl_certfile,
            **{**PAGE_LIMITS, "lifespan": "on", "log_level": "info"},
        )


if __name__ == "__main__":
    main(sys.argv[1:])
