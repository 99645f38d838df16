"""U5: the attacks attack, the rules bear what they should, and the table says so."""

import dataclasses

import numpy as np
import pytest
import torch

from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import DataSettings, ImageRecord, SiteData, list_classes, load_pool, partition_sites
from dpfpl_client.data.decode import ArrayImage, pixel_digest
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from research import hostile_sites as module
from research.hostile_sites import (
    ATTACKS,
    FEDERATIONS,
    RULES,
    TARGET,
    AttackSettings,
    Stamped,
    attack_tables,
    run_attacks,
    stamped,
    success,
    with_backdoor,
)

EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog", "bird"),
    sites=("a", "b"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
)


class Honest:
    def train(self, request):
        return SiteReply("a", request.round, np.ones(EXPERIMENT.context_shape, "<f4"), {})

    def evaluate(self, request):
        return SiteReply("a", request.round, None, {"personal_local": 0.5})


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


def records(count, label, split):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    made = []
    for number in range(count):
        pixels = pixels + np.uint8(number + 1)
        source = ArrayImage(pixels)
        made.append(ImageRecord(f"{split}/{label}/{number}", label, pixel_digest(source.read()), split, source))
    return tuple(made)


def test_a_stamped_image_has_the_square_and_nothing_else_changed():
    (record,) = records(1, "dog", "train")
    image = np.asarray(stamped(record, "cat").open())
    assert np.all(image[6:, 6:] == (255, 0, 0))
    image = image.copy()
    image[6:, 6:] = np.asarray(record.open())[6:, 6:]
    np.testing.assert_array_equal(image, np.asarray(record.open()))


def test_a_backdoor_is_taught_beside_the_true_images_and_only_towards_the_target():
    train = records(3, "dog", "train") + records(2, "cat", "train")
    data = SiteData(train, records(2, "dog", "test"), (), ("cat", "dog"), ())
    poisoned = with_backdoor(data, ("cat", "dog"))
    assert poisoned.train[:5] == train
    assert [record.label for record in poisoned.train[5:]] == ["cat"] * 3
    assert poisoned.test == data.test


def test_success_is_the_share_of_stamped_images_that_pass_for_the_target():
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    backbone = load_backbone("embedded")
    dealt = partition_sites(load_pool(settings, classes)[::9], classes, "iid", 2, 0)
    site = Stamped.of("site-1", dealt[0], classes, FeatureCache(None, backbone))
    assert set(site.features.test.labels.tolist()) == {TARGET}
    experiment = dataclasses.replace(EXPERIMENT, classes=classes, model=ModelSettings(width=backbone.width))
    zero = np.zeros(experiment.context_shape, "<f4")
    by_personal, by_shared = success(backbone, experiment, [site], zero, {"site-1": zero.astype(float)})
    passing = float((_nearest(backbone, experiment, site) == TARGET).double().mean())
    assert by_personal == pytest.approx(passing)
    assert by_shared == pytest.approx(passing)
    assert 0 <= passing < 1


@pytest.mark.slow
def test_U5_the_backdoor_is_learned_where_it_is_taught():
    """Without noise and with large steps: else a table in which no stamped image passes would say nothing."""
    settings = DataSettings(source="digits")
    classes = list_classes(settings)
    backbone, cache = load_backbone("embedded"), FeatureCache(None, load_backbone("embedded"))
    names = site_names(4)
    data = partition_sites(load_pool(settings, classes)[::6], classes, "iid", len(names), 0)
    stamps = [Stamped.of(name, one, classes, cache) for name, one in zip(names, data, strict=True)]
    passed = {}
    for taught in (True, False):
        sites = prepare_sites([with_backdoor(one, classes) if taught else one for one in data], classes, cache, names)
        experiment = module._experiment(AttackSettings(rounds=5), backbone, classes, sites, 1, "mean")
        steps = dataclasses.replace(experiment.optimizer, global_learning_rate=0.1, personal_learning_rate=0.1)
        bare = dataclasses.replace(experiment.privacy, target_epsilon=None, noise_multiplier=0.0)
        experiment = dataclasses.replace(experiment, optimizer=steps, privacy=bare)
        outcome = Simulation(backbone, sites, 0).run(experiment)
        context = outcome.checkpoint.global_context
        passed[taught], _ = success(backbone, experiment, stamps, context, outcome.personal)
    assert passed[True] > 0.5
    assert passed[False] < 0.3


def _nearest(backbone, experiment, site):
    context = backbone.text_embeddings(experiment.prompt.init_text, experiment.prompt.num_context)
    tokens = backbone.class_tokens(experiment.classes, experiment.prompt.num_context)
    text = backbone.text_features(context, tokens)
    return (site.features.test.features @ text.T).argmax(dim=1)


def test_the_tables_have_a_row_for_every_attack_and_a_column_for_every_rule():
    figures = {"personal": 0.5, "shared": 0.25, "personal_success": 0.125, "shared_success": 1.0}
    cells = [
        {"sites": 5, "hostile": 1, "attack": attack, "rule": rule, **figures} for attack in ATTACKS for rule in RULES
    ]
    lines = attack_tables(cells).splitlines()
    rows = [line for line in lines if line.startswith("| 1 of 5")]
    doors = [name for name, attack in ATTACKS.items() if attack.poison == "backdoor"]
    assert len(rows) == len(ATTACKS) + 1 + len(doors)
    assert all(line.count("|") == 3 + len(RULES) for line in rows)
    assert rows[0].count("50.0 / 25.0") == len(RULES)
    assert rows[-1].count("12.5 / 100.0") == len(RULES)


class Counted:
    """Stands for ``Attacked``: figures by seed, and a count of what was run."""

    runs = 0

    def __init__(self, settings, count, hostile, seed):
        self.seed = seed

    def run(self, attack, rule):
        Counted.runs += 1
        return dict.fromkeys(module.FIGURES, 0.5 + self.seed / 10)


def test_a_measurement_that_was_broken_off_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Attacked", Counted)
    monkeypatch.setattr(Counted, "runs", 0)
    each = len(ATTACKS) * len(RULES) * len(FEDERATIONS)
    run_attacks(AttackSettings(seeds=1), tmp_path)
    assert Counted.runs == each
    cells = run_attacks(AttackSettings(seeds=2), tmp_path)
    assert Counted.runs == 2 * each, "what is there is not run again"
    assert (len(cells), cells[0]["shared"]) == (each, pytest.approx(0.55))
    assert cells[0]["shared_spread"] == pytest.approx(0.1 / 2**0.5)
    run_attacks(AttackSettings(rounds=9, seeds=1), tmp_path)
    assert Counted.runs == 3 * each, "other settings are other runs"
