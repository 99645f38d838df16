"""The SuperNode of a site in a container: ``python supernode.py FOLDER [LINK_FOLDER]``.

Nothing of the site's is here but its name, its node key, the authority's certificate and the token of the agent. In the
client container they were handed over in FOLDER/handed.json; as a container of its own it finds site.toml and the two
key files in /run/secrets, and the agent's socket and token in the link folder that it shares with the agent's
container.
"""

import json
import os
import sys
import time
from pathlib import Path

from dpfpl_common.ops.telemetry import silence_telemetry

silence_telemetry()  # before Flower is imported, which reads its switch then

from dpfpl_client.agent.endpoint import read_token  # noqa: E402
from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected  # noqa: E402
from dpfpl_client.site.settings import load_site  # noqa: E402
from dpfpl_common.errors import DpfplError  # noqa: E402
from dpfpl_common.ops.processes import ProcessGroup  # noqa: E402

__all__ = ["main"]

SECRETS = Path("/run/secrets")
CONNECT_S = 120.0


def main(folder: Path, link: Path | None) -> None:
    """Stay connected until the container is stopped; ends with an error when the connection's process ends."""
    handed = json.loads((folder / "handed.json").read_text(encoding="utf-8")) if link is None else _from_secrets(link)
    for name in ("ca.crt", "node.key"):
        (folder / name).write_text(handed[name], encoding="ascii")
    (folder / "agent.token").write_text(handed["token"], encoding="ascii")
    settings = SuperNodeSettings(
        site_name=handed["site"],
        server_address=handed["server"],
        ca_certificate=folder / "ca.crt",
        node_key=folder / "node.key",
        state_folder=folder,
        agent_address=handed["agent"],
        agent_token_file=folder / "agent.token",
    )
    with ProcessGroup() as group:
        node = start_supernode(settings, group)
        wait_until_connected(node, timeout_s=CONNECT_S)
        print(f"Connected to {settings.server_address} as {settings.site_name}. Waiting for experiments.", flush=True)
        while True:
            group.check()
            time.sleep(0.5)


def _from_secrets(link: Path) -> dict[str, str]:
    """What the split set-up mounts; waits for the agent, which makes the token."""
    settings = load_site(SECRETS / "site.toml")
    while (token := read_token(link / "agent.token")) is None:
        time.sleep(0.5)
    return {
        "site": settings.name,
        "server": settings.server.address,
        "agent": f"unix:{link / 'agent.sock'}",
        "token": token,
        "ca.crt": (SECRETS / "ca.crt").read_text(encoding="ascii"),
        "node.key": (SECRETS / "node.key").read_text(encoding="ascii"),
    }


if __name__ == "__main__":
    os.umask(0o077)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    except DpfplError as error:
        print(f"{error.code}: {error.message}\n{error.advice}", file=sys.stderr)
        sys.exit(1)
