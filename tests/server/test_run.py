"""An experiment is read, calibrated, submitted, followed to its end, and its failure said in the strategy's words."""

import json

import numpy as np
import pytest

from dpfpl_common.errors import ConfigError, DpfplError, RoundError, StateError
from dpfpl_common.optimizer import OptimizerState
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.runs import supervise as module
from dpfpl_server.runs.folder import Checkpoint, RunFolder
from dpfpl_server.runs.supervise import Limits, finish, load_planned_experiment, run_experiment
from dpfpl_server.sites.control import RunStatus
from dpfpl_server.sites.register import Site, save_sites

TOML = """
classes = ["cat", "dog"]
{more}
[model]
width = 8
[privacy]
target_epsilon = {epsilon}
sample_rate = 0.2
[rounds]
number = 2
local_steps = 2
"""


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    register(folder, south=12, north=11)
    return folder


def register(folder, **sites):
    entries = {
        name: Site(name, "ssh key", "2026-01-01T00:00:00Z", node, f"ssh-ed25519 {name}") for name, node in sites.items()
    }
    save_sites(folder, entries)


def write(tmp_path, more="", name="pilot", target="4.0"):
    path = tmp_path / f"{name}.toml"
    path.write_text(TOML.format(more=more, epsilon=target))
    return path


def test_name_and_sites_are_filled_in_and_the_noise_calibrated(tmp_path, server):
    experiment = load_planned_experiment(write(tmp_path), server)

    assert experiment.name == "pilot"
    assert experiment.sites == ("north", "south")
    reached = epsilon(planned_events(experiment)[:1], experiment.privacy.target_delta)
    assert 3.9 < reached <= 4.0


def test_what_the_file_says_is_kept(tmp_path, server):
    path = write(tmp_path, 'name = "other"\nsites = ["south"]')
    experiment = load_planned_experiment(path, server)
    assert (experiment.name, experiment.sites) == ("other", ("south",))


def test_sites_without_a_node_are_not_taken(tmp_path, server):
    register(server, north=11, south=None)
    assert load_planned_experiment(write(tmp_path), server).sites == ("north",)


@pytest.mark.parametrize(
    ("trust", "enrolled", "taken"),
    [("", 3, "secure"), ("", 2, "local"), ('trust = "auto"', 3, "secure"), ('trust = "local"', 3, "local")],
)
def test_a_file_without_a_trust_gets_secure_where_all_its_sites_enrolled(tmp_path, server, trust, enrolled, taken):
    names = ("east", "north", "south")
    save_sites(server, {
        name: Site(name, "ssh key", "2026-01-01T00:00:00Z", 10 + number, "ssh-ed25519 a", "own" * (number < enrolled))
        for number, name in enumerate(names)
    })  # fmt: skip
    path = write(tmp_path)
    path.write_text(path.read_text().replace("[privacy]", f"[privacy]\n{trust}"))
    assert load_planned_experiment(path, server).privacy.trust == taken


@pytest.mark.parametrize(
    ("more", "name", "target", "code"),
    [
        ("sitez = []", "pilot", "4.0", "UNKNOWN_KEY"),
        ("sites = []", "pilot", "4.0", "NO_SITES"),
        ('sites = "north"', "pilot", "4.0", None),
        ("", "Pilot File", "4.0", "IMPOSSIBLE_VALUE"),
        ("", "pilot", "0.0", "IMPOSSIBLE_VALUE"),
        ("", "pilot", '"low"', None),
        ("classes = [", "pilot", "4.0", None),
    ],
)
def test_a_wrong_file_is_our_own_error(tmp_path, server, more, name, target, code):
    with pytest.raises(DpfplError) as caught:
        load_planned_experiment(write(tmp_path, more, name, target), server)
    if code:
        assert caught.value.code == code
    assert caught.value.advice


def test_no_file_and_no_sites_are_our_own_errors(tmp_path, server):
    with pytest.raises(ConfigError):
        load_planned_experiment(tmp_path / "missing.toml", server)
    register(server)
    with pytest.raises(ConfigError) as caught:
        load_planned_experiment(write(tmp_path), server)
    assert caught.value.code == "NO_SITES"
    assert "provision" in caught.value.advice


class FakeServer:
    """Plays a SuperLink: what the ServerApp does happens when the run is submitted."""

    def __init__(self, monkeypatch, work, end=("finished", "completed")):
        self.work, self.end = work, end
        self.submitted, self.stopped, self.polls = [], [], 0
        monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(module, "START_S", 0.5)
        monkeypatch.setattr(module, "CUT_OFF_S", 0.2)
        monkeypatch.setattr(module, "submit_run", self.submit)
        monkeypatch.setattr(module, "run_status", self.status)
        monkeypatch.setattr(module, "run_log", lambda folder, run_id: iter(["log line\n"]))
        monkeypatch.setattr(module, "stop_run", lambda folder, run_id: self.stopped.append(run_id))

    def submit(self, folder, config):
        self.submitted.append(config)
        self.folder = RunFolder(module.Path(config["run-dir"]))
        self.polls = 0
        return 6 + len(self.submitted)

    def status(self, folder, run_id):
        self.polls += 1
        if self.polls == 1:
            return RunStatus(run_id, "running", "", "")
        self.work(self.folder)
        return RunStatus(run_id, *self.end, "details")


def entry(number):
    return {
        "round": number,
        "seconds": 1.0,
        "bytes_up": 1,
        "bytes_down": 2,
        "sites": ["north", "south"],
        "dropped": {},
        "metrics": {},
    }


def complete(folder):
    for number in (1, 2):
        history = tuple(entry(k) for k in range(1, number + 1))
        zeros = np.zeros((4, 8))
        folder.save_checkpoint(Checkpoint(number, zeros.astype("<f4"), OptimizerState(zeros, zeros, number), history))
        folder.add_event({"phase": "ROUND_DONE", **entry(number)})
    folder.store.set_fact("final", {"north": {"personal_local": 0.5}, "south": {"personal_local": 0.7}})
    folder.add_event({"phase": "FINISHED", "round": 2, "dropped": {}})


def test_a_run_is_followed_to_its_end(tmp_path, server, monkeypatch):
    experiment = load_planned_experiment(write(tmp_path), server)
    fake, seen = FakeServer(monkeypatch, complete), []

    result = run_experiment(experiment, server, tmp_path / "runs" / "pilot", seen.append)

    folder = tmp_path / "runs" / "pilot"
    assert fake.submitted == [{"run-dir": str(folder)}]
    assert RunFolder(folder).store.fact("sites") == {
        "north": {"node": 11, "key": "ssh-ed25519 north"},
        "south": {"node": 12, "key": "ssh-ed25519 south"},
    }
    assert [event["phase"] for event in seen] == ["ROUND_DONE", "ROUND_DONE", "FINISHED"]
    assert result["accuracy"]["local"] == pytest.approx(0.6)
    assert result["transport"] == "grpc+tls"
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "report.html").exists()


def test_a_finished_run_is_not_run_again(tmp_path, server, monkeypatch):
    experiment = load_planned_experiment(write(tmp_path), server)
    fake = FakeServer(monkeypatch, complete)
    first = run_experiment(experiment, server, tmp_path / "runs")
    second = run_experiment(experiment, server, tmp_path / "runs")

    assert len(fake.submitted) == 1
    assert first["sites"] == second["sites"]


def test_a_changed_experiment_of_the_same_name_is_refused(tmp_path, server, monkeypatch):
    fake = FakeServer(monkeypatch, complete)
    run_experiment(load_planned_experiment(write(tmp_path), server), server, tmp_path / "runs")
    with pytest.raises(StateError):
        run_experiment(load_planned_experiment(write(tmp_path, target="2.0"), server), server, tmp_path / "runs")
    assert len(fake.submitted) == 1


def test_a_site_without_a_node_is_named_before_anything_is_submitted(tmp_path, server, monkeypatch):
    fake = FakeServer(monkeypatch, complete)
    experiment = load_planned_experiment(write(tmp_path, 'sites = ["north", "west"]'), server)
    with pytest.raises(ConfigError) as caught:
        run_experiment(experiment, server, tmp_path / "runs")
    assert caught.value.code == "UNKNOWN_SITE"
    assert "west" in caught.value.message
    assert fake.submitted == []
    (server / "revoked.json").write_text('[{"name": "west", "key": "1", "at": "2026-11-01", "why": "revoked"}]')
    with pytest.raises(ConfigError) as caught:
        run_experiment(experiment, server, tmp_path / "runs")
    assert (caught.value.code, "Leave it out" in caught.value.advice) == ("SITE_REVOKED", True)


def test_a_failed_run_says_the_strategys_own_words_and_only_of_this_run(tmp_path, server, monkeypatch):
    experiment = load_planned_experiment(write(tmp_path), server)

    def fail(reason):
        return lambda folder: folder.add_event(
            {"phase": "FAILED", "code": "ROUND_ABANDONED", "message": reason, "advice": "Mend."}
        )

    for reason in ("first reason", "second reason"):
        FakeServer(monkeypatch, fail(reason), ("finished", "failed"))
        seen = []
        with pytest.raises(RoundError) as caught:
            run_experiment(experiment, server, tmp_path / "runs", seen.append)
        assert (caught.value.code, caught.value.message) == ("ROUND_ABANDONED", reason)
        assert [event["message"] for event in seen] == [reason]


def test_a_run_that_fails_without_a_word_shows_the_log(tmp_path, server, monkeypatch):
    FakeServer(monkeypatch, lambda folder: None, ("finished", "failed"))
    with pytest.raises(RoundError) as caught:
        run_experiment(
            load_planned_experiment(write(tmp_path), server), server, tmp_path / "runs", limits=Limits(restarts=2)
        )
    assert caught.value.code == "RUN_FAILED"
    assert [a.outcome for a in RunFolder(tmp_path / "runs").store.attempts()] == ["crashed"] * 3
    assert "finished:failed" in caught.value.message
    assert "log line" in caught.value.message


def test_interrupting_stops_the_run_at_the_server(tmp_path, server, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    fake = FakeServer(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(load_planned_experiment(write(tmp_path), server), server, tmp_path / "runs")
    assert fake.stopped == [7]
    attempts = RunFolder(tmp_path / "runs").store.attempts()
    assert [(attempt.run_id, attempt.outcome) for attempt in attempts] == [(7, "stopped")]


def test_an_unfinished_run_has_no_result(tmp_path, server):
    folder = RunFolder(tmp_path / "runs")
    folder.begin(load_planned_experiment(write(tmp_path), server))
    with pytest.raises(RoundError) as caught:
        finish(folder)
    assert caught.value.code == "NOT_FINISHED"
    assert not (tmp_path / "runs" / "result.json").exists()
