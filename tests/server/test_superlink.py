"""What the SuperLink is started with, without starting one (see tests/integration for that)."""

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from server_samples import FakeControl

from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.processes import ProcessGroup, free_port
from dpfpl_server.sites import superlink
from dpfpl_server.sites.control import Control, bundle_files
from dpfpl_server.sites.provision import ProvisionRequest, provision
from dpfpl_server.sites.register import load_sites, node_ids, save_sites
from dpfpl_server.sites.superlink import (
    SuperLinkSettings,
    open_control,
    register_sites,
    start_superlink,
    superlink_command,
    superlink_environment,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a", "b")))
    return tmp_path / "server"


def test_the_command_has_tls_and_node_authentication_and_installs_nothing(folder: Path) -> None:
    command = superlink_command(SuperLinkSettings(folder, "0.0.0.0:9092", 8123))
    options = dict(zip(command, [*command[1:], ""], strict=True))
    assert "--insecure" not in command
    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert options["--ssl-certfile"] == str(folder / "server.crt")
    assert options["--ssl-keyfile"] == str(folder / "server.key")
    assert options["--ssl-ca-certfile"] == str(folder / "ca.crt")
    assert options["--host"] == "127.0.0.1"  # whoever reaches the Control API may start runs
    assert options["--port"] == "8123"
    assert options["--fleet-api-type"] == "grpc-rere"


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_without_certificates_there_is_no_server(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DeploymentError, match=name) as caught:
        superlink_command(SuperLinkSettings(folder))
    assert caught.value.code == "NOT_PROVISIONED"


def test_flowers_files_stay_in_the_servers_folder_and_it_stays_quiet(folder: Path) -> None:
    environment = superlink_environment(SuperLinkSettings(folder, task_poll_s=0.2), {"MORE": "1"})
    assert environment["FLWR_HOME"] == str(folder.resolve() / "flower")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["DPFPL_TASK_POLL_S"] == "0.2"
    assert environment["MORE"] == "1"


def test_a_taken_port_is_an_error_and_nothing_is_started(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, ProcessGroup() as group:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeploymentError, match=address) as caught:
            start_superlink(SuperLinkSettings(folder, address, free_port()), group)
        assert caught.value.code == "PORT_TAKEN"
        assert group.processes == []
    assert not (folder / "flower").exists()


@pytest.mark.parametrize("address", ["9092", "host", "host:", "host:x", ":9092", "host:70000"])
def test_a_fleet_address_is_host_and_port(folder: Path, address: str) -> None:
    with ProcessGroup() as group, pytest.raises(ConfigError, match="host:port"):
        start_superlink(SuperLinkSettings(folder, address, free_port()), group)


def test_commands_without_a_superlink_say_what_to_do(folder: Path) -> None:
    with pytest.raises(DeploymentError, match="dpfpl-server start") as caught:
        open_control(folder)
    assert caught.value.code == "NOT_STARTED"
    with (
        Control(f"127.0.0.1:{free_port()}", folder / "ca.crt", "secret") as control,
        pytest.raises(DeploymentError, match="dpfpl-server start") as caught,
    ):
        control.nodes()
    assert caught.value.code == "CONTROL_UNREACHABLE"


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()
    monkeypatch.setattr(superlink, "open_control", lambda _folder: fake)
    return fake


def test_registering_is_idempotent_and_keeps_node_ids(folder: Path, running: FakeControl) -> None:
    first = register_sites(folder)
    assert sorted(first) == ["a", "b"]
    assert register_sites(folder) == first == node_ids(folder)
    assert {node.name: node.node_id for node in running.nodes()} == first


def test_old_keys_and_removed_sites_lose_their_access(folder: Path, running: FakeControl) -> None:
    register_sites(folder)
    provision(ProvisionRequest(folder, folder.parent / "kits", ("a",), force=True))
    sites = load_sites(folder)
    del sites["b"]
    save_sites(folder, sites)
    assert list(register_sites(folder)) == ["a"]
    assert [node.public_key for node in running.nodes()] == [sites["a"].public_key]


def test_the_bundle_is_a_pointer_to_the_installed_apps() -> None:
    bundle = tomllib.loads(bundle_files()["pyproject.toml"].decode())
    app = bundle["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "dpfpl_server.federation.app:app",
        "clientapp": "dpfpl_client.node.app:app",
    }
    assert app["config"] == {"run-dir": ""}
    assert bundle["project"]["dependencies"] == []  # nothing is ever installed at run time


def test_flower_builds_the_bundle_without_the_client_and_without_torch() -> None:
    """The server's machine has neither the client package nor torch."""
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['dpfpl_client'] = None\n"
        "from dpfpl_server.sites.control import bundle_files\n"
        "from dpfpl_server.sites.control import build_fab_from_files\n"
        "import dpfpl_server.sites.superlink\n"
        "print(len(build_fab_from_files(bundle_files())[0]))\n"
    )
    built = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert int(built.stdout) > 300, built.stderr
