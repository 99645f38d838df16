"""A model of every generative family with random weights, some pictures and questions about them."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import TaskSettings
from random_models.families import write_random_model
from random_models.generative import GENERATIVE

torch.set_num_threads(1)

QUESTIONS = (
    ("what colour is it?", "red"),
    ("how many small animals are there?", "two or three"),
    ("what is it?", "a dog"),
    ("what colour is it?", "dark green"),
    ("where is it?", "bird"),
)


@pytest.fixture(scope="package", params=sorted(GENERATIVE))
def folder(request, tmp_path_factory):
    return write_random_model(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def model(folder):
    return load_backbone(str(folder))


@pytest.fixture(scope="package")
def pictures():
    generator = np.random.default_rng(0)
    shapes = [(40, 40), (30, 50), (64, 20), (40, 40), (50, 30)]
    return [Image.fromarray(generator.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="package")
def examples(model, pictures):
    rows = torch.stack(list(model.image_features(pictures)))
    return LabelledFeatures(rows, torch.zeros(len(rows), dtype=torch.long), QUESTIONS)


@pytest.fixture
def vqa_experiment(make_experiment):
    def make(model, **settings):
        vqa = TaskSettings(kind="vqa", max_answer_tokens=5)
        usual = {"num_context": 3, "sites": 2, "init_text": "a", "task": vqa, "classes": ()}
        usual |= {"noise_multiplier": 1.0, "sample_rate": 0.7, "nominal_site_size": 5}
        return make_experiment(width=model.width, **{**usual, **settings})

    return make
