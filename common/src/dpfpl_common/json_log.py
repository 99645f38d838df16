"""Log lines for machines: one JSON object a line, where somebody asks for them; plain lines otherwise."""

import json
import logging
import os
import sys
import time

__all__ = ["JSON_LOGS", "JsonFormatter", "configure_logging"]

JSON_LOGS = "DPFPL_JSON_LOGS"
"""Set to 1 to have every process of ours log JSON."""

_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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


def configure_logging(as_json: bool | None = None) -> None:
    """Send our own log records, from level INFO on, to the error output.

    Args:
        as_json: whether as JSON; None asks the environment variable :data:`JSON_LOGS`.
    """
    wanted = os.environ.get(JSON_LOGS, "") == "1" if as_json is None else as_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if wanted else logging.Formatter(_PLAIN))
    for name in ("dpfpl_common", "dpfpl_client", "dpfpl_server"):
        ours = logging.getLogger(name)
        ours.handlers[:] = [handler]
        ours.setLevel(logging.INFO)
        ours.propagate = False
