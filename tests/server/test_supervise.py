"""A run that is cut off is resumed, visibly and not for ever; one that decided to end is not; two never run at once."""

import contextlib
import threading
import time

import numpy as np
import pytest

from dpfpl_common.errors import DeploymentError, RoundError, StateError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.optimizer import OptimizerState
from dpfpl_server.runs import supervise as module
from dpfpl_server.runs.folder import Checkpoint, RunFolder
from dpfpl_server.runs.supervise import Limits, run_experiment, stop_experiment
from dpfpl_server.sites.control import RunStatus
from dpfpl_server.sites.register import Site, save_sites

EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
    rounds=RoundSettings(number=3),
)
UNREACHABLE = DeploymentError(code="CONTROL_UNREACHABLE", message="No SuperLink.")


class FakeSuperLink:
    """Each Flower run is a function of the folder, run in a thread that holds the ServerApp's lock meanwhile.

    A function that raises ``KilledError`` was killed: no word, lock gone, and Flower still calls the run running.
    """

    def __init__(self, monkeypatch, *programs):
        self.programs = list(programs)
        self.runs, self.status, self.threads = {}, {}, []
        self.reachable = True
        for name, value in (("POLL_SECONDS", 0.01), ("CUT_OFF_S", 0.1), ("START_S", 2.0)):
            monkeypatch.setattr(module, name, value)
        for name in ("submit_run", "run_status", "stop_run", "run_log"):
            monkeypatch.setattr(module, name, getattr(self, name))

    def submit_run(self, server, config):
        self._reach()
        run_id = len(self.runs) + 1
        self.runs[run_id] = self.programs.pop(0)
        self.status[run_id] = ("running", "")
        self.threads.append(
            threading.Thread(target=self._work, args=(run_id, RunFolder(module.Path(config["run-dir"]))))
        )
        self.threads[-1].start()
        return run_id

    def run_status(self, server, run_id):
        self._reach()
        if run_id not in self.status:
            raise DeploymentError(code="CONTROL_REFUSED", message="unknown run")
        return RunStatus(run_id, *self.status[run_id], "")

    def stop_run(self, server, run_id):
        self.status[run_id] = ("finished", "stopped")
        return True

    def run_log(self, server, run_id):
        return iter(["last words\n"])

    def _reach(self):
        if not self.reachable:
            raise UNREACHABLE

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
            history = (
                *(known.history if known else ()),
                {"round": number, "seconds": 1.0, "sites": ["north", "south"], "dropped": {}, "metrics": {}}
                | {"bytes_up": 1, "bytes_down": 1},
            )
            zeros = np.zeros((4, 8))
            state = OptimizerState(zeros, zeros, number)
            folder.save_checkpoint(Checkpoint(number, zeros.astype("<f4"), state, history))
            folder.add_event({"phase": "ROUND_DONE", "round": number})
        if then is not None:
            then(folder)
        else:
            folder.store.set_fact("final", {"north": {"personal_local": 0.5}})
            folder.add_event({"phase": "FINISHED", "round": 3, "dropped": {}})

    return program


def killed(folder):
    time.sleep(0.05)
    raise KilledError


def broken(folder):
    raise RuntimeError


def failed(folder):
    folder.add_event({"phase": "FAILED", "code": "ROUND_ABANDONED", "message": "No quorum.", "advice": "Mend."})
    raise RuntimeError


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    save_sites(folder, {n: Site(n, "key", "2026-01-01", 7, f"ssh-ed25519 {n}") for n in ("north", "south")})
    return folder


def run(tmp_path, server, limits=None, seen=None):
    statuses = [] if seen is None else seen
    return run_experiment(EXPERIMENT, server, tmp_path / "runs" / "pilot", statuses.append, limits)


def outcomes(tmp_path):
    return [attempt.outcome for attempt in RunFolder(tmp_path / "runs" / "pilot").store.attempts()]


@pytest.mark.parametrize("end", [killed, broken])
def test_L2_a_run_that_was_cut_off_goes_on_in_a_new_one(monkeypatch, tmp_path, server, end):
    FakeSuperLink(monkeypatch, rounds(1, then=end), rounds(2, then=end), rounds(3))
    seen = []
    result = run(tmp_path, server, seen=seen)
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    assert [event["phase"] for event in seen if event["phase"] != "FINISHED"] == [
        "ROUND_DONE",
        "RESUMING",
        "ROUND_DONE",
        "RESUMING",
        "ROUND_DONE",
    ]
    assert "resuming, 1 of at most 5" in next(event["text"] for event in seen if event["phase"] == "RESUMING")
    assert outcomes(tmp_path) == ["crashed", "crashed", "completed"]
    assert [run["outcome"] for run in result["runs"]] == ["crashed", "crashed", "completed"]


def test_resuming_ends_at_its_limit_and_can_go_on_by_hand(monkeypatch, tmp_path, server):
    FakeSuperLink(monkeypatch, rounds(1, then=broken), rounds(2, then=broken), rounds(3))
    with pytest.raises(RoundError) as caught:
        run(tmp_path, server, Limits(restarts=1))
    assert caught.value.code == "RUN_FAILED"
    assert "last words" in caught.value.message
    assert outcomes(tmp_path) == ["crashed", "crashed"]
    assert [entry["round"] for entry in run(tmp_path, server)["rounds"]] == [1, 2, 3]


def test_a_run_that_decided_to_end_is_not_tried_again(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch, rounds(1, then=failed), rounds(2, 3))
    with pytest.raises(RoundError) as caught:
        run(tmp_path, server)
    assert (caught.value.code, caught.value.message) == ("ROUND_ABANDONED", "No quorum.")
    assert len(link.runs) == 1
    assert outcomes(tmp_path) == ["failed"]
    run(tmp_path, server)
    assert outcomes(tmp_path) == ["failed", "completed"]


def test_L1_a_superlink_that_is_gone_for_a_while_is_waited_for(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch)

    def die_with_the_superlink(folder):
        link.reachable = False
        threading.Timer(0.5, lambda: setattr(link, "reachable", True)).start()
        raise KilledError

    link.programs = [rounds(1, then=die_with_the_superlink), rounds(2, 3)]
    seen = []
    result = run(tmp_path, server, seen=seen)
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    phases = [event["phase"] for event in seen]
    assert phases.index("SERVER_UNREACHABLE") < phases.index("RESUMING")
    assert phases.count("SERVER_UNREACHABLE") == 1, "said once, not with every look"


def test_a_superlink_that_stays_away_is_given_up_with_what_to_do(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch)

    def die_with_the_superlink(folder):
        link.reachable = False
        raise KilledError

    link.programs = [rounds(1, then=die_with_the_superlink)]
    with pytest.raises(RoundError) as caught:
        run(tmp_path, server, Limits(server_wait_s=0.3))
    assert caught.value.code == "SERVER_UNREACHABLE"
    assert "resume" in caught.value.advice


def test_without_a_superlink_nothing_starts(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch)
    link.reachable = False
    with pytest.raises(DeploymentError):
        run(tmp_path, server)
    assert outcomes(tmp_path) == []


def test_L1_a_superlink_with_another_database_means_a_new_run(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch)

    def forget(folder):
        link.status.clear()
        raise KilledError

    link.programs = [rounds(1, then=forget), rounds(2, 3)]
    assert len(run(tmp_path, server)["rounds"]) == 3
    assert outcomes(tmp_path) == ["crashed", "completed"]


def test_stop_ends_a_supervised_run_and_resume_goes_on(monkeypatch, tmp_path, server):
    stopped = threading.Event()

    def wait_for_the_end(folder):
        stopped.wait(10)
        raise KilledError

    FakeSuperLink(monkeypatch, rounds(1, then=wait_for_the_end), rounds(2, 3))
    folder = RunFolder(tmp_path / "runs" / "pilot")

    def stop():
        while not folder.store.rounds():
            time.sleep(0.02)
        stop_experiment(folder, server)
        stopped.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(RoundError) as caught:
        run(tmp_path, server)
    stopper.join()
    assert caught.value.code == "STOPPED"
    assert outcomes(tmp_path) == ["stopped"]
    with pytest.raises(StateError):
        stop_experiment(folder, server)
    assert len(run(tmp_path, server)["rounds"]) == 3


def test_a_run_without_a_supervisor_is_taken_up_again_not_doubled(monkeypatch, tmp_path, server):
    """The terminal of ``run`` was closed; the ServerApp works on."""
    go = threading.Event()
    link = FakeSuperLink(monkeypatch, rounds(1, then=lambda folder: (go.wait(10), rounds(2, 3)(folder))))
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(EXPERIMENT)
    folder.store.set_fact("sites", {})
    folder.store.begin_attempt(link.submit_run(server, {"run-dir": str(folder.path)}))
    while not folder.store.rounds():
        time.sleep(0.02)
    threading.Timer(0.3, go.set).start()
    assert len(run(tmp_path, server)["rounds"]) == 3
    assert len(link.runs) == 1
    assert outcomes(tmp_path) == ["completed"]


def test_a_dead_run_of_a_dead_supervisor_is_replaced(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch, rounds(1, then=killed), rounds(2, 3))
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(EXPERIMENT)
    folder.store.begin_attempt(link.submit_run(server, {"run-dir": str(folder.path)}))
    link.threads[0].join()
    assert len(run(tmp_path, server)["rounds"]) == 3
    assert link.status[1] == ("finished", "stopped"), "Flower still called it running"
    assert outcomes(tmp_path) == ["crashed", "completed"]


def test_two_supervisors_of_one_run_are_refused(monkeypatch, tmp_path, server):
    FakeSuperLink(monkeypatch, rounds(1, 2, 3))
    folder = RunFolder(tmp_path / "runs" / "pilot")
    folder.begin(EXPERIMENT)
    with folder.supervisor_pulse(), pytest.raises(StateError) as caught:
        run(tmp_path, server)
    assert caught.value.code == "RUN_IN_PROGRESS"
    assert outcomes(tmp_path) == []


def test_a_program_that_never_shows_up_is_replaced(monkeypatch, tmp_path, server):
    link = FakeSuperLink(monkeypatch)
    monkeypatch.setattr(module, "START_S", 0.3)
    link.programs = [rounds(1, 2, 3)]
    submit = link.submit_run

    def lose_the_first(server, config):
        if not link.runs:
            link.runs[1], link.status[1] = None, ("running", "")
            return 1
        return submit(server, config)

    monkeypatch.setattr(module, "submit_run", lose_the_first)
    assert len(run(tmp_path, server)["rounds"]) == 3
    assert outcomes(tmp_path) == ["crashed", "completed"]


def test_what_sites_and_keys_a_run_uses_is_asked_anew_for_every_flower_run(monkeypatch, tmp_path, server):
    def renew(folder):
        save_sites(server, {n: Site(n, "key", "2026-01-01", 8, f"ssh-ed25519 new-{n}") for n in ("north", "south")})
        raise KilledError

    FakeSuperLink(monkeypatch, rounds(1, then=renew), rounds(2, 3))
    run(tmp_path, server)
    sites = RunFolder(tmp_path / "runs" / "pilot").store.fact("sites")
    assert sites["north"] == {"node": 8, "key": "ssh-ed25519 new-north"}
