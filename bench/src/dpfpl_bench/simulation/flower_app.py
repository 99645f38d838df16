"""The ServerApp of ``flwr run deploy/bundle``: a simulated federation, one site for each node that Flower simulates.

A real federation has no use for it: ``dpfpl-server run`` submits its own bundle, and sites load their own ClientApp.
"""

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

from flwr.app import Context  # noqa: E402  after the switch
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from rich.console import Console  # noqa: E402

from dpfpl_bench.simulation.flower_engine import FlowerSimulation, nodes_by_partition  # noqa: E402
from dpfpl_bench.simulation.simulate import make_request, parse_epsilon, run_with_progress  # noqa: E402
from dpfpl_server.watch.terminal import print_result  # noqa: E402

__all__ = ["app"]

WIDTH = 100
"""Columns of what is printed: Flower's log is no terminal."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Deal the data out to the simulated nodes, train, compare with each site alone, print it."""
    config, sites = context.run_config, len(nodes_by_partition(grid))
    request = make_request(
        str(config["data"]),
        ["engine=flower"],
        sites=sites,
        epsilon=parse_epsilon(str(config["epsilon"])),
        rounds=int(config["rounds"]),
        seed=int(config["seed"]),
        floors="alone",
    )
    console = Console(markup=False, highlight=False, width=WIDTH)
    console.print(
        f"A simulation: {sites} sites on this machine share the images of {config['data']}; no certificates, and the "
        f"noise is seeded.\nThey learn prompts of the model {request.model} with {request.rounds.number} rounds at "
        f"epsilon {config['epsilon']}."
    )
    result = run_with_progress(
        request,
        console,
        engine=lambda backbone, dealt: FlowerSimulation(request.model, request.offline, dealt, request.seed, grid),
    )
    print_result(result, console)
