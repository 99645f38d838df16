"""An experiment is read, calibrated and followed to its end. A run that is cut off is resumed, visibly and not for
ever; one that decided to end is not; two never run at once.
"""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from server_samples import entry, keep, make_experiment, provisioned

from dpfpl_common.errors import ConfigError, DeploymentError, DpfplError, RoundError, StateError
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import planned_events
from dpfpl_server.runs import supervise as module
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.supervise import Limits, finish, load_planned_experiment, run_experiment, stop_experiment
from dpfpl_server.sites.control import RunStatus
from dpfpl_server.sites.register import save_sites


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    save_sites(folder, provisioned("north", "south"))
    return folder


# What is run


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
    save_sites(server, provisioned("north") | provisioned("south", node=None))
    assert load_planned_experiment(write(tmp_path), server).sites == ("north",)


@pytest.mark.parametrize(
    ("trust", "enrolled", "taken"),
    [("", 3, "secure"), ("", 2, "local"), ('trust = "auto"', 3, "secure"), ('trust = "local"', 3, "local")],
)
def test_a_file_without_a_trust_gets_secure_where_all_its_sites_enrolled(tmp_path, server, trust, enrolled, taken):
    names = ("east", "north", "south")
    save_sites(server, {**provisioned(*names[:enrolled], aggregation_key="own"), **provisioned(*names[enrolled:])})
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
    save_sites(server, {})
    with pytest.raises(ConfigError) as caught:
        load_planned_experiment(write(tmp_path), server)
    assert caught.value.code == "NO_SITES"
    assert "provision" in caught.value.advice


class FakeSuperLink:
    """Each Flower run is a function of the folder, run in a thread that holds the ServerApp's lock meanwhile.

    A function that raises ``KilledError`` was killed: no word, lock gone, and Flower still calls the run running.
    """

    def __init__(self, monkeypatch):
        self.programs, self.submitted, self.stopped = [], [], []
        self.runs, self.status, self.threads = {}, {}, []
        self.reachable = True
        for name, value in (("POLL_SECONDS", 0.01), ("CUT_OFF_S", 0.1), ("START_S", 2.0)):
            monkeypatch.setattr(module, name, value)
        for name in ("submit_run", "run_status", "stop_run", "run_log"):
            monkeypatch.setattr(module, name, getattr(self, name))

    def submit_run(self, server, config):
        self._reach()
        self.submitted.append(config)
        run_id = len(self.runs) + 1
        self.runs[run_id] = self.programs.pop(0)
        self.status[run_id] = ("running", "")
        self.threads.append(threading.Thread(target=self._work, args=(run_id, RunFolder(Path(config["run-dir"])))))
        self.threads[-1].start()
        return run_id

    def run_status(self, server, run_id):
        self._reach()
        if run_id not in self.status:
            raise DeploymentError(code="CONTROL_REFUSED", message="unknown run")
        return RunStatus(run_id, *self.status[run_id], "")

    def stop_run(self, server, run_id):
        self.stopped.append(run_id)
        self.status[run_id] = ("finished", "stopped")

    def run_log(self, server, run_id):
        return iter(["last words\n"])

    def _reach(self):
        if not self.reachable:
            raise DeploymentError(code="CONTROL_UNREACHABLE", message="No SuperLink.")

    def _work(self, run_id, folder):
        with contextlib.suppress(KilledError), folder.server_pulse(1.0):
            try:
                self.runs[run_id](folder)
                self.status[run_id] = ("finished", "completed")
            except RuntimeError:
                self.status[run_id] = ("finished", "failed")
        folder.store.close()


class KilledError(Exception):
    pass


def rounds(*numbers, then=None):
    def program(folder):
        for number in numbers:
            known = folder.load_checkpoint()
            assert (known.round if known else 0) == number - 1, "it goes on where the checkpoint ends"
            keep(folder, *(known.history if known else ()), entry(number))
            folder.add_event({"phase": "ROUND_DONE", **entry(number)})
        if then is not None:
            then(folder)
        else:
            folder.store.set_fact("final", {"north": {"personal_local": 0.5}, "south": {"personal_local": 0.7}})
            folder.add_event({"phase": "FINISHED", "round": 3, "dropped": {}})

    return program


def killed(folder):
    time.sleep(0.05)
    raise KilledError


def broken(folder):
    raise RuntimeError


# How it is followed


class Pilot:
    """An experiment on a server whose SuperLink is played, and what its supervision said."""

    def __init__(self, link, server):
        self.link, self.server = link, server
        self.folder = RunFolder(server.parent / "runs" / "pilot")
        self.seen = []

    def run(self, *programs, limits=None, **changes):
        """Run it, each Flower run as the next program."""
        self.link.programs += programs
        return run_experiment(make_experiment(**changes), self.server, self.folder.path, self.seen.append, limits)

    def fails(self, *programs, error=RoundError, **more):
        with pytest.raises(error) as caught:
            self.run(*programs, **more)
        return caught.value

    def submit(self, program):
        """As an earlier supervisor did, which is gone."""
        self.folder.begin(make_experiment())
        self.link.programs.append(program)
        self.folder.store.begin_attempt(self.link.submit_run(self.server, {"run-dir": str(self.folder.path)}))

    def phases(self):
        return [event["phase"] for event in self.seen]

    def outcomes(self):
        return [attempt.outcome for attempt in self.folder.store.attempts()]


@pytest.fixture
def pilot(monkeypatch, server):
    return Pilot(FakeSuperLink(monkeypatch), server)


def test_a_run_is_followed_to_its_end_and_not_run_again(pilot):
    result = pilot.run(rounds(1, 2, 3))
    assert pilot.link.submitted == [{"run-dir": str(pilot.folder.path)}]
    assert pilot.folder.store.fact("sites") == {
        "north": {"node": 7, "key": "ssh-ed25519 north"},
        "south": {"node": 7, "key": "ssh-ed25519 south"},
    }
    assert pilot.phases() == ["ROUND_DONE", "ROUND_DONE", "ROUND_DONE", "FINISHED"]
    assert result["accuracy"]["local"] == pytest.approx(0.6)
    assert result["transport"] == "grpc+tls"
    assert pilot.folder.read_json("result.json") == json.loads(json.dumps(result)) == pilot.run()
    assert (pilot.folder.path / "report.html").exists()
    assert pilot.fails(error=StateError, noise_multiplier=2.0).code == "OTHER_EXPERIMENT"
    assert len(pilot.link.submitted) == 1


def test_a_site_without_a_node_is_named_before_anything_is_submitted(pilot):
    error = pilot.fails(error=ConfigError, sites=("north", "west"))
    assert error.code == "UNKNOWN_SITE"
    assert "west" in error.message
    row = {"name": "west", "key": "1", "at": "2026-11-01", "why": "revoked"}
    (pilot.server / "revoked.json").write_text(json.dumps([row]))
    error = pilot.fails(error=ConfigError, sites=("north", "west"))
    assert (error.code, "Leave it out" in error.advice) == ("SITE_REVOKED", True)
    assert pilot.link.submitted == []


def test_interrupting_stops_the_run_at_the_server(pilot, monkeypatch):
    def interrupt(server, run_id):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_status", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pilot.run(rounds(1, then=killed))
    assert (pilot.link.stopped, pilot.outcomes()) == ([1], ["stopped"])
    pilot.link.threads[0].join()


def test_an_unfinished_run_has_no_result(pilot):
    pilot.folder.begin(make_experiment())
    with pytest.raises(RoundError) as caught:
        finish(pilot.folder)
    assert caught.value.code == "NOT_FINISHED"
    assert not (pilot.folder.path / "result.json").exists()


@pytest.mark.parametrize("end", [killed, broken])
def test_L2_a_run_that_was_cut_off_goes_on_in_a_new_one(pilot, end):
    result = pilot.run(rounds(1, then=end), rounds(2, then=end), rounds(3))
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    assert pilot.phases() == ["ROUND_DONE", "RESUMING", "ROUND_DONE", "RESUMING", "ROUND_DONE", "FINISHED"]
    assert "resuming, 1 of at most 5" in pilot.seen[1]["text"]
    assert pilot.outcomes() == ["crashed", "crashed", "completed"]
    assert [run["outcome"] for run in result["runs"]] == ["crashed", "crashed", "completed"]


def test_resuming_ends_at_its_limit_and_can_go_on_by_hand(pilot):
    error = pilot.fails(rounds(1, then=broken), rounds(2, then=broken), limits=Limits(restarts=1))
    assert error.code == "RUN_FAILED"
    assert "finished:failed" in error.message
    assert "last words" in error.message
    assert pilot.outcomes() == ["crashed", "crashed"]
    assert [entry["round"] for entry in pilot.run(rounds(3))["rounds"]] == [1, 2, 3]


def test_a_run_that_decided_to_end_is_not_tried_again(pilot):
    """It says the strategy's own words, and only those of this run."""
    for number, reason in ((1, "No quorum."), (2, "Another reason.")):

        def failed(folder, reason=reason):
            folder.add_event({"phase": "FAILED", "code": "ROUND_ABANDONED", "message": reason, "advice": "Mend."})
            raise RuntimeError

        error = pilot.fails(rounds(number, then=failed))
        assert (error.code, error.message) == ("ROUND_ABANDONED", reason)
        assert [event["message"] for event in pilot.seen if event["phase"] == "FAILED"][number - 1 :] == [reason]
        assert len(pilot.link.runs) == number
    pilot.run(rounds(3))
    assert pilot.outcomes() == ["failed", "failed", "completed"]


def test_L1_a_superlink_that_is_gone_for_a_while_is_waited_for(pilot):
    def die_with_the_superlink(folder):
        pilot.link.reachable = False
        threading.Timer(0.5, lambda: setattr(pilot.link, "reachable", True)).start()
        raise KilledError

    result = pilot.run(rounds(1, then=die_with_the_superlink), rounds(2, 3))
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    phases = pilot.phases()
    assert phases.index("SERVER_UNREACHABLE") < phases.index("RESUMING")
    assert phases.count("SERVER_UNREACHABLE") == 1, "said once, not with every look"


def test_a_superlink_that_stays_away_is_given_up_with_what_to_do(pilot):
    def die_with_the_superlink(folder):
        pilot.link.reachable = False
        raise KilledError

    error = pilot.fails(rounds(1, then=die_with_the_superlink), limits=Limits(server_wait_s=0.3))
    assert error.code == "SERVER_UNREACHABLE"
    assert "resume" in error.advice


def test_without_a_superlink_nothing_starts(pilot):
    pilot.link.reachable = False
    pilot.fails(error=DeploymentError)
    assert pilot.outcomes() == []


def test_L1_a_superlink_with_another_database_means_a_new_run(pilot):
    def forget(folder):
        pilot.link.status.clear()
        raise KilledError

    assert len(pilot.run(rounds(1, then=forget), rounds(2, 3))["rounds"]) == 3
    assert pilot.outcomes() == ["crashed", "completed"]


def test_stop_ends_a_supervised_run_and_resume_goes_on(pilot):
    stopped = threading.Event()

    def wait_for_the_end(folder):
        stopped.wait(10)
        raise KilledError

    def stop():
        while not pilot.folder.store.rounds():
            time.sleep(0.02)
        stop_experiment(pilot.folder, pilot.server)
        stopped.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert pilot.fails(rounds(1, then=wait_for_the_end)).code == "STOPPED"
    stopper.join()
    assert pilot.outcomes() == ["stopped"]
    with pytest.raises(StateError):
        stop_experiment(pilot.folder, pilot.server)
    assert len(pilot.run(rounds(2, 3))["rounds"]) == 3


def test_a_run_without_a_supervisor_is_taken_up_again_not_doubled(pilot):
    """The terminal of ``run`` was closed; the ServerApp works on."""
    go = threading.Event()
    pilot.submit(rounds(1, then=lambda folder: (go.wait(10), rounds(2, 3)(folder))))
    while not pilot.folder.store.rounds():
        time.sleep(0.02)
    threading.Timer(0.3, go.set).start()
    assert len(pilot.run()["rounds"]) == 3
    assert len(pilot.link.runs) == 1
    assert pilot.outcomes() == ["completed"]


def test_a_dead_run_of_a_dead_supervisor_is_replaced(pilot):
    pilot.submit(rounds(1, then=killed))
    pilot.link.threads[0].join()
    assert len(pilot.run(rounds(2, 3))["rounds"]) == 3
    assert pilot.link.status[1] == ("finished", "stopped"), "Flower still called it running"
    assert pilot.outcomes() == ["crashed", "completed"]


def test_two_supervisors_of_one_run_are_refused(pilot):
    pilot.folder.begin(make_experiment())
    with pilot.folder.supervisor_pulse():
        assert pilot.fails(error=StateError).code == "RUN_IN_PROGRESS"
    assert pilot.outcomes() == []


def test_a_program_that_never_shows_up_is_replaced(pilot, monkeypatch):
    monkeypatch.setattr(module, "START_S", 0.3)

    def lose_the_first(server, config):
        if not pilot.link.runs:
            pilot.link.runs[1], pilot.link.status[1] = None, ("running", "")
            return 1
        return pilot.link.submit_run(server, config)

    monkeypatch.setattr(module, "submit_run", lose_the_first)
    assert len(pilot.run(rounds(1, 2, 3))["rounds"]) == 3
    assert pilot.outcomes() == ["crashed", "completed"]


def test_what_sites_and_keys_a_run_uses_is_asked_anew_for_every_flower_run(pilot):
    def renew(folder):
        save_sites(pilot.server, provisioned("north", "south", node=8))
        raise KilledError

    pilot.run(rounds(1, then=renew), rounds(2, 3))
    assert pilot.folder.store.fact("sites")["north"] == {"node": 8, "key": "ssh-ed25519 north"}
