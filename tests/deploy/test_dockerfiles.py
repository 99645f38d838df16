"""The Dockerfiles keep their promises."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("server.Dockerfile", "client.Dockerfile")
QUIET = (
    "FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1",
    "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1",
)  # fmt: skip


def stages(file: str) -> list[str]:
    """The text of each stage, from its FROM on, comments taken out."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "deploy" / file).read_text(encoding="utf-8")).replace("\\\n", " ")
    return re.split(r"(?m)^(?=FROM )", text)[1:]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_it_builds_without_fetching_anything_but_packages(file: str) -> None:
    text = (ROOT / "deploy" / file).read_text(encoding="utf-8")

    assert "# syntax=" not in text
    assert not re.search(r"(?m)^ADD ", text)
    assert "--mount" not in text  # the older compose builds without BuildKit
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_every_installation_is_pinned(file: str) -> None:
    for stage in stages(file):
        for command in re.split(r"&&|\n", stage):
            if "-m pip" in command and " install" in command and "--no-deps" not in command:
                assert "-c /wheels/constraints.txt" in command, command


@pytest.mark.parametrize(
    ("file", "name", "user"),
    [
        ("server.Dockerfile", "FROM scratch", "10001:10001"),
        ("client.Dockerfile", "FROM common AS supernode", "10001:10001"),
        ("client.Dockerfile", "FROM common AS agent", "10001:10003"),
        ("client.Dockerfile", "FROM common AS client", "0:0"),  # becomes two others before anything else runs
    ],
)
def test_images_say_their_user_and_their_health(file: str, name: str, user: str) -> None:
    (stage,) = (stage for stage in stages(file) if stage.startswith(name) and "ENTRYPOINT" in stage)

    assert re.search(rf"(?m)^USER {user}$", stage)
    assert "HEALTHCHECK" in stage
    assert not re.search(r"(?m)^RUN", stage), "a last stage only copies: what it ran would need what strip.sh took out"


@pytest.mark.parametrize("file", DOCKERFILES)
def test_s4_images_are_quiet(file: str) -> None:
    (stage,) = (stage for stage in stages(file) if "FROM scratch" in stage)

    assert all(setting in stage for setting in QUIET)


def test_the_client_is_the_default_target() -> None:
    assert stages("client.Dockerfile")[-1].startswith("FROM common AS client")


def test_the_context_leaves_everything_out_but_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert "*" in lines
    assert {line for line in lines if line.startswith("!")} == {
        "!constraints.txt", "!LICENSE", "!common", "!client", "!server",
        "!deploy/container", "!deploy/wheels", "!deploy/models",
    }  # fmt: skip


def test_torch_is_not_among_what_server_and_supernode_need(script: Callable[[str], ModuleType]) -> None:
    requirements = script("container/requirements").requirements

    for wanted in (["common", "server"], ["common", "client"]):
        assert not any(re.match(r"torch|transformers|opacus|peft", need) for need in requirements(ROOT, wanted))
    assert any(need.startswith("torch") for need in requirements(ROOT, ["client[agent]"]))
    assert not any(need.startswith("dpfpl") for need in requirements(ROOT, ["client[agent]", "server"]))


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").rglob("*.sh"), key=str), ids=lambda path: path.name)
def test_shell_scripts_can_be_read(path: Path) -> None:
    subprocess.run(["bash" if "bash" in path.read_text().splitlines()[0] else "sh", "-n", str(path)], check=True)
