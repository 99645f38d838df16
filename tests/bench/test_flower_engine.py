"""Flower's own simulation runtime gives the very prompts that the in-process engine gives."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import time
from contextlib import closing

import numpy as np
import pytest
from featured_sites import drawn, experiment_of
from flwr.app import ConfigRecord, Context, Message, RecordDict

from dpfpl_bench.simulation import flower_engine
from dpfpl_bench.simulation.flower_engine import RAY_STARTS, FlowerSimulation, nodes_by_partition
from dpfpl_bench.simulation.in_process import InProcessGrid, SimulatedSite, Simulation
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_common.errors import RoundError
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.messages import reply_in, request_content

CLASSES = ("cat", "dog", "owl")


def make_sites(backbone, names=("beta", "alpha")):
    """Two different sites, out of alphabetical order, so that mixing them up shows."""

    def site(name, seed, *sizes):
        parts = (drawn(backbone.feature_size, np.arange(count) % 3, seed + count) for count in sizes)
        return SimulatedSite(name, SiteFeatures(*parts, CLASSES), 3)

    return [site(names[0], 0, 20, 8, 9), site(names[1], 100, 21, 8, 9)]


def make_experiment(backbone, sites, **privacy):
    experiment = experiment_of(backbone, CLASSES, (site.name for site in sites), **privacy)
    return dataclasses.replace(experiment, rounds=dataclasses.replace(experiment.rounds, deadline=60.0))


def ray_processes():
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    return {
        line.split()[0] for line in listing.splitlines() if "raylet" in line or "gcs_server" in line or "ray::" in line
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra [flower] is not installed")
def test_same_prompts_as_in_process_and_nothing_left_behind(backbone, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sites = make_sites(backbone)
    experiment = make_experiment(backbone, sites, trust="central")  # the server's noise is part of it
    before, environment = ray_processes(), dict(os.environ)
    statuses, starts = [], []

    def first_time_too_slow(*arguments, **options):
        starts.append(1)
        if len(starts) == 1:
            raise Exception("The current node timed out during startup.")
        return start(*arguments, **options)

    start = ray.init
    monkeypatch.setattr(ray, "init", first_time_too_slow)

    flower = FlowerSimulation("embedded", True, sites, seed=7).run(experiment, statuses.append)
    process = Simulation(backbone, sites, seed=7).run(experiment)

    np.testing.assert_array_equal(flower.checkpoint.global_context, process.checkpoint.global_context)
    assert flower.checkpoint.global_context.any()
    assert set(flower.personal) == {"alpha", "beta"}
    for site in ("alpha", "beta"):
        np.testing.assert_array_equal(flower.personal[site], process.personal[site])
        assert flower.personal[site].any()
    assert not np.array_equal(flower.personal["alpha"], flower.personal["beta"])
    assert statuses[-1]["dropped"] == {}  # or it says why
    assert 2 <= len(starts) <= RAY_STARTS  # started again, more than once where Ray itself was late
    assert not ray.is_initialized()
    assert flower.final == process.final
    assert [entry["sites"] for entry in flower.checkpoint.history] == [["alpha", "beta"]] * 2
    assert [s["round"] for s in statuses if s["phase"] == "ROUND_DONE"] == [1, 2]

    assert list(tmp_path.glob("dpfpl-flower-*")) == []
    assert dict(os.environ) == environment
    end = time.monotonic() + 20
    while (left := ray_processes() - before) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left


def test_an_actor_goes_on_where_another_has_written(backbone, tmp_path):
    """Any actor may serve a site: what one holds of a ledger is out of date as soon as another has answered."""
    sites = make_sites(backbone)
    simulation = FlowerSimulation("embedded", True, sites, seed=7)
    flower_engine._write_plan(tmp_path, simulation._plan, sites)
    experiment = make_experiment(backbone, sites, trust="local")
    nothing = np.zeros(experiment.context_shape, dtype="<f4")
    grid = InProcessGrid({})

    def answered(round_number):
        request = TrainRequest(experiment, round_number, nothing)
        message = grid.create_message(request_content(request), "train", 1, "0")
        return reply_in(flower_engine._answer(str(tmp_path), "alpha", message).content, request)

    assert isinstance(answered(1), SiteReply)
    with closing(Ledger(tmp_path / "alpha" / "ledger.sqlite")) as elsewhere:
        elsewhere.record_evaluation(experiment.name, "asked of another actor", {})

    assert isinstance(answered(2), SiteReply)


class Runtime(InProcessGrid):
    """Flower's runtime without its processes: every node has a state of its own and is asked by its ClientApp."""

    def __init__(self, client, count):
        super().__init__(dict.fromkeys(range(count)))
        self.client, self.contexts = client, {}
        for node in self.get_node_ids():
            place = {"partition-id": node - 1, "num-partitions": count}
            self.contexts[node] = Context(0, node, place, RecordDict(), {})

    def _answer(self, message):
        return self.client(message, self.contexts[message.metadata.dst_node_id])


def test_the_command_line_gives_the_same_result_on_either_engine(bench, paint, monkeypatch, tmp_path):
    def run(server, client, count):
        server(Runtime(client, count), Context(0, 0, {}, RecordDict(), {}))

    monkeypatch.setattr(flower_engine, "require_ray", lambda: None)
    monkeypatch.setattr(flower_engine, "_run_on_ray", run)
    paint(tmp_path / "train", 8)
    paint(tmp_path / "test", 4)
    settings = ("--sites", 2, "--rounds", 2, "--set", "rounds.local_steps=1", "--floors", "none", "--quiet")
    found = {}
    for engine in ("flower", "inprocess"):
        code, out, err = bench("run", "--data", tmp_path, *settings, "--set", f"engine={engine}")
        assert (code, err) == (0, "")
        found[engine] = json.loads(out)
    flower, process = found.values()
    assert (flower["transport"], process["transport"]) == ("flower_simulation", "in_process")
    for key in ("config", "sites", "accuracy", "floors", "privacy"):
        assert flower[key] == process[key]


def test_without_ray_the_error_names_the_extra(bench, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    code, _, err = bench("run", "--data", "digits", "--set", "engine=flower")
    assert (code, err.split()[0]) == (2, "MISSING_EXTRA")
    assert "dpfpl-bench[flower]" in err


def test_a_runtime_that_ends_early_is_an_error_not_a_wait(backbone, monkeypatch):
    monkeypatch.setattr(flower_engine, "_run_on_ray", lambda server, client, num_sites: None)
    sites = make_sites(backbone)

    with pytest.raises(RoundError, match="SIMULATION_FAILED"):
        FlowerSimulation("embedded", True, sites, seed=0).run(make_experiment(backbone, sites))


def test_nodes_are_asked_which_partition_they_are():
    """Node ids are drawn at random, so their order says nothing; Flower registers them one after another."""
    partitions = {1: 2, 2: 0, 3: 1}

    class Asked(InProcessGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return list(partitions)[: self.looks - 1]

        def _answer(self, message):
            assert message.metadata.message_type == "query"
            assert message.content["plan"]["folder"] == "here"
            node = {"partition-id": partitions[message.metadata.dst_node_id], "num-partitions": 3}
            return Message(RecordDict({"node": ConfigRecord(node)}), reply_to=message)

    assert nodes_by_partition(Asked(dict.fromkeys(("a", "b", "c"))), "here") == [2, 3, 1]
