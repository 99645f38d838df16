"""Flower apps of empty rounds: messages that hold nothing, exchanged as the strategy does, timed.

A module of its own: what it imports is imported for every message.
"""

import json
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from dpfpl_common.ops.files import write_durably
from dpfpl_server.federation.exchange import exchange
from dpfpl_server.flower_patches import pull_again_soon

__all__ = ["client", "server"]

ROUNDS = 10
DEADLINE_S = 120.0

client = ClientApp()
"""Answers at once with nothing."""

server = ServerApp()
"""Writes the seconds of each round into the file that run-dir names."""


@client.query()
def query(message: Message, context: Context) -> Message:
    """Answer with nothing."""
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange the rounds."""
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
