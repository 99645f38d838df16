"""What our processes tell: nothing to anybody's telemetry, and log lines for people or, where asked for, as JSON."""

import json
import logging
import os
import sys
import time

from dpfpl_common.ops.text import printable_lines

__all__ = [
    "JSON_LOGS",
    "JsonFormatter",
    "PlainFormatter",
    "configure_logging",
    "quiet_environment",
    "silence_telemetry",
]


_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_FLOWER_TELEMETRY_MODULE = "flwr.supercore.telemetry"


def quiet_environment(offline: bool = False) -> dict[str, str]:
    """Return the variables that switch off telemetry and update checks.

    Args:
        offline: also keep the model hub from using the network at all, for sites whose model lies in a folder.
    """
    return {**_QUIET, **(_OFFLINE if offline else {})}


def silence_telemetry() -> None:
    """Set those variables in this process, and so in every process it starts.

    Call it before Flower is imported: Flower reads its switch at import. Where it has been imported already, the value
    it read is corrected as well.
    """
    os.environ.update(quiet_environment())
    flower_telemetry = sys.modules.get(_FLOWER_TELEMETRY_MODULE)
    if flower_telemetry is not None:
        flower_telemetry.FLWR_TELEMETRY_ENABLED = "0"  # type: ignore[attr-defined]


JSON_LOGS = "DPFPL_JSON_LOGS"
"""Set to 1 to have every process of ours log JSON."""


class PlainFormatter(logging.Formatter):
    """One line for people, in which a file name or another's message brings no control characters along."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; a traceback keeps its lines."""
        return printable_lines(super().format(record))


class JsonFormatter(logging.Formatter):
    """``at`` (UTC), ``level``, ``logger``, ``message``, and ``error`` with the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging() -> None:
    """Send our own log records, from level INFO on, to the error output; as JSON where :data:`JSON_LOGS` says so."""
    wanted = os.environ.get(JSON_LOGS, "") == "1"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if wanted else PlainFormatter())
    for name in ("dpfpl_common", "dpfpl_client", "dpfpl_server"):
        ours = logging.getLogger(name)
        ours.handlers[:] = [handler]
        ours.setLevel(logging.INFO)
        ours.propagate = False
