"""U5: the attacks attack, the rules bear what they should, and the table says so."""

import numpy as np
import pytest
import torch

from dpfpl_bench import attacks as module
from dpfpl_bench.attacks import ATTACKS, RULES, markdown
from dpfpl_bench.simulation import SimulatedSite
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.payload import SiteReply, TrainRequest

EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog", "bird"),
    sites=("a", "b"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(noise_multiplier=1.0),
)


class Honest:
    def train(self, request):
        return SiteReply("a", request.round, np.ones(EXPERIMENT.context_shape, "<f4"), {}, 0.1)

    def evaluate(self, request):
        return SiteReply("a", request.round, None, {"personal_local": 0.5}, 0.1)


@pytest.mark.parametrize("factor", [-1.0, -10.0])
def test_a_liar_multiplies_what_it_sends(factor):
    request = TrainRequest(EXPERIMENT, 1, np.zeros(EXPERIMENT.context_shape, "<f4"))
    reply = module._Liar(Honest(), factor).train(request)
    assert np.all(reply.update == factor)
    assert reply.update.dtype == np.dtype("<f4")


def test_flipped_labels_are_flipped_in_training_only():
    labels = torch.tensor([0, 1, 2, 0])
    images = LabelledFeatures(torch.ones(4, 3), labels)
    site = SimulatedSite("a", SiteFeatures(images, images, images, EXPERIMENT.classes), 3)
    flipped = module._with_flipped_labels(site)
    assert flipped.features.train.labels.tolist() == [2, 1, 0, 2]
    assert flipped.features.test.labels.tolist() == labels.tolist()
    assert site.features.train.labels.tolist() == labels.tolist()


def test_the_table_has_a_row_for_every_attack_and_a_column_for_every_rule():
    cells = [
        {"sites": 5, "hostile": 1, "attack": attack, "rule": rule, "personal": 0.5, "shared": 0.25}
        for attack in ATTACKS
        for rule in RULES
    ]
    lines = markdown(cells).splitlines()
    assert len(lines) == 2 + len(ATTACKS)
    assert all(line.count("|") == 3 + len(RULES) for line in lines)
    assert lines[2].count("50.0 / 25.0") == len(RULES)
