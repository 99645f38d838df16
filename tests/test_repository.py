"""What the repository as a whole promises: links that lead somewhere, no secrets, no dangerous calls, no telemetry."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpfpl_common.config import build
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.telemetry import quiet_environment
from dpfpl_models import embedded_model_path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = ("common", "models", "client", "server", "bench")

SECRETS = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20}"),
    "a cloud key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a hub or forge token": re.compile(r"\b(?:hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{30}|github_pat_\w{30})"),
}
ENTRY_POINTS = (
    "dpfpl_client.node.app",
    "dpfpl_client.cli.main",
    "dpfpl_client.node.warm_node",
    "dpfpl_server.federation.app",
    "dpfpl_server.cli.main",
    "dpfpl_bench.cli",
)
GENERATED = {
    ROOT / "docs" / name
    for name in ("contributing.md", *(f"reference/{page}.md" for page in ("cli", "settings", "errors", "api/common")))
}
"""Pages that ``make docs`` makes of the code (docs/reference.py)."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def sources() -> list[Path]:
    """Every hand-written Python file of the five distributions and what lies beside them."""
    return sorted(
        path for name in DISTRIBUTIONS for path in (ROOT / name).rglob("*.py") if not path.stem.endswith("_pb2")
    )


def text_files() -> Iterator[Path]:
    """Everything that a commit would hold, except binary files."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            yield path


@pytest.mark.parametrize(
    "document",
    sorted(str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))),
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        aim = (path.parent / target).resolve()
        assert aim.exists() or aim in GENERATED, f"{document} links to {target}"


@pytest.mark.parametrize("document", ["README.md", "README.ja.md"])
def test_the_readmes_stay_short(document: str) -> None:
    assert len((ROOT / document).read_text(encoding="utf-8")) <= 6000


def test_example_experiment_of_the_tutorial_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/tutorials/two-machines.md").read_text(), flags=re.DOTALL)
    experiment = build(Experiment, tomllib.loads(block), "experiment.toml")
    model = json.loads((embedded_model_path() / "config.json").read_text())

    assert experiment.model.width == model["text_config"]["hidden_size"]


@pytest.mark.parametrize("what", SECRETS)
def test_no_secret_in_the_repository(what: str) -> None:
    holders = [str(p.relative_to(ROOT)) for p in text_files() if SECRETS[what].search(p.read_text(errors="ignore"))]

    assert holders == []


def test_git_ignores_no_source() -> None:
    """A pattern such as ``runs/`` hides a package of this name too, from git and from what builds the wheels."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", *DISTRIBUTIONS]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")

    assert [name for name in ignored if "/src/" in name and "__pycache__" not in name and ".egg-info" not in name] == []


def test_no_dangerous_call_in_the_sources() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {problem}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if (problem := danger(node))
    ]

    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "yaml.load(text)",
    ],
)
def test_dangerous_calls_would_be_found(code: str) -> None:
    assert any(danger(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "np.load(file, allow_pickle=False)", "json.load(file)"])
def test_harmless_calls_are_let_be(code: str) -> None:
    assert not any(danger(node) for node in ast.walk(ast.parse(code)))


def danger(node: ast.AST) -> str:
    """What is dangerous about this piece of code; empty if nothing is."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        hit = {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
        return f"imports {hit.pop()}" if hit else ""
    if not isinstance(node, ast.Call):
        return ""
    called = ast.unparse(node.func)
    if called in {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load"}:
        return f"calls {called}"
    for keyword in node.keywords:
        risky = keyword.arg in {"shell", "trust_remote_code", "allow_pickle"}
        if risky and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            return f"passes {keyword.arg}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_entry_point_switches_telemetry_off(module: str) -> None:
    """In a fresh process with a clean environment: after the import, whatever was imported on the way is quiet."""
    code = (
        "import importlib, json, os, sys; importlib.import_module(sys.argv[1]);"
        "from dpfpl_common.ops.telemetry import quiet_environment;"
        "loud = {k: os.environ.get(k) for k, v in quiet_environment().items() if os.environ.get(k) != v};"
        "flower = sys.modules.get('flwr.supercore.telemetry');"
        "print(json.dumps([loud, getattr(flower, 'FLWR_TELEMETRY_ENABLED', '0')]))"
    )
    clean = {key: value for key, value in os.environ.items() if key not in QUIET}
    done = subprocess.run(
        [sys.executable, "-c", code, module], env=clean, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == '[{}, "0"]'


def test_quiet_environment_holds_what_matters() -> None:
    assert QUIET.items() <= quiet_environment().items()


def test_what_tests_share_has_a_name_of_its_own() -> None:
    """One process runs them all: of two modules with one name the second would get the first."""
    shared = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("test_", "conftest", "__"))]
    names = [path.name for path in shared if "compose" not in path.parts]  # those run in containers
    assert sorted(names) == sorted(set(names))


def test_constraints_pin_everything_exactly_and_nothing_of_ours() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]

    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert len(names) == len(lines)
    assert {"flwr", "torch", "numpy", "grpcio", "dp-accounting", "pytest"} <= names
    assert not any(name.startswith("dpfpl") for name in names)
