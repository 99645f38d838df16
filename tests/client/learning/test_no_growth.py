"""Round after round needs the memory of one: nothing that a round allocates outlives it but the state it returns."""

import gc
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from dpfpl_client.learning.learner import PersonalState, PromptLearner
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.text_tower import layers as products
from dpfpl_client.models.text_tower.fast import FastTextTower

CLASSES = ("cat", "dog", "tree")
STATM = Path("/proc/self/statm")
ONE_SHOT = {"mechanism": "one_shot", "trust": "local", "noise_multiplier": 0.05}


@pytest.fixture
def rounds(backbone, make_experiment, make_features):
    """Goes on for so many rounds, evaluations included."""

    def make(**settings):
        experiment = make_experiment(width=backbone.width, classes=CLASSES, local_steps=2, **settings)
        learner = PromptLearner(backbone, experiment, make_features(0, backbone.feature_size, CLASSES, 40))
        source = SeededRandomness(0)
        kept = [PersonalState.initial(experiment), np.zeros(experiment.context_shape, np.float32), 0]

        def run(count):
            for _ in range(count):
                kept[2] += 1
                result = learner.train_round(kept[1], kept[0], source.for_round("s0", kept[2]))
                kept[:2] = result.state, kept[1] - 0.1 * result.update.astype(np.float32)
                learner.evaluate(kept[1], result.state.context)

        return run

    return make


def live_tensors():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("settings", [{"method": "dpfpl"}, {"method": "fedpgp"}, ONE_SHOT], ids=str)
def test_python_objects_and_tensors_of_a_round_go_with_it(rounds, settings):
    run = rounds(**settings)
    run(3)
    tensors = live_tensors()
    tracemalloc.start()
    try:
        run(2)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        run(8)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8 * 2048, "a round leaves two kilobytes or more behind, half a context"
    assert live_tensors() == tensors


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_resident_memory_stays_where_it_is(rounds):
    """A step of this site makes gradients of more than 100 KB; kept for 60 steps they would show."""
    run = rounds(sample_rate=1.0)

    def resident():
        gc.collect()
        return int(STATM.read_text().split()[1]) * resource.getpagesize()

    run(10)
    before = resident()
    run(30)
    assert resident() - before < 3 * 2**20


def test_batches_of_all_sizes_meet_few_sizes_of_products(backbone, monkeypatch):
    """The matrix library keeps a program for every number of rows that it meets."""
    met = {}
    onednn = products.onednn_product

    def counted(weight):
        kernel = onednn(weight)

        def product(x, bias):
            met.setdefault(id(kernel), set()).add(len(x))
            return kernel(x, bias)

        return product

    monkeypatch.setattr(products, "onednn_product", counted)
    monkeypatch.setattr(products, "prefers_onednn", lambda dtype: True)
    tower = FastTextTower(backbone._model.text_model, backbone._model.text_projection, 0)
    tokens = backbone.class_tokens(CLASSES, 4)
    text = tower.run(backbone.text_embeddings("a photo of a", 4), tokens)
    for batch in range(300, 500, 7):
        text.rank_one_pullback(torch.ones(batch, len(CLASSES)), torch.ones(batch, backbone.feature_size))
    assert max(len(sizes) for sizes in met.values()) <= 6
