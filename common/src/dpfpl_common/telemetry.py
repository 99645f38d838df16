"""Switch off everything in our dependencies that calls home."""

import os
import sys

__all__ = ["quiet_environment", "silence_telemetry"]

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_FLOWER_TELEMETRY_MODULE = "flwr.supercore.telemetry"


def quiet_environment(offline: bool = False) -> dict[str, str]:
    """Return the variables that switch off telemetry and update checks.

    Args:
        offline: also keep the model hub from using the network at all, for sites whose model lies in a folder.
    """
    return {**_QUIET, **(_OFFLINE if offline else {})}


def silence_telemetry(offline: bool = False) -> None:
    """Set those variables in this process, and so in every process it starts.

    Call it before Flower is imported: Flower reads its switch at import. Where it has been imported already, the value
    it read is corrected as well.
    """
    os.environ.update(quiet_environment(offline))
    flower_telemetry = sys.modules.get(_FLOWER_TELEMETRY_MODULE)
    if flower_telemetry is not None:
        flower_telemetry.FLWR_TELEMETRY_ENABLED = "0"  # type: ignore[attr-defined]
