"""The three command lines alike: --version, python -m, a --help that loads nothing heavy and swallows no brackets."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer

import dpfpl_bench.cli
import dpfpl_client.cli.main
import dpfpl_server.cli.main
from dpfpl_bench.simulation import SHOWN
from dpfpl_bench.simulation.settings import RunSettings
from dpfpl_common.config import build

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "dpfpl_bench": dpfpl_bench.cli.app,
    "dpfpl_client": dpfpl_client.cli.main.app,
    "dpfpl_server": dpfpl_server.cli.main.app,
}
HEAVY = {"torch", "numpy", "flwr", "transformers", "pydantic", "PIL", "matplotlib"}

SLOW = {"dp_accounting", "scipy", "torch", "flwr"}


def typed(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_tells_its_version_also_as_a_module(program):
    done = typed("-m", program, "--version")
    name = program.replace("_", "-")
    assert (done.returncode, done.stdout) == (0, f"{name} {version(name)}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program):
    cli = "cli" if program == "dpfpl_bench" else "cli.main"
    source = f"import sys; sys.argv = ['x', '--help']; from {program}.{cli} import main\ntry: main()\n"
    done = typed("-c", source + f"finally: print('LOADED', sorted({HEAVY!r} & sys.modules.keys()))")
    assert "Usage" in done.stdout
    assert "LOADED []" in done.stdout


def test_who_only_predicts_waits_for_no_opacus():
    done = typed("-c", "import sys, dpfpl_client.use.predict; print('opacus' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("module", ["dpfpl_client.agent.ledger.view", "dpfpl_server.runs.state"])
def test_what_shows_a_state_waits_for_no_accountant(module):
    """dp-accounting takes more than a second, and is for those who compute an epsilon."""
    done = typed("-c", f"import sys, {module}; print('LOADED', sorted({SLOW!r} & sys.modules.keys()))")
    assert done.stdout == "LOADED []\n", done.stderr


def every_command(command, name):
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, f"{name} {child}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_brackets_in_help_are_shown(program, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    seen = 0
    for name, command in every_command(typer.main.get_command(PROGRAMS[program]), program):
        texts = [command.help or "", str(command.epilog or ""), *(str(getattr(p, "help", "")) for p in command.params)]
        wanted = set(re.findall(r"\[[a-z_.]+\]", " ".join(texts)))
        with click.Context(command, info_name=name) as context:
            shown = (command.get_help(context) or "") + capsys.readouterr().out
        assert {bracket for bracket in wanted if bracket not in shown} == set(), name
        seen += len(wanted)
    assert program != "dpfpl_bench" or seen > 0


def test_no_console_swallows_brackets():
    calls = [
        (path.name, call)
        for folder in ("bench/src", "client/src", "server/src", "research")
        for path in (ROOT / folder).rglob("*.py")
        for call in re.findall(r"(?<![\w.])(?:Console|TextColumn)\([^()]*\)", path.read_text())
    ]
    assert len(calls) > 10
    assert [call for call in calls if "markup=False" not in call[1] and "{task.completed" not in call[1]] == []


def test_the_defaults_that_help_shows_are_the_models():
    run = build(RunSettings, {"privacy": {"target_epsilon": 8.0}}, "")
    tables = (run, run.prompt, run.rounds, run.privacy)
    names = {"rounds": (run.rounds, "number"), "delta": (run.privacy, "target_delta")}
    for name, shown in SHOWN.items():
        table, key = names.get(name) or (next(t for t in tables if hasattr(t, name)), name)
        assert shown == str(getattr(table, key)), name


@pytest.mark.parametrize("call", ["models --family none-of-them", "scale --sites all"])
def test_a_measurement_starts_from_the_repository_alone(call):
    """Its imports are there although no test put folders on the path."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command, flag, value = call.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "research", command, flag, value], cwd=ROOT, env=bare, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"{flag} is" in done.stderr
