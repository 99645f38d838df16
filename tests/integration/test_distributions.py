"""Each of the five distributions installs and imports alone, with nothing but what its own metadata declares.

Installing all third-party packages five times would take many minutes. Instead a wheel is looked at from a *view*: a
folder of links to exactly those installed third-party packages that its Requires-Dist closure names. A Python without
site-packages that gets the wheel and the view as its whole path sees what an empty environment would hold after
``pip install``. One real installation from the package index confirms it for the two that have no torch.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import textwrap
import venv
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import matplotlib
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dpfpl_bench
from dpfpl_bench.simulation.simulate import simulate
from installed_view import make_view

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {name: f"dpfpl_{name}" for name in ("common", "models", "client", "server", "bench")}
OURS = {f"dpfpl-{name}": name for name in PACKAGES}
HEAVY = {"torch", "transformers", "peft", "opacus"}

AGENT_ONLY = (
    "dpfpl_client.agent.build",
    "dpfpl_client.agent.core",
    "dpfpl_client.agent.features",
    "dpfpl_client.agent.ledger.dataset",
    "dpfpl_client.agent.ledger.view",
    "dpfpl_client.agent.metrics",
    "dpfpl_client.agent.pace",
    "dpfpl_client.agent.store",
    "dpfpl_client.agent.sums",
    "dpfpl_client.approval",
    "dpfpl_client.check",
    "dpfpl_client.data.",
    "dpfpl_client.doctor",
    "dpfpl_client.learning.",
    "dpfpl_client.models.",
    "dpfpl_client.use.",
)
"""Modules of the client that may need its extra [agent]; a name that ends in a dot stands for what is below it."""

BASE_CLIENT = (
    "dpfpl_client.agent.channel",
    "dpfpl_client.agent.endpoint",
    "dpfpl_client.node.app",
    "dpfpl_client.cli.main",
    "dpfpl_client.node.launch",
    "dpfpl_client.site.settings",
    "dpfpl_client.node.supernode",
    "dpfpl_client.node.warm_node",
)
"""What a SuperNode's environment, which has no torch, must be able to import."""

IMPORT_EVERYTHING = textwrap.dedent(
    """
    import importlib, json, pkgutil, sys

    path, package, left_out = json.loads(sys.argv[1])
    sys.path[:0] = path
    imported, failed = [], {}

    def attempt(name):
        try:
            importlib.import_module(name)
            imported.append(name)
        except BaseException as error:
            failed[name] = f"{type(error).__name__}: {error}"

    def is_left_out(name):
        return any(name.startswith(p) if p.endswith(".") else name == p for p in left_out)

    def walk(name):
        attempt(name)
        for found in pkgutil.iter_modules(getattr(sys.modules.get(name), "__path__", [])):
            inner = f"{name}.{found.name}"
            if is_left_out(inner) or found.name == "__main__":  # importing that one runs it
                continue
            walk(inner) if found.ispkg else attempt(inner)

    walk(package)
    loaded = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"imported": imported, "failed": failed, "loaded": loaded}))
    """
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built from the working tree with the environment's own hatchling."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / name) for name in PACKAGES]
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder))
    run([sys.executable, "-m", "pip", "wheel", *options, *sources])
    return {name: next(folder.glob(f"{package}-*.whl")) for name, package in PACKAGES.items()}


@pytest.fixture(scope="module")
def unpacked(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each wheel's files in a folder of its own; a pure wheel's content is what an installation copies."""
    folders = {}
    for name, wheel in wheels.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folders[name])
    return folders


@pytest.mark.parametrize(
    ("name", "extras", "left_out"),
    [
        ("common", (), ("dpfpl_common.secure.",)),
        ("common", ("secure",), ()),
        ("server", (), ()),
        ("client", (), AGENT_ONLY),
        ("client", ("agent",), ("dpfpl_client.data.dicom",)),
        ("client", ("agent", "dicom", "heic"), ()),
        ("bench", (), ("dpfpl_bench.simulation.flower_engine",)),
    ],
    ids=["common", "common[secure]", "server", "client", "client[agent]", "client[agent,dicom,heic]", "bench"],
)
def test_every_module_imports_with_only_what_the_metadata_declares(
    name: str, extras: tuple[str, ...], left_out: tuple[str, ...], unpacked: dict[str, Path], tmp_path: Path
) -> None:
    ours, third_party = closure(unpacked, name, extras)
    package = "dpfpl_client.data" if "dicom" in extras else PACKAGES[name]  # nothing else asks for those extras
    seen = import_everything(package, [unpacked[other] for other in sorted(ours)], third_party, left_out, tmp_path)

    assert seen["failed"] == {}
    assert len(seen["imported"]) > 5
    if (name, extras) == ("client", ()):
        assert set(BASE_CLIENT) - set(seen["imported"]) == set()
    if not ours & {"bench"} and "agent" not in extras:
        assert HEAVY.isdisjoint(third_party)
        assert HEAVY.isdisjoint(seen["loaded"])


def test_list_of_agent_only_modules_is_not_stale() -> None:
    source = ROOT / "client" / "src"
    modules = {".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.py")}

    for entry in AGENT_ONLY:
        assert any(name.startswith(entry) if entry.endswith(".") else name == entry for name in modules), entry


def test_common_knows_none_of_the_other_three(unpacked: dict[str, Path]) -> None:
    assert closure(unpacked, "common", ())[0] == {"common"}
    assert closure(unpacked, "client", ())[0] == {"common", "client"}
    assert closure(unpacked, "client", ("agent",))[0] == {"common", "models", "client"}
    assert closure(unpacked, "server", ())[0] == {"common", "server"}


def test_an_undeclared_dependency_is_noticed(unpacked: dict[str, Path], tmp_path: Path) -> None:
    """Breaks the thing on purpose: without this, a view that shows everything would pass all tests above."""
    package = tmp_path / "broken" / "dpfpl_common"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "greedy.py").write_text("import torch\n")
    _, third_party = closure(unpacked, "common", ())

    seen = import_everything("dpfpl_common", [tmp_path / "broken"], third_party, (), tmp_path)

    assert seen["failed"] == {"dpfpl_common.greedy": "ModuleNotFoundError: No module named 'torch'"}


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_imported_is_declared_by_ourselves(name: str, unpacked: dict[str, Path]) -> None:
    """A package that only comes along with another one may go when that one changes its mind."""
    ours, _ = closure(unpacked, name, all_extras(unpacked, name))
    declared = {requirement for other in ours for requirement in declared_by(unpacked[other])}
    providers = {"mlflow": ["mlflow-skinny"], **importlib.metadata.packages_distributions()}

    undeclared = defaultdict(list)
    for path, imported in imports_of(unpacked[name] / PACKAGES[name]):
        if imported in sys.stdlib_module_names or imported in {PACKAGES[other] for other in ours}:
            continue
        distributions = {canonicalize_name(d) for d in providers.get(imported, [imported])}
        if not distributions & declared:
            undeclared[imported].append(path.name)

    assert undeclared == {}


def test_wheels_hold_their_licence_typing_mark_and_own_package_only(wheels: dict[str, Path]) -> None:
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            files = archive.namelist()
            (metadata,) = [archive.read(f).decode() for f in files if f.endswith(".dist-info/METADATA")]

        assert "License-Expression: Apache-2.0" in metadata
        assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files)
        assert "Project-URL: " in metadata
        for version in ("3.11", "3.12", "3.13"):
            assert f"Classifier: Programming Language :: Python :: {version}\n" in metadata
        assert f"{PACKAGES[name]}/py.typed" in files
        assert {file.split("/")[0].split("-")[0] for file in files} == {PACKAGES[name]}


def test_no_wheel_but_that_of_the_models_holds_weights(wheels: dict[str, Path]) -> None:
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            weights = [file for file in archive.namelist() if file.endswith(".safetensors")]
        assert bool(weights) == (name == "models")
        assert name == "models" or wheel.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", PACKAGES)
def test_every_folder_has_the_projects_licence_and_a_readme_that_stands_alone(name: str) -> None:
    """What lies beside it in the repository is in no wheel."""
    assert (ROOT / name / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    readme = (ROOT / name / "README.md").read_text(encoding="utf-8")
    assert len(readme) > 600
    assert "one folder up" not in readme
    assert re.findall(r"\]\((?!https:)", readme) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_python_in_a_readme_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it simulates only for two rounds, and compared with nothing."""
    matplotlib.use("Agg")
    monkeypatch.setattr(dpfpl_bench, "simulate", partial(simulate, rounds=2, floors="none"))
    readme = (ROOT / name / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        exec(compile(block, f"{name}/README.md", "exec"), {})


def test_the_server_and_with_it_common_install_for_real_into_an_empty_environment(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    wanted = [str(wheels[name]) for name in ("common", "server")]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    run([*pip, "--constraint", str(ROOT / "constraints.txt"), *wanted], timeout=300)

    for package in ("dpfpl_common", "dpfpl_server"):
        shown = run([str(python), "-I", "-c", IMPORT_EVERYTHING, json.dumps([[], package, []])])
        assert json.loads(shown)["failed"] == {}
    listed = run([sys.executable, "-m", "pip", "--python", str(python), "list", "--format", "json"])
    assert HEAVY.isdisjoint(package["name"].lower() for package in json.loads(listed))


def import_everything(
    package: str, first: list[Path], third_party: Iterable[str], left_out: Iterable[str], folder: Path
) -> dict[str, list[str]]:
    """Import all modules of a package in a Python whose path is ``first`` and a view of ``third_party`` only."""
    view = folder / "view"
    make_view(view, third_party)
    arguments = [[*map(str, first), str(view)], package, list(left_out)]
    seen: dict[str, list[str]] = json.loads(
        run([sys.executable, "-I", "-S", "-c", IMPORT_EVERYTHING, json.dumps(arguments)])
    )
    return seen


def closure(unpacked: Mapping[str, Path], name: str, extras: Iterable[str]) -> tuple[set[str], set[str]]:
    """What ``pip install dpfpl-<name>[extras]`` brings: our own distributions, and others by canonical name."""
    seen: set[tuple[str, str]] = set()
    queue = [(f"dpfpl-{name}", extra) for extra in ("", *extras)]
    while queue:
        entry = queue.pop()
        if entry in seen:
            continue
        seen.add(entry)
        distribution, extra = entry
        for requirement in requirements(unpacked, distribution):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]
    found = {distribution for distribution, _ in seen}
    return {OURS[d] for d in found & set(OURS)}, found - set(OURS)


def requirements(unpacked: Mapping[str, Path], distribution: str) -> list[Requirement]:
    """Requires-Dist of one of our wheels, or of an installed third-party package."""
    metadata = (
        wheel_metadata(unpacked[OURS[distribution]])
        if distribution in OURS
        else importlib.metadata.distribution(distribution)
    )
    return [Requirement(text) for text in metadata.requires or []]


def declared_by(folder: Path) -> set[str]:
    """Canonical names of everything a wheel requires, whatever the extra."""
    return {canonicalize_name(Requirement(text).name) for text in wheel_metadata(folder).requires or []}


def all_extras(unpacked: Mapping[str, Path], name: str) -> tuple[str, ...]:
    """The extras of a wheel without those that the development environment leaves out."""
    offered = wheel_metadata(unpacked[name]).metadata.get_all("Provides-Extra") or []
    return tuple(extra for extra in offered if extra not in ("huggingface", "mlflow"))


def wheel_metadata(folder: Path) -> importlib.metadata.Distribution:
    (distribution,) = importlib.metadata.distributions(path=[str(folder)])
    return distribution


def imports_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """Top-level names that a package's modules import, also inside functions."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module.split(".")[0]


def run(command: list[str], timeout: float = 120) -> str:
    """Standard output of a command; its standard error is in the failure's message."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command[:6])} ...\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
