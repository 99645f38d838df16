"""Real Flower processes on loopback: a SuperLink with TLS and node keys, SuperNodes, and a stub app instead of ours."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from federations import Server
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from running import Mark, alive, marked

from dpfpl_client.node.supernode import SuperNodeSettings, start_supernode, wait_until_connected
from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.guard import descendants
from dpfpl_common.ops.processes import ManagedProcess, wait_until
from dpfpl_server.sites.control import Control
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import node_ids
from dpfpl_server.sites.superlink import (
    register_sites,
    run_log,
    run_status,
    stop_run,
    submit_run,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SERVER_APP = """
import json, sys, time
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from dpfpl_server.flower_patches import bear_broken_connections

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    bear_broken_connections(grid)
    print("the stub server app says hello")
    nodes = {}
    while len(nodes) < int(context.run_config["nodes"]):
        nodes = {n.name: n.node_id for n in grid.get_nodes()}
        time.sleep(0.05)
    content = RecordDict({"c": ConfigRecord({"question": 42})})
    ids = set(grid.push_messages([Message(content, node, "train") for node in nodes.values()]))
    answers = {}
    while ids:
        for reply in grid.pull_messages(ids):
            ids.discard(reply.metadata.reply_to_message_id)
            answer = dict(reply.content["c"]) if reply.has_content() else str(reply.error)
            answers[str(reply.metadata.src_node_id)] = answer
        time.sleep(0.1)
    heavy = [m for m in sys.modules if m.split(".")[0] in ("torch", "dpfpl_client") or m == "stubapp.client"]
    result = {"nodes": nodes, "answers": answers, "heavy": heavy}
    Path(str(context.run_config["run-dir"])).write_text(json.dumps(result))
"""
CLIENT_APP = """
import os, sys
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message: Message, context: Context) -> Message:
    said = {
        "question": message.content["c"]["question"],
        "site": context.node_config["site-name"],
        "agent": context.node_config["agent-address"],
        "token": open(context.node_config["agent-token-file"]).read(),
        "telemetry": os.environ["FLWR_TELEMETRY_ENABLED"],
        "torch": "torch" in sys.modules,
    }
    return Message(RecordDict({"c": ConfigRecord(said)}), reply_to=message)
"""
BUNDLE = b"""
[project]
name = "stub"
version = "0.1.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "stubapp.server:app"
clientapp = "stubapp.client:app"
[tool.flwr.app.config]
run-dir = ""
nodes = 2
"""
LAUNCHER = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from running import MARK
from test_flower_processes import Federation
federation = Federation(Path(sys.argv[1]), sites=("solo",), mark={MARK: os.environ[MARK]})
with federation.group:
    federation.start()
    federation.submit(nodes=99)
    print("ready", flush=True)
    time.sleep(120)
"""


class Federation(Server):
    """A provisioned federation in one folder; the folder's name has characters that need care."""

    def __init__(self, root: Path, sites: tuple[str, ...], mark: Mark | None = None) -> None:
        super().__init__(root, sites)
        self.mark = mark or marked()
        package = root / "path" / "stubapp"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "server.py").write_text(SERVER_APP)
        (package / "client.py").write_text(CLIENT_APP)
        self.environment = {
            "PYTHONPATH": str(root / "path"),
            "DPFPL_NODE_PRELOAD": "stubapp.client",
            **self.mark,
        }

    def start(self) -> None:
        self.start_server(self.environment)
        nodes = [self.start_site(name, kit) for name, kit in self.kits.items()]
        for node in nodes:
            wait_until_connected(node)

    def start_site(self, name: str, kit: Path, ca: Path | None = None) -> ManagedProcess:
        state = self.root / f'state of "{name}"'
        state.mkdir(exist_ok=True)
        (state / "token").write_text("a token")
        settings = SuperNodeSettings(
            site_name=name,
            server_address=f"127.0.0.1:{self.fleet}",
            ca_certificate=ca or kit / "ca.crt",
            node_key=kit / "node.key",
            state_folder=state,
            agent_address=f"unix:{state}/agent.sock",
            agent_token_file=state / "token",
            poll_s=0.3,
            warm=name != "hospital-b",  # both ways, side by side
        )
        return start_supernode(settings, self.group, extra_environment=self.environment)

    def submit(self, nodes: int, remark: str = "") -> int:
        """Start a run; each other remark makes another bundle."""
        (self.root / "answer.json").unlink(missing_ok=True)
        config = {"run-dir": str(self.root / "answer.json"), "nodes": nodes}
        return submit_run(self.folder, config, bundle={"pyproject.toml": BUNDLE + f"# {remark}\n".encode()})

    def finish(self, run_id: int) -> None:
        wait_until(
            lambda: run_status(self.folder, run_id).finished,
            timeout_s=90,
            what="the run",
            processes=self.group.processes,
            interval_s=0.3,
        )

    def flower_home(self, site: str = "") -> Path:
        return (self.root / f'state of "{site}"' if site else self.folder) / "flower"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("it's a federation"), ("hospital-a", "hospital-b"))
    with federation.group:
        federation.start()
        yield federation
    assert alive(federation.mark) == {}


def test_a_message_reaches_every_site_and_comes_back(federation: Federation) -> None:
    run_id = federation.submit(nodes=2)
    federation.finish(run_id)
    assert run_status(federation.folder, run_id).completed, "".join(run_log(federation.folder, run_id))
    result = json.loads((federation.root / "answer.json").read_text())
    assert result["nodes"] == node_ids(federation.folder)  # Flower's node list carries the site's name
    assert result["heavy"] == []  # the server loads neither torch nor the client's app
    for name, node_id in result["nodes"].items():
        answer = result["answers"][str(node_id)]
        assert answer == {
            "question": 42,
            "site": name,
            "agent": f'unix:{federation.root}/state of "{name}"/agent.sock',
            "token": "a token",
            "telemetry": "0",
            "torch": False,
        }
    assert "the stub server app says hello" in "".join(run_log(federation.folder, run_id))


def unpacked(home: Path) -> int:
    return sum(path.is_dir() for path in (home / "apps").iterdir())


def run_once(federation: Federation, remark: str) -> str:
    """Run the stub to its end; what Flower says if it failed. ``dpfpl-server run`` would start another one."""
    run_id = federation.submit(nodes=len(federation.sites), remark=remark)
    federation.finish(run_id)
    status = run_status(federation.folder, run_id)
    return "" if status.completed else status.details or status.sub_status


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_R7_over_many_runs_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    """``DPFPL_TEST_RUNS`` runs of ever new bundles, then as many of one; a hundred of each unless given."""
    count = int(os.environ.get("DPFPL_TEST_RUNS", "100"))
    federation = Federation(tmp_path, sites=("hospital-a",))

    def size(folder: Path) -> int:
        return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())

    def look(runs: int) -> tuple[int, int]:
        site, server = federation.flower_home("hospital-a"), federation.flower_home()
        found = size(site), size(server)
        database = sum(file.stat().st_size for file in server.glob("superlink.db*"))
        print(
            f"R7 after {runs} runs: site {found[0]} bytes, {unpacked(site)} bundles; server {found[1]} bytes, "
            f"{unpacked(server)} bundles, database {database}",
            flush=True,
        )
        return found

    failed = []
    with federation.group:
        federation.start()
        for number in range(count):
            failed.append(run_once(federation, f"new {number}"))
            if number == 9:
                site_before = look(10)[0]
            elif number % 50 == 49:
                look(number + 1)
        site_then, server_then = look(count)
        assert site_then <= site_before + 4096
        assert unpacked(federation.flower_home("hospital-a")) <= 3
        for number in range(count):
            failed.append(run_once(federation, "the same"))
            if number % 50 == 49:
                look(count + number + 1)
        site_after, server_after = look(2 * count)
        assert site_after <= site_before + 4096
        assert unpacked(federation.flower_home()) <= count + 1
        assert server_after - server_then < 50_000 * count  # what Flower's database keeps of each run
        failed = [why for why in failed if why]
        print(f"R7: {len(failed)} of {2 * count} runs failed: {failed}")
        assert not failed
        federation.group.stop()
        federation.start_server(federation.environment)
        assert unpacked(federation.flower_home()) <= 3, "a start of the server removes the rest"


def test_a_run_can_be_stopped_and_the_sites_stay(federation: Federation) -> None:
    run_id = federation.submit(nodes=99)
    wait_until(lambda: run_status(federation.folder, run_id).status == "running", timeout_s=30, what="the run to start")
    assert stop_run(federation.folder, run_id)
    status = run_status(federation.folder, run_id)
    assert (status.finished, status.sub_status) == (True, "stopped")
    federation.group.check()


def test_unknown_run_configuration_is_refused(federation: Federation) -> None:
    with pytest.raises(DeploymentError) as caught:
        submit_run(federation.folder, {"no-such-key": 1}, bundle={"pyproject.toml": BUNDLE})
    assert caught.value.code == "CONTROL_REFUSED"


def test_registering_again_changes_nothing(federation: Federation) -> None:
    before = node_ids(federation.folder)
    assert register_sites(federation.folder) == before


def test_a_second_superlink_in_the_same_folder_is_refused(federation: Federation) -> None:
    with pytest.raises(DeploymentError) as caught:
        federation.start_server(federation.environment)
    assert caught.value.code == "ALREADY_RUNNING"


def test_U6_a_stranger_with_the_right_authority_is_refused(federation: Federation, tmp_path: Path) -> None:
    strange = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("hospital-a",))).kits["hospital-a"]
    process = federation.start_site("stranger", strange, ca=federation.kits["hospital-a"] / "ca.crt")
    with pytest.raises(DeploymentError) as caught:
        wait_until_connected(process, timeout_s=30)
    assert caught.value.code == "SITE_UNKNOWN"
    federation.group.processes.remove(process)


def test_a_control_port_of_another_authority_is_not_trusted(federation: Federation, tmp_path: Path) -> None:
    other = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("x",))).kits["x"]
    address = f"127.0.0.1:{federation.control}"
    with Control(address, other / "ca.crt", "secret") as control, pytest.raises(DeploymentError) as caught:
        control.nodes()
    assert caught.value.code == "CONTROL_UNREACHABLE"


def test_S9_a_stranger_on_the_machine_cannot_claim_a_task(federation: Federation) -> None:
    """The Runtime API is open to every user of the machine. Ours gives a task to its own executor alone; the other
    site runs Flower's command as it comes, which asks nobody who he is, so the question can be answered otherwise."""

    def ask(site: str, *interceptors: Any) -> str:
        (node,) = (p for p in federation.group.processes if p.name.endswith(site))
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        client = RuntimeHttpClient.from_server_address(
            server_address=f"127.0.0.1:{node.command[node.command.index('--port') + 1]}",
            insecure=True,
            root_certificates=None,
            interceptors=[version, *interceptors],
        )
        try:
            client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPStatusError as error:
            return f"refused, {error.response.status_code}"
        finally:
            client.close()
        return "answered"

    guess = SuperExecAuthHttpInterceptor(
        master_secret=b"guessed", protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    assert ask("hospital-b") == "answered"
    assert ask("hospital-a") == "refused, 401"
    assert ask("hospital-a", guess) == "refused, 401"


def test_a_warm_node_without_its_executor_ends_instead_of_swallowing_messages(federation: Federation) -> None:
    node = next(process for process in federation.group.processes if "warm_node" in " ".join(process.command))
    executor = descendants(node.pid)[-1]
    os.kill(executor, signal.SIGKILL)
    assert node.wait(15) is not None
    assert "executor ended" in node.log_text()
    federation.group.processes.remove(node)


def test_after_a_stop_nothing_is_left_and_a_new_start_keeps_the_node_ids(federation: Federation) -> None:
    """Runs last: it restarts the federation."""
    before, log = node_ids(federation.folder), federation.folder / "logs" / "superlink.log"
    assert len(alive(federation.mark)) >= 6  # per server and site: guard, Flower, SuperExec
    federation.group.stop()
    assert alive(federation.mark) == {}
    assert log.stat().st_size > 0
    federation.start_server(federation.environment)
    assert node_ids(federation.folder) == before


def test_no_flower_process_outlives_a_killed_launcher(tmp_path: Path) -> None:
    """One that is asked to end stops them as above; tests/common/test_processes.py has every signal."""
    mark = marked()

    def runs_at_work() -> int:
        """Each is a fork of the executor, which has the same command line."""
        executors = [line for line in alive(mark).values() if "sites.executor" in line and "guard.py" not in line]
        return len(executors) - 1

    beside = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "shared")]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path / "launched"), *beside],
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    wait_until(lambda: runs_at_work() == 1, timeout_s=20, what="a run to start")
    launcher.kill()
    launcher.wait(30)
    launcher.stdout.close()
    wait_until(lambda: not alive(mark), timeout_s=15, what="the last of them to end")
    assert (tmp_path / "launched" / "server" / "logs" / "superlink.log").stat().st_size > 0
