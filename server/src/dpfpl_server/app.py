"""The ServerApp: runs the strategy on the experiment of a run folder."""

from dpfpl_common.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

from pathlib import Path  # noqa: E402  after the switch

from flwr.app import Context  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_server.run_folder import RunFolder  # noqa: E402
from dpfpl_server.strategy import DPFPLStrategy  # noqa: E402

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Go on where the run folder's checkpoint ends; leave result files there, also on failure."""
    place = context.run_config.get("run-dir")
    if not isinstance(place, str) or not place:
        raise ConfigError(
            code="NO_RUN_DIR", message="The run has no run-dir.", advice="Start it with dpfpl-server run."
        )
    folder = RunFolder(Path(place))
    experiment, sites = folder.experiment(), folder.read_json("sites.json") or {}
    try:
        strategy = DPFPLStrategy(
            experiment,
            {name: int(site["node"]) for name, site in sites.items()},
            keys={name: str(site["key"]) for name, site in sites.items()},
            checkpoint=folder.load_checkpoint(),
            on_checkpoint=folder.save_checkpoint,
            on_status=folder.add_event,
        )
        strategy.run(grid)
    except DpfplError as error:
        folder.add_event({"phase": "FAILED", "code": error.code, "message": error.message, "advice": error.advice})
        raise
    folder.write_json("final.json", strategy.final_metrics)
