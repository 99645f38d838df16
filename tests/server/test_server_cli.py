"""``dpfpl-server``: help with examples, JSON for scripts, one clear line and exit code 2 for what a user can cause."""

import errno
import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from report_samples import make_result
from server_samples import clock_at, entry, keep, make_experiment
from typer.testing import CliRunner

from dpfpl_server.cli import experiments as experiments_cli
from dpfpl_server.cli import main as cli
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import finish
from dpfpl_server.sites import certificates as expiry_module
from dpfpl_server.sites.certificates import expiries
from dpfpl_server.sites.provision import ProvisionRequest, provision

COMMANDS = [
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
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that has not begun, where commands look for it without --runs."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(make_experiment(rounds={"number": 2}))
    return folder


def complete(folder):
    keep(folder, entry(1), entry(2))
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
    dpfpl_server, monkeypatch, tmp_path, server, kits, number, code
):
    (tmp_path / "file").write_text("")
    make = Path.mkdir

    def mkdir(path, *arguments, **named):  # root may do everything, so what another user meets is played
        if path.name == "closed":
            raise OSError(number, os.strerror(number), str(path))
        make(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    arguments = ("provision", "--site", "north", "--server", tmp_path / server, "--out", tmp_path / kits)
    ended, _, err = dpfpl_server(*arguments)
    named, advice = err.strip().splitlines()
    assert (ended, named.split(":")[0]) == (2, code)
    assert str(tmp_path) in named
    assert len(advice) > 20
    assert not list(tmp_path.rglob("sites.json")), "no site is registered whose kit could not be written"


def test_runs_that_cannot_be_read_are_not_no_runs(dpfpl_server, monkeypatch, tmp_path):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    code, out, err = dpfpl_server("list", "--runs", tmp_path)
    assert (code, out, err.split(":")[0]) == (2, "", "NO_ACCESS")


def test_an_error_that_is_no_files_stays_as_it_is(dpfpl_server, monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(OSError(errno.ECONNRESET, "reset")))
    with pytest.raises(OSError, match="reset"):
        dpfpl_server("list")


WAITING = {"phase": "WAITING_FOR_SITES", "round": 1, "connected": 1, "sites": 2, "waiting_for": ["south"]}


def test_L4_status_before_during_and_after(dpfpl_server, run):
    code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.splitlines()[0]) == (0, "pilot: NOT_STARTED, round 0 of 2 done")

    run.store.begin_attempt(5)
    run.add_event(WAITING)
    with run.server_pulse():
        code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.splitlines()[0].rpartition(", for ")[0]) == (
        5,
        "pilot: WAITING_FOR_SITES (1/2, missing: south), round 0 of 2 done",
    )
    assert "alive, last sign" in out

    run.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north"]})
    with run.server_pulse():
        code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.split(",")[0]) == (0, "pilot: RUNNING (training")
    assert "no answer yet: north" in out

    run.add_event({"phase": "FAILED", "code": "X", "message": "Round 1 failed.", "advice": "Mend it."})
    code, out, _ = dpfpl_server("status", "pilot")
    assert code == 3
    assert "X: Round 1 failed. Mend it." in out

    complete(run)
    code, out, _ = dpfpl_server("status", "pilot", "--json")
    state = json.loads(out)
    assert (code, state["state"], state["round"], state["rounds"], state["finished"]) == (0, "FINISHED", 2, 2, True)
    assert state["last"]["phase"] == "FINISHED"


@pytest.mark.parametrize(("days", "warned"), [(20, True), (200, False)])
def test_status_and_watch_say_that_a_certificate_ends(dpfpl_server, monkeypatch, run, tmp_path, days, warned):
    server = tmp_path / "server"  # where commands look for it
    provision(ProvisionRequest(server, tmp_path / "kits", ("north",)))
    end = next(expiry for expiry in expiries(server) if expiry.file == "server.crt").not_after
    monkeypatch.setattr(expiry_module, "datetime", clock_at(end - timedelta(days=days)))
    complete(run)
    said = "server.crt: the server's certificate ends in 20 days. Run dpfpl-server renew"
    code, out, _ = dpfpl_server("status", "pilot")
    assert (code, f"WARNING {said}" in out) == (0, warned)
    _, out, _ = dpfpl_server("status", "pilot", "--json")
    assert [text[: len(said)] for text in json.loads(out)["warnings"]] == [said] * warned
    _, _, errors = dpfpl_server("watch", "pilot")
    assert (f"WARNING {said}" in errors) == warned


def test_the_status_of_a_finished_run_says_that_nothing_was_found(dpfpl_server, caplog, run):
    warning = "No class of any site stands out."
    run.add_event({"phase": "EVIDENCE", "round": 1, "text": warning, "warning": warning})
    assert caplog.messages == [f"pilot: {warning}"], "in the server's log"
    complete(run)
    _, out, _ = dpfpl_server("status", "pilot")
    assert out.startswith("pilot: FINISHED")
    assert out.count(warning) == 1
    _, out, _ = dpfpl_server("status", "pilot", "--json")
    assert json.loads(out)["nothing_found"] == warning


def test_status_of_a_dead_server_is_not_its_last_words(dpfpl_server, run):
    run.store.begin_attempt(5)
    run.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north"]})
    code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.split(",")[0]) == (4, "pilot: CUT_OFF")
    with run.supervisor_pulse():
        code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.split(",")[0]) == (0, "pilot: STARTING")
    with run.server_pulse():
        os.utime(run.path / "serverapp.lock", (time.time() - 60, time.time() - 60))
        code, out, _ = dpfpl_server("status", "pilot")
    assert (code, out.split(",")[0]) == (5, "pilot: HANGING")


def test_list_shows_every_run_also_a_damaged_one(dpfpl_server, run):
    other = RunFolder(run.path.parent / "other")
    other.path.mkdir()
    (other.path / "experiment.json").write_text("{")
    code, out, _ = dpfpl_server("list", "--json")
    states = {state["name"]: state["state"] for state in json.loads(out)}
    assert (code, states) == (0, {"other": "DAMAGED", "pilot": "NOT_STARTED"})
    code, out, _ = dpfpl_server("list")
    assert "pilot" in out
    assert "0/2" in out
    code, out, _ = dpfpl_server("list", "--runs", "nothing")
    assert "No experiment" in out


def test_watch_follows_a_run_of_another_process_to_its_end(dpfpl_server, run):
    run.add_event({"phase": "TRAINING", "round": 1, "waiting_for": ["north", "south"]})

    def play():
        with RunFolder(run.path).server_pulse():
            time.sleep(0.5)
            run.add_event(WAITING)
            time.sleep(0.5)
            complete(run)

    player = threading.Thread(target=play)
    player.start()
    code, out, err = dpfpl_server("watch", "pilot")
    player.join()
    assert code == 0
    assert "waiting for south (1 of 2 connected)" in err
    assert "finished after 2 rounds" in err
    assert out.startswith("pilot: FINISHED")


def test_watch_as_json_is_a_line_for_each_event_and_ends_with_the_run(dpfpl_server, monkeypatch, run):
    monkeypatch.setattr(experiments_cli, "GRACE_SECONDS", 0.2)
    run.store.begin_attempt(5)
    run.add_event(WAITING)
    run.add_event({"phase": "FAILED", "code": "X", "message": "No.", "advice": "Mend."})
    code, out, _ = dpfpl_server("watch", "pilot", "--json")
    assert code == 3
    assert [json.loads(line)["phase"] for line in out.splitlines()] == ["WAITING_FOR_SITES", "FAILED"]


def test_report_writes_the_page_again(dpfpl_server, run):
    complete(run)
    (run.path / "report.html").unlink()
    assert dpfpl_server("report", "pilot")[:2] == (0, "runs/pilot/report.html\n")
    assert (run.path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("status nothing", "NO_RUN"),
        ("report nothing", "NO_RUN"),
        ("report pilot", "NO_RESULT"),
        ("resume nothing", "NO_RUN"),
        ("stop pilot", "NOT_RUNNING"),
        ("run missing.toml", ""),
        *((flags, "") for flags in ("status", "fly", "status pilot --nonsense", "provision")),
    ],
)
def test_what_a_user_can_cause_is_one_message_and_exit_code_2(dpfpl_server, run, arguments, code):
    exit_code, out, err = dpfpl_server(*arguments.split())
    assert (exit_code, out) == (2, "")
    assert code in err
    assert "Traceback" not in err


@pytest.mark.parametrize("file", ["run.sqlite", "experiment.json", "result.json"])
def test_a_damaged_run_is_one_message_too(dpfpl_server, run, file):
    complete(run)
    run.store.close()
    (run.path / file).write_bytes(b"\xff\x00" * 100)
    code, _, err = dpfpl_server("status", "pilot")
    assert (code, "Traceback" in err) == (2, False)


def test_run_prints_its_result_as_json(dpfpl_server, run):
    complete(run)  # a finished run is not run again, so no server is needed
    code, out, _ = dpfpl_server("resume", "pilot", "--json")
    assert code == 0
    assert json.loads(out)["transport"] == "grpc+tls"


def test_interruption_is_exit_code_130(dpfpl_server, monkeypatch, run):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments_cli, "_run", interrupt)
    code, _, err = dpfpl_server("resume", "pilot")
    assert (code, "Traceback" in err) == (130, False)


def test_report_in_japanese_with_the_companys_figures(dpfpl_server, run):
    run.write_json("result.json", make_result())
    assert dpfpl_server("roi-template", "--out", "roi.toml")[0] == 0
    code, out, _ = dpfpl_server("report", "pilot", "--lang", "ja", "--roi", "roi.toml")
    assert (code, out) == (0, "runs/pilot/report.ja.html\n")
    assert "投資対効果" in (run.path / "report.ja.html").read_text()
    for refused, named in (
        ("report pilot --lang xx", "UNKNOWN_LANGUAGE"),
        ("roi-template --out roi.toml", "FILE_EXISTS"),
    ):
        code, _, err = dpfpl_server(*refused.split())
        assert (code, err.split(":")[0]) == (2, named)
    assert dpfpl_server("roi-template")[1] == Path("roi.toml").read_text()
