"""What runs in the containers: first process, health checks, gate, bill of materials, kits; and the lock's hashes."""

import asyncio
import json
import os
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dpfpl_client.site.settings import load_site
from dpfpl_common.config import build
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.processes import free_port
from dpfpl_models import embedded_model_path
from dpfpl_server.sites.provision import ProvisionRequest, provision

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become other users")


@pytest.fixture
def client(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("container/client")


@as_root
def test_a5_the_two_users_cannot_read_each_other(client: ModuleType, tmp_path: Path) -> None:
    """What /private does in the image: whatever the modes behind it, only the agent's group passes."""
    outer = tmp_path
    while outer != Path("/"):
        if outer.stat().st_uid == os.getuid() and outer.is_relative_to("/tmp"):
            outer.chmod(0o755) if outer != Path("/tmp") else None
        outer = outer.parent
    private = tmp_path / "private"
    private.mkdir()
    (private / "image.png").write_text("open to everybody")
    (private / "image.png").chmod(0o666)
    os.chown(private, 0, client.PRIVATE_GROUP)
    private.chmod(0o710)

    def read() -> str:
        try:
            return (private / "image.png").read_text()
        except PermissionError:
            return "refused"

    agent = client.User(10001, 10001, (client.PRIVATE_GROUP,))
    node = client.User(client.NODE_ID, client.NODE_ID)
    assert client._in_child(agent, read) == "open to everybody"
    assert client._in_child(node, read) == "refused"


@as_root
def test_s1_becoming_a_user_leaves_no_way_back(client: ModuleType) -> None:
    def look() -> str:
        status = Path("/proc/self/status").read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        try:
            os.setuid(0)
            back = "root again"
        except PermissionError:
            back = "no way back"
        return json.dumps(
            [found["Uid"].split(), int(found["CapEff"], 16), int(found["CapPrm"], 16), found["NoNewPrivs"], back]
        )

    assert json.loads(client._in_child(client.User(10002, 10002), look)) == [["10002"] * 4, 0, 0, "1", "no way back"]


@pytest.mark.parametrize(
    ("folder", "arguments", "advice"),
    [
        pytest.param("", [], "chown -R 10001:10001", marks=as_root, id="of root"),
        pytest.param("nothing", ["check"], "Mount the site's folder", id="missing"),
    ],
)
def test_a_site_folder_that_cannot_serve_is_refused_with_advice(
    client: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    folder: str, arguments: list[str], advice: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "SITE", tmp_path / folder)

    assert client.main(arguments) == 2
    assert advice in capsys.readouterr().err


def keep_running(client: ModuleType, code: str, enough: Callable[[], bool]) -> tuple[int, float]:
    """Result of the supervisor over ``python -c code``, asked to stop once ``enough``, and how long the stop took."""
    ours, theirs = socket.socketpair()
    returned, asked = threading.Event(), [0.0]

    def ask() -> None:
        deadline = time.monotonic() + 20
        while not enough() and time.monotonic() < deadline and not returned.wait(0.02):
            pass
        asked[0] = time.monotonic()
        ours.close()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        status = client._keep_running([sys.executable, "-c", code], theirs)
        ended = time.monotonic()
    finally:
        returned.set()
        asking.join()
        theirs.close()
    return status, ended - asked[0]


def test_f16_what_dies_is_started_again(client: ModuleType, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = (
        f"import os, time; open({str(starts)!r}, 'a').write('x')\n"
        f"len(open({str(starts)!r}).read()) > 1 and time.sleep(60)\nos.kill(os.getpid(), 9)"
    )

    status, _ = keep_running(client, code, lambda: starts.exists() and starts.read_text() == "xx")

    assert starts.read_text() == "xx"
    assert status == 0  # stopped, not failed


def test_a_refusal_is_not_tried_again(client: ModuleType, tmp_path: Path) -> None:
    starts = tmp_path / "starts"

    code = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(2)"
    status, _ = keep_running(client, code, lambda: False)

    assert (status, starts.read_text()) == (2, "x")


def test_f15_a_stop_asks_first_and_waits(client: ModuleType, tmp_path: Path) -> None:
    done, ready = tmp_path / "done", tmp_path / "ready"
    code = (
        "import signal, time, sys\n"
        f"def stop(*_):\n    open({str(done)!r}, 'w').write('tidy'); sys.exit(0)\n"
        f"signal.signal(signal.SIGTERM, stop); open({str(ready)!r}, 'w').write('ready'); time.sleep(60)"
    )

    status, seconds = keep_running(client, code, ready.exists)

    assert (status, done.read_text()) == (0, "tidy")
    assert seconds < 10


def test_agent_is_healthy_only_while_it_listens(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    health, address = script("container/health"), tmp_path / "a.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))

    assert health.main(["agent", f"unix:{address}"]) == 1
    listener.listen()
    assert health.main(["agent", f"unix:{address}"]) == 0
    listener.close()


def test_node_is_not_healthy_where_none_runs(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    health = script("container/health")
    monkeypatch.setattr(health, "_NODE_PROGRAM", b"no such program anywhere")

    assert health.main(["node", "-"]) == 1


def test_server_is_not_healthy_without_its_certificate(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    assert script("container/health").main(["server", str(tmp_path)]) == 1


def test_gate_passes_bytes_both_ways_and_to_nobody_else(script: Callable[[str], ModuleType]) -> None:
    gate = script("container/gate")

    async def talk() -> tuple[bytes, bytes]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read(100)).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        listen, second = free_port(), free_port()
        places = ((port, listen), (1, second))  # nobody is at port 1
        ways = [asyncio.ensure_future(gate.serve("127.0.0.1", target, place)) for target, place in places]
        await asyncio.sleep(0.3)
        answers = []
        for place in (listen, second):
            reader, writer = await asyncio.open_connection("127.0.0.1", place)
            writer.write(b"hello")
            answers.append(await asyncio.wait_for(reader.read(100), 5))
            writer.close()
        for way in ways:
            way.cancel()
        server.close()
        return answers[0], answers[1]

    assert asyncio.run(talk()) == (b"HELLO", b"")  # a server that is not there ends the connection


def test_s8_bill_of_materials_lists_what_is_installed(script: Callable[[str], ModuleType]) -> None:
    site_packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    bill = script("container/sbom").bill_of_materials("image", site_packages)
    found = {component["name"].lower(): component for component in bill["components"]}

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert found["flwr"]["purl"] == f"pkg:pypi/flwr@{found['flwr']['version']}"
    assert len(bill["components"]) > 50
    assert len({component["bom-ref"] for component in bill["components"]}) == len(bill["components"])


def test_the_simulations_experiment_is_valid_and_fits_the_embedded_model() -> None:
    """That it names this model's fingerprint is tested beside the model, which takes torch to load."""
    table = tomllib.loads((ROOT / "deploy/simulation/experiment.toml").read_text(encoding="utf-8"))
    experiment = build(Experiment, table, "experiment.toml")

    config = json.loads((embedded_model_path() / "config.json").read_text())
    assert experiment.model.width == config["text_config"]["hidden_size"]


def test_the_simulations_kits_are_filled_in_once(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("site-a",), "server"))
    fill_in = script("simulation/fill_in_kit").fill_in
    kit = tmp_path / "kits" / "site-a"

    fill_in(kit, 1, 3)
    once = (kit / "site.toml").read_text()
    fill_in(kit, 2, 3)

    settings = load_site(kit / "site.toml")
    assert (kit / "site.toml").read_text() == once
    assert (settings.data.source, settings.data.site_index, settings.data.num_sites) == ("digits", 1, 3)
    assert settings.server.address == "server:9092"
    assert settings.simulation is None  # real noise, although the data are public


def test_every_pin_of_the_lock_has_its_hash(script: Callable[[str], ModuleType]) -> None:
    def entry(name: str, digest: str | None) -> dict[str, object]:
        info = {"archive_info": {"hashes": {"sha256": digest}} if digest else {}}
        return {"metadata": {"name": name, "version": "1.0"}, "download_info": info}

    locked = script("lock").locked
    lines = locked({"install": [entry("b", "2" * 64), entry("A", "1" * 64)]})
    assert lines == [f"A==1.0 --hash=sha256:{'1' * 64}", f"b==1.0 --hash=sha256:{'2' * 64}"]
    with pytest.raises(ValueError, match="no SHA-256 of b"):
        locked({"install": [entry("b", None)]})
