"""A finished run for MLflow and TensorBoard: what result.json holds, at its round, and nothing else."""

import json
import math
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from dpfpl_common.errors import ConfigError
from dpfpl_server.cli.main import app
from dpfpl_server.runs.tracking import MlflowTracker, TensorboardTracker, numbers_of, parameters_of, track

RESULT = json.loads((Path(__file__).parents[2] / "docs/demo/result.json").read_text())


class Kept:
    def __init__(self):
        self.values, self.numbers, self.closed = {}, [], False

    def parameters(self, values):
        self.values |= values

    def number(self, name, value, step):
        self.numbers.append((name, value, step))

    def close(self):
        self.closed = True


def test_a_run_is_its_settings_its_rounds_and_its_end():
    kept = Kept()
    track(RESULT, kept)
    assert kept.values["privacy.target_epsilon"] == "8.0"
    assert kept.values["experiment_digest"] == RESULT["experiment_digest"]
    numbers = {(name, step): value for name, value, step in kept.numbers}
    assert len(numbers) == len(kept.numbers)
    assert numbers["round/bytes_up", 3] == RESULT["rounds"][2]["bytes_up"]
    assert (
        numbers["round/metrics/shop-d/personal_local", 1] == RESULT["rounds"][0]["metrics"]["shop-d"]["personal_local"]
    )
    assert numbers["accuracy/local", 10] == RESULT["accuracy"]["local"]
    assert numbers["baselines/local_only/neighbour", 10] == RESULT["baselines"]["local_only"]["neighbour"]
    assert numbers["noised_scores/evidence", 10] == RESULT["scores"][4]["value"]
    assert numbers["epsilon/operator", 10] <= 8
    assert kept.closed


@pytest.mark.privacy
def test_nothing_is_sent_that_result_json_does_not_hold():
    text = json.dumps(RESULT)
    for name, value, _ in numbers_of(RESULT):
        assert json.dumps(value) in text or json.dumps(int(value)) in text, name
    known = json.dumps(RESULT["config"]) + json.dumps({k: RESULT[k] for k in ("date", "transport", "versions", "seed")})
    for value in (v for k, v in parameters_of(RESULT).items() if k != "experiment_digest"):
        assert value in known or value.replace("'", '"') in known or value in ("None", "True", "False")


def test_infinite_epsilons_and_what_was_not_measured_are_left_out():
    rows = [{"adversary": "operator", "epsilon": "infinite"}, {"adversary": "other_site", "epsilon": math.inf}]
    told = {**RESULT, "privacy": {"epsilons": rows}, "accuracy": {"local": None}}
    names = {name for name, _, _ in numbers_of(told)}
    assert not names & {"epsilon/operator", "epsilon/other_site", "accuracy/local"}


def test_a_tracker_is_closed_when_it_fails():
    class Failing(Kept):
        def number(self, name, value, step):
            raise OSError

    failing = Failing()
    with pytest.raises(OSError):  # noqa: PT011
        track(RESULT, failing)
    assert failing.closed


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    track(RESULT, TensorboardTracker(tmp_path / "demo"))
    (file,) = (tmp_path / "demo").iterdir()
    content, at, found = file.read_bytes(), 0, {}
    while at < len(content):  # length, its checksum, the event, its checksum
        (size,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += size + 16
    assert found["accuracy/local", 10] == pytest.approx(RESULT["accuracy"]["local"])
    assert found["round/seconds", 2] == pytest.approx(RESULT["rounds"][1]["seconds"])


def stand_in(monkeypatch):
    """MLflow's client, as far as we use it."""
    calls = []

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"id of {name}"

        def create_run(self, experiment_id, *, run_name):
            calls.append(("run", experiment_id, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="7"))

        def log_param(self, run_id, key, value):
            calls.append(("param", run_id, key, value))

        def log_metric(self, run_id, key, value, *, step):
            calls.append(("metric", run_id, key, value, step))

        def set_terminated(self, run_id):
            calls.append(("end", run_id))

    module, exceptions = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    module.MlflowClient, exceptions.MlflowException = MlflowClient, type("MlflowException", (Exception,), {})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    return calls


def test_mlflow_gets_one_run(monkeypatch):
    calls = stand_in(monkeypatch)
    track(RESULT, MlflowTracker("http://127.0.0.1:5000", "pilots", "demo"))
    assert calls[:2] == [("uri", "http://127.0.0.1:5000"), ("run", "id of pilots", "demo")]
    assert ("param", "7", "prompt.method", "dpfpl") in calls
    assert ("metric", "7", "accuracy/local", RESULT["accuracy"]["local"], 10) in calls
    assert calls[-1] == ("end", "7")


def test_mlflow_itself_takes_it(tmp_path, monkeypatch):
    """Where MLflow is installed; it is not part of the development environment."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    track(RESULT, MlflowTracker(uri, "pilots", "demo"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("pilots").experiment_id])
    assert run.data.params["prompt.method"] == "dpfpl"
    assert run.data.metrics["accuracy/local"] == pytest.approx(RESULT["accuracy"]["local"])
    assert len(client.get_metric_history(run.info.run_id, "round/bytes_up")) == 10
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(("make", "package"), [
    (lambda folder: MlflowTracker("file:x", "a", "b"), "mlflow"), (TensorboardTracker, "tensorboardX"),
])  # fmt: skip
def test_a_missing_package_is_named(monkeypatch, tmp_path, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"PACKAGE_MISSING|not installed") as caught:
        make(tmp_path)
    assert "dpfpl-server[" in caught.value.advice


def test_the_command_writes_for_tensorboard_and_says_what_is_missing(tmp_path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT))
    runner, where = CliRunner(), ["--runs", str(tmp_path / "runs")]
    done = runner.invoke(app, ["track", "demo", *where, "--tensorboard", str(tmp_path / "tb")])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "tb/demo").iterdir())
    assert runner.invoke(app, ["track", "demo", *where]).exception.code == "NO_TRACKER"
    (folder / "result.json").unlink()
    assert runner.invoke(app, ["track", "demo", *where, "--mlflow", "file:x"]).exception.code == "NO_RUN"
