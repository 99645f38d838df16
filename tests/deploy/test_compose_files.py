"""The compose files keep their promises: hardened by default, and written for both compose generations."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ("docker-compose.yml", "deploy/server/compose.yml", "deploy/site/compose.yml", "deploy/site/compose.split.yml")
ABSENT = {"version", "name", "configs", "include"}
"""What docker-compose 1.29 or docker compose 2 would refuse or warn of."""
ALLOWED_CAPABILITIES = {
    ("docker-compose.yml", "provision"): {"CHOWN", "SETUID", "SETGID"},
    ("docker-compose.yml", "site-a"): {"SETUID", "SETGID"},
    ("docker-compose.yml", "site-b"): {"SETUID", "SETGID"},
    ("deploy/site/compose.yml", "client"): {"SETUID", "SETGID"},
}
IMAGES = "/private/data"


def load(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))


def services() -> list[tuple[str, str]]:
    return [(file, name) for file in FILES for name in load(file)["services"]]


def targets(service: dict[str, Any]) -> dict[str, bool]:
    """Mount points, and whether each can be written to. A default of a variable may hold a colon."""
    mounts = {}
    for mount in service.get("volumes", []):
        place, *mode = re.sub(r"\$\{[^}]*\}", "VARIABLE", mount).split(":")[1:]
        mounts[place] = "ro" not in mode
    return mounts


@pytest.mark.parametrize("file", FILES)
def test_both_compose_generations_can_read_it(file: str) -> None:
    content = load(file)

    assert not ABSENT & content.keys()
    for service in content["services"].values():
        assert "init" not in service  # needs a program that Debian's engine does not bring along
        assert "dockerfile_inline" not in service.get("build", {})


@pytest.mark.parametrize(("file", "name"), services())
def test_s1_every_service_is_hardened(file: str, name: str) -> None:
    service = load(file)["services"][name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) == ALLOWED_CAPABILITIES.get((file, name), set())
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert 0 < service["pids_limit"] <= 512
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert not service.keys() & {
        "privileged",
        "pid",
        "ipc",
        "userns_mode",
        "devices",
        "sysctls",
        "env_file",
        "environment",
    }
    assert service.get("network_mode", "") in ("", "none", "service:server")
    assert "docker.sock" not in str(service)


def test_only_the_operators_port_is_published() -> None:
    published = {(file, name): load(file)["services"][name].get("ports") for file, name in services()}

    assert {key: ports for key, ports in published.items() if ports} == {
        ("deploy/server/compose.yml", "server"): ["${DPFPL_PORT:-9092}:9092"]
    }


@pytest.mark.parametrize("file", FILES)
def test_s2_networks_of_sites_have_no_way_out(file: str) -> None:
    content = load(file)
    closed = {
        name
        for name, network in content["networks"].items()
        if network.get("internal") and network["driver_opts"]["com.docker.network.bridge.inhibit_ipv4"] == "true"
    }

    for name, service in content["services"].items():
        if name in ("client", "supernode", "site-a", "site-b", "site-c-node"):
            assert set(service["networks"]) <= closed, name
            assert service["dns"] == ["127.0.0.1"], name
        if name.endswith("agent"):
            assert service["network_mode"] == "none", name


@pytest.mark.parametrize("file", FILES)
def test_s3_images_are_mounted_read_only_and_beside_the_agent_only(file: str) -> None:
    for name, service in load(file)["services"].items():
        mounts = targets(service)
        if "agent" in name or name == "client":
            assert mounts.get(IMAGES, False) is False, name
        if any(word in name for word in ("node", "gate", "server", "experiment")):
            assert not any(place.startswith("/private") for place in mounts), name


def test_s3_the_split_agent_gets_no_node_key_and_the_supernode_no_agent_key() -> None:
    split = load("deploy/site/compose.split.yml")
    agent, supernode = split["services"]["agent"], split["services"]["supernode"]

    assert "node.key" not in str(agent["volumes"])
    assert "/private/site" not in targets(agent)  # the kit as a whole, which holds the node key
    assert supernode["secrets"] == ["site.toml", "ca.crt", "node.key"]
    assert "agent.key" not in str(supernode)


def test_provisioning_is_a_service_that_completes() -> None:
    content = load("docker-compose.yml")["services"]

    assert content["provision"]["restart"] == "no"
    assert "sleep" not in (ROOT / "deploy/simulation/provision.sh").read_text(encoding="utf-8")
    for name, service in content.items():
        condition = service.get("depends_on", {}).get("provision", {}).get("condition")
        assert condition in (None, "service_completed_successfully"), name


def test_what_builds_an_image_starts_before_what_only_uses_it() -> None:
    """docker-compose 1.29 builds or pulls one service after another, by ``depends_on`` and then by their place."""
    content = load("docker-compose.yml")["services"]

    def needs(name: str) -> set[str]:
        direct = content[name].get("depends_on", {}).keys()
        return {*direct, *(further for each in direct for further in needs(each))}

    builders = {service["image"]: name for name, service in content.items() if "build" in service}
    for name, service in content.items():
        builder = builders[service["image"]]
        assert name not in needs(builder), name
        assert builder in needs(name) or list(content).index(builder) <= list(content).index(name), name


def test_nothing_holds_a_password() -> None:
    for file in FILES:
        assert not re.search(r"(?i)passw|token\s*[:=]|secret\s*[:=]", (ROOT / file).read_text(encoding="utf-8")), file
