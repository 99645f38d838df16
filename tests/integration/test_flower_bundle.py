"""What a Flower user does first: ``flwr run deploy/bundle``, and our strategy in a ServerApp of their own."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from running import command_line

from dpfpl_bench.simulation.in_process import InProcessGrid, prepare_sites
from dpfpl_bench.simulation.run import sites_data
from dpfpl_bench.simulation.settings import build_experiment
from dpfpl_bench.simulation.simulate import make_request
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.keys import SigningAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.config import to_table
from dpfpl_common.ops.processes import free_ports
from dpfpl_server.sites.register import Site, save_sites

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "deploy" / "bundle"
GUIDE = ROOT / "docs" / "howto" / "flower.md"


def processes_with(words):
    """Ids of the processes whose command line holds all of these words."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if {word.encode() for word in words} <= set(command_line(pid).split(b"\0"))]


def test_the_bundle_is_what_flowers_hub_asks_for():
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(BUNDLE))) as fab:
        assert {"pyproject.toml", "LICENSE"} <= set(fab.namelist())
        project = tomllib.loads(fab.read("pyproject.toml").decode())["project"]
        assert fab.read("LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert any(re.match(r"flwr(\[.*\])?>=", dependency) for dependency in project["dependencies"])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(420)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra [flower] is not installed")
def test_flwr_run_simulates_and_says_so(tmp_path):
    port, other = map(str, free_ports(2))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_LOCAL_CONTROL_API_PORT": other,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    try:
        ran = subprocess.run(
            ["flwr", "run", str(BUNDLE), "--stream", "-c", "rounds=2"],
            env=environment, capture_output=True, text=True, timeout=360,
        )  # fmt: skip
    finally:
        for process in processes_with(["--port", port]):
            os.kill(process, signal.SIGTERM)
        end = time.monotonic() + 30
        while (left := processes_with(["--port", port])) and time.monotonic() < end:
            time.sleep(0.2)
    output = ran.stdout + ran.stderr
    assert ran.returncode == 0, output
    assert "A simulation: 2 sites on this machine share the images of digits" in output
    assert "round 2/2" in output, output
    assert re.search(r"anyone who receives a site's personalised prompt +8\.00 +1e-05", output)
    assert "Answers left out: 0" in " ".join(output.split())
    assert "seeded: a simulation, no protection of real data" in output
    assert not left


def test_the_guides_server_app_runs_our_strategy_and_reads_the_evidence(tmp_path, capsys):
    """The guide's own lines, over two sites whose agents sign."""
    (source,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    request = make_request("digits", sites=2, rounds=2, floors="none")
    backbone = load_backbone("embedded")
    names, classes, data = sites_data(request, lambda text: None)
    dealt = prepare_sites(data, classes, FeatureCache(None, backbone), names)
    experiment = build_experiment("guide", request, backbone, classes, dealt)
    agents, register = {}, {}
    for node, site in enumerate(dealt, start=1):
        key = Ed25519PrivateKey.generate()
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        agent = SiteAgent(site.name, backbone, site.features, None, Ledger(None), MemoryStore(), SeededRandomness(0))
        agents[site.name] = SigningAgent(agent, key)
        register[site.name] = Site(site.name, "", "", node_id=node, agent_key=line)
    save_sites(tmp_path, register)
    (tmp_path / "experiment.toml").write_text(tomli_w.dumps(to_table(experiment)), encoding="utf-8")
    config = {"experiment": str(tmp_path / "experiment.toml"), "server": str(tmp_path)}

    made = {}
    exec(compile(source, str(GUIDE), "exec"), made)
    made["app"](InProcessGrid(agents), Context(1, 1, {}, RecordDict(), config))

    said = capsys.readouterr().out
    assert "ROUND_DONE 2" in said
    assert f"shared prompt {experiment.context_shape}" in said
    (found,) = re.findall(r"^found (.*)$", said, re.MULTILINE)
    assert set(found.split(", ")) == set(classes)
