"""Ask every site to run the hostile ClientApp and write down what it found."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context) -> None:
    nodes: list[int] = []
    until = time.monotonic() + 60
    while len(nodes) < 3 and time.monotonic() < until:
        nodes = list(grid.get_node_ids())
        time.sleep(1)
    content = RecordDict({"in": ConfigRecord({"outside": str(context.run_config["outside"])})})
    messages = [Message(content, message_type="query", dst_node_id=node) for node in nodes]
    replies = grid.send_and_receive(messages, timeout=180)
    found = [
        json.loads(str(reply.content["out"]["found"])) if reply.has_content() else {"error": str(reply.error)}
        for reply in replies
    ]
    Path(str(context.run_config["out"])).write_text(json.dumps(found))
