"""``dpfpl-server``: help with examples, JSON for scripts, one clear line and exit code 2 for what a user can cause."""

import contextlib
import errno
import json
import os
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from report_samples import make_result
from typer.testing import CliRunner

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.cli import experiments as experiments_cli
from dpfpl_server.cli import main as cli
from dpfpl_server.runs.folder import Checkpoint, RunFolder
from dpfpl_server.runs.supervise import finish
from dpfpl_server.sites import certificates as expiry_module
from dpfpl_server.sites.certificates import expiries
from dpfpl_server.sites.provision import ProvisionRequest, provision

COMMANDS = (
    "provision",
    "start",
    "plan",
    "run",
    "watch",
    "status",
    "stop",
    "resume",
    "list",
    "report",
    "roi-template",
    "console",
)


def dpfpl_server(monkeypatch, capfd, *arguments):
    """Exit code, stdout and stderr of the installed command's entry point."""
    monkeypatch.setattr(sys, "argv", ["dpfpl-server", *map(str, arguments)])
    monkeypatch.setattr(cli, "console", cli.Console(stderr=True, width=200, markup=False, highlight=False))
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
            privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
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
    folder.store.set_fact("final", {"north": {"personal_local": 0.5}})
    finish(folder)


def test_help_shows_every_command_and_examples():
    runner = CliRunner()
    assert runner.invoke(cli.app, ["--help"]).exit_code == 0
    text = runner.invoke(cli.app, ["--help"]).output
    for command in COMMANDS:
        assert command in text
        page = runner.invoke(cli.app, [command, "--help"])
        assert page.exit_code == 0
        assert f"Example: dpfpl-server {command}" in " ".join(page.output.split())
        assert command in ("provision", "start", "roi-template", "console") or "--json" in page.output
    assert "Exit codes: 0 done" in text


@pytest.mark.parametrize(
    ("server", "kits", "number", "code"),
    [
        ("file/server", "kits", 0, "WRONG_PATH"),
        ("server", "file", 0, "WRONG_PATH"),
        (300 * "x", "kits", 0, "WRONG_PATH"),
        ("closed", "kits", errno.EACCES, "NO_ACCESS"),
        ("server", "closed", errno.EACCES, "NO_ACCESS"),
        ("server", "closed", errno.EROFS, "NO_ACCESS"),
        ("closed", "kits", errno.ENOSPC, "STORAGE_FULL"),
    ],
)
def test_provision_in_a_place_that_it_cannot_use_is_one_clear_error(
    monkeypatch, capfd, tmp_path, server, kits, number, code
):
    (tmp_path / "file").write_text("")
    make = Path.mkdir

    def mkdir(path, *arguments, **named):  # root may do everything, so what another user meets is played
        if path.name == "closed":
            raise OSError(number, os.strerror(number), str(path))
        make(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    arguments = ("provision", "--site", "north", "--server", tmp_path / server, "--out", tmp_path / kits)
    ended, _, err = dpfpl_server(monkeypatch, capfd, *arguments)
    named, advice = err.strip().splitlines()
    assert (ended, named.split(":")[0]) == (2, code)
    assert str(tmp_path) in named
    assert len(advice) > 20
    assert not list(tmp_path.rglob("sites.json")), "no site is registered whose kit could not be written"


def test_runs_that_cannot_be_read_are_not_no_runs(monkeypatch, capfd, tmp_path):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    code, out, err = dpfpl_server(monkeypatch, capfd, "list", "--runs", tmp_path)
    assert (code, out, err.split(":")[0]) == (2, "", "NO_ACCESS")


def test_an_error_that_is_no_files_stays_as_it_is(monkeypatch, capfd):
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(OSError(errno.ECONNRESET, "reset")))
    with pytest.raises(OSError, match="reset"):
        dpfpl_server(monkeypatch, capfd, "list")


@contextlib.contextmanager
def alive(folder):
    """As if a ServerApp worked on the run."""
    with folder.server_pulse():
        yield


WAITING = {"phase": "WAITING_FOR_SITES", "round": 1, "connected": 1, "sites": 2, "waiting_for": ["south"]}


def test_L4_status_before_during_and_after(monkeypatch, capfd, runs):
    where = ("--runs", runs.path.parent)
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, out.splitlines()[0]) == (0, "pilot: NOT_STARTED, round 0 of 2 done")

    runs.store.begin_attempt(5)
    runs.add_event(WAITING)
    with alive(runs):
        code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, out.splitlines()[0].rpartition(", for ")[0]) == (
        5,
        "pilot: WAITING_FOR_SITES (1/2, missing: south), round 0 of 2 done",
    )
    assert "alive, last sign" in out

    runs.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north"]})
    with alive(runs):
        code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, out.split(",")[0]) == (0, "pilot: RUNNING (training")
    assert "no answer yet: north" in out

    runs.add_event({"phase": "FAILED", "code": "X", "message": "Round 1 failed.", "advice": "Mend it."})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert code == 3
    assert "X: Round 1 failed. Mend it." in out

    complete(runs)
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--json", *where)
    state = json.loads(out)
    assert (code, state["state"], state["round"], state["rounds"], state["finished"]) == (0, "FINISHED", 2, 2, True)
    assert state["last"]["phase"] == "FINISHED"


@pytest.mark.parametrize(("days", "warned"), [(20, True), (200, False)])
def test_status_and_watch_say_that_a_certificate_ends(monkeypatch, capfd, runs, tmp_path, days, warned):
    server = tmp_path / "server"
    provision(ProvisionRequest(server, tmp_path / "kits", ("north",)))
    end = next(expiry for expiry in expiries(server) if expiry.file == "server.crt").not_after
    monkeypatch.setattr(expiry_module, "datetime", _at(end - timedelta(days=days)))
    complete(runs)
    where = ("--runs", runs.path.parent, "--server", server)
    said = "server.crt: the server's certificate ends in 20 days. Run dpfpl-server renew"
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert (code, f"WARNING {said}" in out) == (0, warned)
    _, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--json", *where)
    assert [text[: len(said)] for text in json.loads(out)["warnings"]] == [said] * warned
    _, _, errors = dpfpl_server(monkeypatch, capfd, "watch", "pilot", *where)
    assert (f"WARNING {said}" in errors) == warned


def _at(moment):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment.astimezone(tz)

    return Clock


def test_the_status_of_a_finished_run_says_that_nothing_was_found(monkeypatch, capfd, caplog, runs):
    where, warning = ("--runs", runs.path.parent), "No class of any site stands out."
    runs.add_event({"phase": "EVIDENCE", "round": 1, "text": warning, "warning": warning})
    assert caplog.messages == [f"pilot: {warning}"], "in the server's log"
    complete(runs)
    _, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", *where)
    assert out.startswith("pilot: FINISHED")
    assert out.count(warning) == 1
    _, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--json", *where)
    assert json.loads(out)["nothing_found"] == warning


def test_status_of_a_dead_server_is_not_its_last_words(monkeypatch, capfd, runs):
    runs.store.begin_attempt(5)
    runs.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north"]})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--runs", runs.path.parent)
    assert (code, out.split(",")[0]) == (4, "pilot: CUT_OFF")
    with runs.supervisor_pulse():
        code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--runs", runs.path.parent)
    assert (code, out.split(",")[0]) == (0, "pilot: STARTING")
    with alive(runs):
        os.utime(runs.path / "serverapp.lock", (time.time() - 60, time.time() - 60))
        code, out, _ = dpfpl_server(monkeypatch, capfd, "status", "pilot", "--runs", runs.path.parent)
    assert (code, out.split(",")[0]) == (5, "pilot: HANGING")


def test_list_shows_every_run_also_a_damaged_one(monkeypatch, capfd, runs):
    where = ("--runs", runs.path.parent)
    other = RunFolder(runs.path.parent / "other")
    other.path.mkdir()
    (other.path / "experiment.json").write_text("{")
    code, out, _ = dpfpl_server(monkeypatch, capfd, "list", "--json", *where)
    states = {state["name"]: state["state"] for state in json.loads(out)}
    assert (code, states) == (0, {"other": "DAMAGED", "pilot": "NOT_STARTED"})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "list", *where)
    assert "pilot" in out
    assert "0/2" in out
    code, out, _ = dpfpl_server(monkeypatch, capfd, "list", "--runs", runs.path / "nothing")
    assert "No experiment" in out


def test_watch_follows_a_run_of_another_process_to_its_end(monkeypatch, capfd, runs):
    runs.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north", "south"]})

    def play():
        with alive(RunFolder(runs.path)):
            time.sleep(0.5)
            runs.add_event(WAITING)
            time.sleep(0.5)
            complete(runs)

    player = threading.Thread(target=play)
    player.start()
    code, out, err = dpfpl_server(monkeypatch, capfd, "watch", "pilot", "--runs", runs.path.parent)
    player.join()
    assert code == 0
    assert "waiting for south (1 of 2 connected)" in err
    assert "finished after 2 rounds" in err
    assert out.startswith("pilot: FINISHED")


def test_watch_as_json_is_a_line_for_each_event_and_ends_with_the_run(monkeypatch, capfd, runs):
    monkeypatch.setattr(experiments_cli, "GRACE_SECONDS", 0.2)
    runs.store.begin_attempt(5)
    runs.add_event(WAITING)
    runs.add_event({"phase": "FAILED", "code": "X", "message": "No.", "advice": "Mend."})
    code, out, _ = dpfpl_server(monkeypatch, capfd, "watch", "pilot", "--json", "--runs", runs.path.parent)
    assert code == 3
    assert [json.loads(line)["phase"] for line in out.splitlines()] == ["WAITING_FOR_SITES", "FAILED"]


def test_stop_of_what_does_not_run_is_refused(monkeypatch, capfd, runs, tmp_path):
    code, _, err = dpfpl_server(monkeypatch, capfd, "stop", "pilot", "--runs", runs.path.parent, "--server", tmp_path)
    assert (code, "NOT_RUNNING" in err) == (2, True)


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
        (("report", "nothing"), "NO_RUN"),
        (("report", "pilot"), "NO_RESULT"),
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


@pytest.mark.parametrize("file", ["run.sqlite", "experiment.json", "result.json"])
def test_a_damaged_run_is_one_message_too(monkeypatch, capfd, runs, file):
    complete(runs)
    runs.store.close()
    (runs.path / file).write_bytes(b"\xff\x00" * 100)
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

    monkeypatch.setattr(experiments_cli, "_run", interrupt)
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
