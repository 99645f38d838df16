"""Sets up a site whose agent and SuperNode are two users, lets hostile code loose as the latter, tells what happened.

Run as root in a mount namespace of its own (``in_namespace.sh``), which has the two users and nothing else to undo.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import dpfpl_client
from dpfpl_client.agent.channel import AgentChannel
from dpfpl_client.node import launch
from dpfpl_client.node.supernode import SuperNodeSettings
from dpfpl_client.node.supernode import _environment as node_environment
from dpfpl_client.site.separation import check_separation, identities
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DeploymentError, DpfplError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import ProcessGroup, free_port
from dpfpl_common.wire.agent_pb2 import Reply
from dpfpl_common.wire.codec import encode_request
from dpfpl_common.wire.payloads import TrainRequest
from dpfpl_server.sites.provision import ProvisionRequest, provision

HERE = Path(__file__).parent
CALL = """
import sys
import numpy as np
from pathlib import Path
from dpfpl_client.agent.channel import AgentChannel
from dpfpl_common.experiment import parse_experiment
from dpfpl_common.wire.agent_pb2 import Reply
from dpfpl_common.wire.codec import encode_request
from dpfpl_common.wire.payloads import TrainRequest
of = parse_experiment(sys.argv[1])
request = encode_request(TrainRequest(of, 1, np.zeros(of.context_shape, "<f4"), False))
with AgentChannel(sys.argv[2], Path(sys.argv[3]), 60.0) as agent:
    print("round", Reply.FromString(agent.forward("Train", request.SerializeToString(deterministic=True))).reply.round)
"""
ASK = """
import sys, urllib.request, urllib.error
for path in ("/health", "/metrics"):
    request = urllib.request.Request(f"http://{sys.argv[1]}{path}", headers={"Authorization": f"Bearer {sys.argv[2]}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            print(answer.status, answer.read().decode().replace(chr(10), " "))
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().replace(chr(10), " "))
"""


def asked(address, user, token=""):
    """What the agent's monitor answers to a user: /health and /metrics, each with its status."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address, token], user=user.uid, group=user.gid, extra_groups=user.groups,
        check=True, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    return done.stdout.splitlines()


def images(folder):
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name, level in (("bright", 180), ("dark", 20)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (level + random.integers(0, 60, (24, 24, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def refusal(call):
    try:
        call()
    except DpfplError as error:
        return {"code": error.code, "message": error.message}
    return {"code": "", "message": ""}


def client(*arguments):
    return subprocess.run([sys.executable, "-m", "dpfpl_client", *map(str, arguments)], check=True, capture_output=True)


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def main():
    root = Path(sys.argv[1])
    told = {}
    port = free_port()
    kit = provision(ProvisionRequest(root / "server", root / "kits", ("north",), port=port)).kits["north"]
    (root / "kits").chmod(0o755)
    images(root / "data")
    site_file = kit / "site.toml"
    client("init", "--data", root / "data", "--site", site_file)
    shutil.copy(kit / "agent.key", kit / "aggregation.key")
    monitor = f"127.0.0.1:{free_port()}"
    site_file.write_text(site_file.read_text() + f'\n[monitoring]\naddress = "{monitor}"\n')
    client("separate", "--site", site_file, "--agent-user", "dpfpl-a", "--node-user", "dpfpl-n")
    settings = load_site(site_file)
    told["open images"] = refusal(lambda: check_separation(site_file, settings))
    agent_user, node_user = identities(settings)
    for place, folders, files in os.walk(root / "data"):
        for name in (*folders, *files, "."):
            os.chown(Path(place) / name, agent_user.uid, agent_user.gid)
    (root / "data").chmod(0o700)
    told["closed images"] = refusal(lambda: check_separation(site_file, settings))
    (kit / "policy.toml").chmod(0o644)
    told["open policy"] = refusal(lambda: check_separation(site_file, settings))
    client("separate", "--site", site_file, "--agent-user", "dpfpl-a", "--node-user", "dpfpl-n")
    os.environ["CLOUD_TOKEN"] = "secret"  # of the administrator who starts the site

    node = SuperNodeSettings(
        "north", settings.server.address, kit / "ca.crt", kit / "node.key", settings.node_folder,
        settings.agent_address, settings.token_file, user=(node_user.uid, node_user.gid, node_user.groups),
        control_folder=kit / "control",
    )  # fmt: skip
    with ProcessGroup() as group, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            agent = launch.start_agent(site_file, settings, group)
            launch.wait_for_agent(agent, settings)
            supernode = launch.start_node(settings, group)
        except DeploymentError as error:
            raise SystemExit(str(error)) from error
        agent_pid = descendants(agent.pid)[0]
        until(lambda: len(descendants(supernode.pid)) >= 2, 20)

        def owners(pids):
            places = [Path(f"/proc/{pid}") for pid in pids]
            return {place.stat().st_uid for place in places if place.exists()}

        told["owners"] = {
            "agent": owners([agent_pid]) == {agent_user.uid},
            "supernode": owners(descendants(supernode.pid)) == {node_user.uid},
        }
        told["modes"] = {
            name: oct((kit / name).stat().st_mode & 0o7777)
            for name in (
                "run",
                "run/agent.sock",
                "run/agent.token",
                "node.key",
                "agent.key",
                "aggregation.key",
                "state",
                "control/logs",
                "policy.toml",
            )
        }
        common = {"environment": node_environment(node, None), "user": node.user, "folder": settings.node_folder}
        of = Experiment(
            name="pilot",
            classes=("bright", "dark"),
            sites=("north", "south"),
            model=ModelSettings(width=128),
            prompt=PromptSettings(num_context=4, rank=2),
            privacy=PrivacySettings(mechanism="per_step", noise_multiplier=8.0, nominal_site_size=8),
            rounds=RoundSettings(number=2, local_steps=1),
        )
        honest = group.start(
            "honest code",
            [sys.executable, "-c", CALL, of.to_json(), settings.agent_address, str(settings.token_file)],
            log_file=kit / "control/logs/honest.log",
            **common,
        )
        honest.wait(90)
        told["honest"] = honest.log_text().strip()
        hostile = group.start(
            "hostile code",
            [
                sys.executable, str(HERE / "hostile_code.py"), str(kit), str(root / "data"), str(agent_pid),
                str(listener.getsockname()[1]), str(Path(dpfpl_client.__file__).parent),
            ],
            log_file=kit / "control/logs/hostile.log",
            **common,
        )  # fmt: skip
        hostile.wait(60)
        told["hostile"] = json.loads(hostile.log_text().strip().splitlines()[-1])
        told["agent lives"] = agent.poll() is None
        request = encode_request(TrainRequest(of, 1, np.zeros(of.context_shape, "<f4"), evaluate=False))
        with AgentChannel(settings.agent_address, settings.token_file, 30.0) as channel:
            again = Reply.FromString(channel.forward("Train", request.SerializeToString(deterministic=True)))
        told["agent answers"] = again.reply.round
        token = (settings.state_folder / "metrics.token").read_text().strip()
        told["monitor as the SuperNode's user"] = asked(monitor, node_user)
        told["monitor with its token"] = asked(monitor, agent_user, token)
        policy = kit / "policy.toml"
        kept = policy.read_text()
        lines = [line for line in kept.splitlines() if not line.startswith("max_epsilon_lifetime")]
        policy.write_text("\n".join(["max_epsilon_lifetime = 0.001", *lines]) + "\n")
        told["monitor, nothing left"] = asked(monitor, node_user)
        policy.write_text(kept)
        told["monitor, mended"] = asked(monitor, node_user)

    def left():
        return [p for p in Path("/proc").glob("[0-9]*") if p.exists() and p.stat().st_uid in (64001, 64002)]

    told["nothing left"] = until(lambda: not left(), 5)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
