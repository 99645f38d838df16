"""A finished run for MLflow and TensorBoard: what result.json holds, at its round, and nothing else."""

import json
import math
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from dpfpl_common.errors import ConfigError, DeploymentError, StateError
from dpfpl_server.cli.main import app
from dpfpl_server.runs.tracking import MlflowTracker, TensorboardTracker, numbers_of, parameters_of, track

RESULT = json.loads((Path(__file__).parents[2] / "docs/demo/result.json").read_text())


class Kept:
    def __init__(self):
        self.values, self.rows, self.complete = {}, [], None

    def parameters(self, values):
        self.values |= values

    def numbers(self, values):
        self.rows += values

    def close(self, *, complete):
        self.complete = complete


def test_a_run_is_its_settings_its_rounds_and_its_end():
    kept = Kept()
    track(RESULT, kept)
    assert kept.values["privacy.target_epsilon"] == "8.0"
    assert kept.values["experiment_digest"] == RESULT["experiment_digest"]
    numbers = {(name, step): value for name, value, step in kept.rows}
    assert len(numbers) == len(kept.rows)
    assert numbers["round/bytes_up", 3] == RESULT["rounds"][2]["bytes_up"]
    assert (
        numbers["round/metrics/shop-d/personal_local", 1] == RESULT["rounds"][0]["metrics"]["shop-d"]["personal_local"]
    )
    assert numbers["accuracy/local", 10] == RESULT["accuracy"]["local"]
    assert numbers["baselines/local_only/neighbour", 10] == RESULT["baselines"]["local_only"]["neighbour"]
    assert numbers["noised_scores/evidence", 10] == RESULT["scores"][4]["value"]
    assert numbers["epsilon/operator", 10] <= 8
    assert kept.complete is True


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


def test_a_tracker_that_fails_is_closed_as_incomplete():
    class Failing(Kept):
        def numbers(self, values):
            raise OSError

    failing = Failing()
    with pytest.raises(OSError):  # noqa: PT011
        track(RESULT, failing)
    assert failing.complete is False


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


def test_tensorboard_gets_no_second_run_in_one_folder(tmp_path):
    track(RESULT, TensorboardTracker(tmp_path / "demo"))
    with pytest.raises(StateError, match="TRACKED_ALREADY"):
        TensorboardTracker(tmp_path / "demo")
    assert len(list((tmp_path / "demo").iterdir())) == 1
    track(RESULT, TensorboardTracker(tmp_path / "other"))


def stand_in(monkeypatch, failing=()):
    """MLflow's client, as far as we use it; the calls named ``failing`` raise."""
    calls = []
    failure = type("MlflowException", (Exception,), {})

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"id of {name}"

        def create_run(self, experiment_id, *, run_name):
            self.told("create_run")
            calls.append(("run", experiment_id, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="7"))

        def log_batch(self, run_id, metrics=(), params=(), *, synchronous):
            self.told("log_metrics" if metrics else "log_params")
            assert synchronous
            assert len(metrics) <= 1000
            assert len(params) <= 100
            calls.append(("batch", run_id, list(params), list(metrics)))

        def set_terminated(self, run_id, status):
            self.told("set_terminated")
            calls.append(("end", run_id, status))

        def told(self, name):
            if name in failing:
                raise failure

    def metric(key, value, timestamp, step):
        assert timestamp > 1e12  # milliseconds
        return key, value, step

    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.exceptions", "mlflow.entities")}
    modules["mlflow"].MlflowClient, modules["mlflow.exceptions"].MlflowException = MlflowClient, failure
    modules["mlflow.entities"].Param, modules["mlflow.entities"].Metric = lambda key, value: (key, value), metric
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_mlflow_gets_one_run(monkeypatch):
    calls = stand_in(monkeypatch)
    track(RESULT, MlflowTracker("http://127.0.0.1:5000", "pilots", "demo"))
    assert calls[:2] == [("uri", "http://127.0.0.1:5000"), ("run", "id of pilots", "demo")]
    sent = [call for call in calls if call[0] == "batch"]
    params, metrics = ([row for call in sent for row in call[place]] for place in (2, 3))
    assert dict(params) == parameters_of(RESULT)
    assert metrics == list(numbers_of(RESULT))
    assert calls[-1] == ("end", "7", "FINISHED")


def test_mlflow_gets_few_requests_and_no_longer_values_than_it_takes(monkeypatch):
    calls = stand_in(monkeypatch)
    tracker = MlflowTracker("http://127.0.0.1:5000", "pilots", "demo")
    tracker.parameters({f"p{number}": "x" for number in range(101)} | {"classes": "y" * 6001, "fits": "z" * 6000})
    tracker.numbers([("loss", 0.5, step) for step in range(2001)])
    sent = [call for call in calls if call[0] == "batch"]
    assert [(len(params), len(metrics)) for _, _, params, metrics in sent] == [
        (100, 0), (3, 0), (0, 1000), (0, 1000), (0, 1),
    ]  # fmt: skip
    values = dict(sent[1][2])
    assert values["fits"] == "z" * 6000
    assert values["classes"] == "y" * 5997 + "..."


@pytest.mark.parametrize("failing", ["create_run", "log_params", "log_metrics", "set_terminated"])
def test_what_mlflow_raises_becomes_our_error(monkeypatch, failing):
    stand_in(monkeypatch, [failing])
    with pytest.raises(DeploymentError, match="TRACKER_FAILED"):
        track(RESULT, MlflowTracker("http://127.0.0.1:5000", "pilots", "demo"))


def test_a_run_that_is_half_sent_ends_as_failed(monkeypatch):
    calls = stand_in(monkeypatch, ["log_metrics"])
    with pytest.raises(DeploymentError):
        track(RESULT, MlflowTracker("http://127.0.0.1:5000", "pilots", "demo"))
    assert calls[-1] == ("end", "7", "FAILED")


def test_an_error_is_not_hidden_by_the_end_that_fails_too(monkeypatch):
    stand_in(monkeypatch, ["set_terminated"])
    tracker = MlflowTracker("http://127.0.0.1:5000", "pilots", "demo")
    with pytest.raises(KeyError, match="rounds"):
        track({key: value for key, value in RESULT.items() if key != "rounds"}, tracker)


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
    long = MlflowTracker(uri, "pilots", "long")
    long.parameters({"classes": "y" * 10_000, "empty": ""})
    long.close(complete=False)
    (run,) = client.search_runs([run.info.experiment_id], "attributes.run_name = 'long'")
    assert (run.info.status, len(run.data.params["classes"])) == ("FAILED", 6000)


@pytest.mark.parametrize(("make", "package"), [
    (lambda folder: MlflowTracker("http://127.0.0.1:5000", "a", "b"), "mlflow"), (TensorboardTracker, "tensorboardX"),
])  # fmt: skip
def test_a_missing_package_is_named(monkeypatch, tmp_path, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"PACKAGE_MISSING|not installed") as caught:
        make(tmp_path)
    assert "dpfpl-server[" in caught.value.advice


def kept_run(folder, result):
    """Arguments of the command for a run with this result."""
    (folder / "runs/demo").mkdir(parents=True)
    (folder / "runs/demo/result.json").write_text(json.dumps(result))
    return ["track", "demo", "--runs", str(folder / "runs")]


@pytest.mark.privacy
@pytest.mark.parametrize("transport", ["in_process", "flower_simulation", "another"])
def test_a_simulations_exact_accuracies_are_sent_only_where_that_is_said(tmp_path, monkeypatch, transport):
    calls, runner = stand_in(monkeypatch), CliRunner()
    words = kept_run(tmp_path, {**RESULT, "transport": transport, "seed": 0})
    both = [*words, "--mlflow", "http://127.0.0.1:5000", "--tensorboard", str(tmp_path / "tb")]
    refused = runner.invoke(app, both)
    assert (refused.exception.code, calls) == ("SIMULATED_RESULT", [])
    assert "--send-exact" in refused.exception.advice
    assert not (tmp_path / "tb").exists()
    assert runner.invoke(app, [*both, "--send-exact"]).exit_code == 0
    assert calls[-1][0] == "end"


def test_a_simulation_may_go_to_a_folder_of_this_machine(tmp_path):
    words = kept_run(tmp_path, {**RESULT, "transport": "in_process"})
    assert CliRunner().invoke(app, [*words, "--tensorboard", str(tmp_path / "tb")]).exit_code == 0


def test_the_command_writes_for_tensorboard_and_says_what_is_missing(tmp_path):
    runner, words = CliRunner(), kept_run(tmp_path, RESULT)
    done = runner.invoke(app, [*words, "--tensorboard", str(tmp_path / "tb")])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "tb/demo").iterdir())
    assert runner.invoke(app, words).exception.code == "NO_TRACKER"
    (tmp_path / "runs/demo/result.json").unlink()
    assert runner.invoke(app, [*words, "--mlflow", "http://127.0.0.1:5000"]).exception.code == "NO_RUN"
