"""The Dockerfiles keep their promises."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VERSION = tomllib.loads((ROOT / "common/pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
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
    assert set(re.findall(r"https?://\S+", text)) <= {TORCH_INDEX}


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


def test_the_cpu_build_of_torch_is_found_without_preparation() -> None:
    (stage,) = (
        stage for stage in stages("client.Dockerfile") if stage.startswith("FROM build-base AS build-agent-base")
    )
    (command,) = (part for part in re.split(r"&&|;|\n", stage) if "--extra-index-url" in part)

    assert f"ARG TORCH=cpu\nARG TORCH_INDEX={TORCH_INDEX}\n" in stage
    assert command.split()[-1] == "torch"
    assert "--no-deps" in command  # no other package is ever looked for there
    assert "torch.version.cuda" in stage  # what was found is looked at


@pytest.mark.parametrize(("torch", "asked"), [("", 0), ("cpu", 1), ("gpu", 0)])
def test_make_setup_asks_the_index_of_cpu_builds_only_where_told(torch: str, asked: int) -> None:
    command = ["make", "-n", "-B", "setup", *([f"TORCH={torch}"] if torch else [])]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown.count(f"--extra-index-url {TORCH_INDEX}") == 1
    assert shown.count('[ "cpu" = cpu ]') == asked


@pytest.mark.parametrize("file", DOCKERFILES)
def test_images_carry_labels_and_a_version(file: str) -> None:
    for stage in stages(file):
        if "ENTRYPOINT" in stage:
            assert f"ARG VERSION={VERSION}\n" in stage
            for label in ("title", "description", "version", "revision", "created", "licenses"):
                assert f"org.opencontainers.image.{label}=" in stage


def test_nothing_starts_an_image_without_a_version() -> None:
    for path in (*(ROOT / "deploy").rglob("*.y*ml"), ROOT / "docker-compose.yml"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"image: .*?dpfpl-\w+(:[\w.]+)?", text)) <= {f":{VERSION}"}, path.name


def test_the_client_is_the_default_target() -> None:
    assert stages("client.Dockerfile")[-1].startswith("FROM common AS client")


def test_the_context_leaves_everything_out_but_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert "*" in lines
    assert {line for line in lines if line.startswith("!")} == {
        "!constraints.txt", "!LICENSE", "!common", "!models", "!client", "!server",
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
