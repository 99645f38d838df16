"""``dpfpl-server``: help with examples, JSON for scripts, one clear line and exit code 2 for what a user can cause."""

import json
import sys

import numpy as np
import pytest
from report_samples import make_result
from typer.testing import CliRunner

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server import cli
from dpfpl_server.run import finish
from dpfpl_server.run_folder import Checkpoint, RunFolder

COMMANDS = ("provision", "start", "run", "resume", "status", "report", "roi-template")


def dpfpl_server(monkeypatch, capfd, *arguments):
    """Exit code, stdout and stderr of the installed command's entry point."""
    monkeypatch.setattr(sys, "argv", ["dpfpl-server", *map(str, arguments)])
    monkeypatch.setattr(cli, "console", cli.Console(stderr=True, width=200))
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def runs(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(
        Experiment(
            name="pilot",
            classes=("cat", "dog"),
            sites=("north", "south"),
            model=ModelSettings(width=8),
            privacy=PrivacySettings(noise_multiplier=1.0),
            rounds=RoundSettings(number=2),
        )
    )
    return folder


def complete(folder):
    zeros = np.zeros((4, 8))
    entry = {
        "round": 1,
        "seconds": 1.0,
        "bytes_up": 1,
        "bytes_down": 2,
        "sites": ["north"],
        "dropped": {},
        "metrics": {},
    }
    folder.save_checkpoint(
        Checkpoint(2, zeros.astype("<f4"), OptimizerState(zeros, zeros, 2), (entry, entry | {"round": 2}))
    )
    folder.add_event({"phase": "FINISHED", "round": 2, "dropped": {}})
    folder.write_json("final.json", {"north": {"personal_local": 0.5}})
    finish(folder, 3.0)


def test_help_shows_every_command_and_examples():
    runner = CliRunner()
    assert runner.invoke(cli.app, ["--help"]).exit_code == 0
    text = runner.invoke(cli.app, ["--help"]).output
    for command in COMMANDS:
        assert command in text
        page = runner.invoke(cli.app, [command, "--help"])
        assert page.exit_code == 0
        assert f"Example: dpfpl-server {command}" in " ".join(page.output.split())


def test_status_before_during_and_after(monkeypatch, capfd, runs):
    where = ("--runs", runs.path.parent)
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, out) == (0, "pilot: round 0 of 2 done, NOT_STARTED\n")

    runs.add_event({"phase": "WAITING_FOR_SITES", "round": 1, "connected": 1, "sites": 2, "waiting_for": ["south"]})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, out) == (0, "pilot: round 0 of 2 done, WAITING_FOR_SITES, waiting for: south\n")

    runs.add_event({"phase": "FAILED", "code": "X", "message": "Round 1 failed.", "advice": "Mend it."})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert "Round 1 failed. Mend it." in out

    complete(runs)
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--json", *where)
    state = json.loads(out)
    assert (code, state["round"], state["rounds"], state["finished"]) == (0, 2, 2, True)
    assert state["last"]["phase"] == "FINISHED"


def test_report_writes_the_page_again(monkeypatch, capfd, runs):
    complete(runs)
    (runs.path / "report.html").unlink()

    code, out, _ = dpfpl_server(monkeypatch, capfd, "report", "pilot", "--runs", runs.path.parent)

    assert (code, out.strip()) == (0, str(runs.path / "report.html"))
    assert (runs.path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status", "nothing"), "NO_RUN"),
        (("report", "nothing"), "NOT_FINISHED"),
        (("report", "pilot"), "NOT_FINISHED"),
        (("resume", "nothing"), "NO_RUN"),
        (("run", "missing.toml"), ""),
    ],
)
def test_what_a_user_can_cause_is_one_message_and_exit_code_2(monkeypatch, capfd, runs, arguments, code):
    extra = () if arguments[0] == "run" else ("--runs", runs.path.parent)
    exit_code, out, err = dpfpl_server(monkeypatch, capfd, *arguments, *extra)

    assert exit_code == 2
    assert out == ""
    assert code in err
    assert "Traceback" not in err


@pytest.mark.parametrize("file", ["checkpoint.npz", "experiment.json", "result.json"])
def test_a_damaged_run_is_one_message_too(monkeypatch, capfd, runs, file):
    complete(runs)
    (runs.path / file).write_bytes(b"\xff\x00")
    code, _, err = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--runs", runs.path.parent)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("status",), ("fly",), ("status", "pilot", "--nonsense"), ("provision",)])
def test_wrong_flags_are_exit_code_2(monkeypatch, capfd, arguments):
    code, _, err = dpfpl_server(monkeypatch, capfd, *arguments)
    assert code == 2
    assert "Traceback" not in err


def test_run_prints_its_result_as_json(monkeypatch, capfd, runs, tmp_path):
    complete(runs)  # a finished run is not run again, so no server is needed
    code, out, _ = dpfpl_server(
        monkeypatch, capfd, "resume", "pilot", "--runs", runs.path.parent, "--server", tmp_path, "--json"
    )
    assert code == 0
    assert json.loads(out)["transport"] == "grpc+tls"


def test_interruption_is_exit_code_130(monkeypatch, capfd, runs):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_watch", interrupt)
    code, _, err = dpfpl_server(monkeypatch, capfd, "resume", "pilot", "--runs", runs.path.parent)
    assert code == 130
    assert "Traceback" not in err


def test_report_in_japanese_with_the_companys_figures(monkeypatch, capfd, tmp_path):
    def command(*arguments):
        return dpfpl_server(monkeypatch, capfd, *arguments)

    folder = tmp_path / "runs" / "pilot"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(make_result()))
    assert command("roi-template", "--out", tmp_path / "roi.toml")[0] == 0
    code, out, _ = command(
        "report", "pilot", "--runs", tmp_path / "runs", "--lang", "ja", "--roi", tmp_path / "roi.toml"
    )
    assert (code, out) == (0, f"{folder / 'report.ja.html'}\n")
    assert "投資対効果" in (folder / "report.ja.html").read_text()
    code, _, err = command("report", "pilot", "--runs", tmp_path / "runs", "--lang", "xx")
    assert (code, err.startswith("UNKNOWN_LANGUAGE")) == (2, True)
    code, _, err = command("roi-template", "--out", tmp_path / "roi.toml")
    assert (code, err.startswith("FILE_EXISTS")) == (2, True)
    assert command("roi-template")[1] == (tmp_path / "roi.toml").read_text()
