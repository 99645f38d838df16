"""The ServerApp of empty rounds: the strategy's own exchange with messages that hold nothing, timed."""

import json
import time
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from dpfpl_common.durable import write_durably
from dpfpl_server.exchange import exchange
from dpfpl_server.patience import pull_again_soon

__all__ = ["app"]

ROUNDS = 10
DEADLINE_S = 120.0
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write the seconds of each round into the file that run-dir names."""
    pull_again_soon(DEADLINE_S)
    seconds = []
    nodes = [str(node) for node in grid.get_node_ids()]
    for number in range(ROUNDS):
        started = time.monotonic()
        messages = {node: grid.create_message(RecordDict(), "query", int(node), str(number)) for node in nodes}
        outcome = exchange(grid, messages, DEADLINE_S)
        if len(outcome.replies) < len(nodes):
            raise RuntimeError(f"an empty round failed: {outcome.failures}")
        seconds.append(time.monotonic() - started)
    write_durably(Path(str(context.run_config["run-dir"])), json.dumps(seconds).encode(), 0o644)
