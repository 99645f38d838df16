"""Flower's own simulation runtime gives the very prompts that the in-process engine gives."""

import importlib.util
import os
import subprocess
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from dpfpl_bench.simulation import flower_engine
from dpfpl_bench.simulation.flower_engine import RAY_STARTS, FlowerSimulation, nodes_by_partition, require_ray
from dpfpl_bench.simulation.in_process import InProcessGrid, SimulatedSite, Simulation
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ConfigError, RoundError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.messages import reply_in, request_content

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


def make_sites(backbone, names=("beta", "alpha")):
    """Two different sites, out of alphabetical order, so that mixing them up shows."""

    def images(seed, count):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(count, backbone.feature_size, generator=generator)
        labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
        return LabelledFeatures(torch.nn.functional.normalize(features, dim=-1), labels)

    return [
        SimulatedSite(
            name, SiteFeatures(images(10 * k, 20 + k), images(10 * k + 1, 8), images(10 * k + 2, 8), CLASSES), 3
        )
        for k, name in enumerate(names)
    ]


def make_experiment(backbone, sites, **privacy):
    return Experiment(
        name="engine",
        classes=CLASSES,
        sites=tuple(site.name for site in sites),
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(
            **({"mechanism": "per_step", "noise_multiplier": 1.0, "nominal_site_size": 20} | privacy)
        ),
        rounds=RoundSettings(number=2, local_steps=1, deadline=60.0),
    )


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


def test_without_ray_the_error_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))

    with pytest.raises(ConfigError) as caught:
        require_ray()

    assert caught.value.code == "MISSING_EXTRA"
    assert "dpfpl-bench[flower]" in caught.value.advice


def test_a_runtime_that_ends_early_is_an_error_not_a_wait(backbone, monkeypatch):
    monkeypatch.setattr(flower_engine, "_run_on_ray", lambda server, client, num_sites: None)
    sites = make_sites(backbone)

    with pytest.raises(RoundError) as caught:
        FlowerSimulation("embedded", True, sites, seed=0).run(make_experiment(backbone, sites))

    assert caught.value.code == "SIMULATION_FAILED"


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
