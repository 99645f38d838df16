"""The ServerApp: runs the strategy on the experiment of a run folder."""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

from pathlib import Path  # noqa: E402  after the switch

from flwr.app import Context  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from dpfpl_common.errors import ConfigError, DpfplError  # noqa: E402
from dpfpl_server.federation.rounds import DPFPLStrategy  # noqa: E402
from dpfpl_server.flower_patches import bear_broken_connections, pull_again_soon  # noqa: E402
from dpfpl_server.runs.folder import RunFolder  # noqa: E402
from dpfpl_server.sites.register import withdrawn_sites  # noqa: E402

__all__ = ["app"]

PREDECESSOR_S = 20.0
"""How long the ServerApp of an earlier Flower run of the same experiment may take to end."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Go on where the run folder's checkpoint ends; leave everything there, also on failure."""
    place = context.run_config.get("run-dir")
    if not isinstance(place, str) or not place:
        raise ConfigError(
            code="NO_RUN_DIR", message="The run has no run-dir.", advice="Start it with dpfpl-server run."
        )
    folder = RunFolder(Path(place))
    bear_broken_connections(grid)
    pull_again_soon(folder.experiment().rounds.deadline)
    try:
        with folder.server_pulse(PREDECESSOR_S):
            run(grid, folder)
    except DpfplError as error:
        folder.add_event({"phase": "FAILED", "code": error.code, "message": error.message, "advice": error.advice})
        raise
    except Exception as error:
        folder.add_event({"phase": "CRASHED", "message": f"the server's program failed ({type(error).__name__})"})
        raise


def run(grid: Grid, folder: RunFolder) -> None:
    """All remaining rounds of the folder's experiment over this grid."""
    sites = folder.store.fact("sites") or {}
    settings = folder.store.fact("settings") or {}
    strategy = DPFPLStrategy(
        folder.experiment(),
        {name: int(site["node"]) for name, site in sites.items()},
        keys={name: str(site["key"]) for name, site in sites.items()},
        checkpoint=folder.load_checkpoint(),
        on_checkpoint=folder.save_checkpoint,
        on_status=folder.add_event,
        book=folder.store.sum_book(),
        site_wait_s=float(settings.get("site_wait_s", 120.0)),
        withdrawn=lambda: withdrawn_sites(Path(str(settings["server"])), sites) if "server" in settings else {},
    )
    strategy.run(grid)
    folder.store.set_fact("scores", strategy.final_scores)
    folder.store.set_fact("final", strategy.final_metrics)
