"""A preference for own classes is a constant in their scores, under prompts that stay as they are."""

import numpy as np
import pytest
from featured_sites import drawn, experiment_of

from dpfpl_bench.simulation.curves import PREFERENCES, plain_at_equal_others, preference_curve
from dpfpl_bench.simulation.in_process import SimulatedSite
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def case(backbone):
    sites = []
    for k, (name, own, rest) in enumerate((("a", [0, 1], [2]), ("b", [2], [0, 1]))):
        parts = (drawn(backbone.feature_size, labels, k + i) for i, labels in enumerate((own * 3, own * 20, rest * 20)))
        sites.append(SimulatedSite(name, SiteFeatures(*parts, CLASSES), len(own)))
    experiment = experiment_of(backbone, CLASSES, ("a", "b"), noise_multiplier=0.0)
    generator = np.random.default_rng(3)
    shared = generator.normal(size=experiment.context_shape).astype(np.float32)
    personal = {name: generator.normal(size=experiment.context_shape) for name in ("a", "b")}
    return sites, experiment, shared, personal


def test_no_preference_is_what_a_site_evaluates_itself(backbone, case):
    sites, experiment, shared, personal = case

    (point,) = (p for p in preference_curve(backbone, sites, experiment, shared, personal) if p["preference"] == 0.0)

    metrics = [
        PromptLearner(backbone, experiment, site.features).evaluate(shared, personal[site.name]) for site in sites
    ]
    for ours, theirs in (("zero_shot", "zero_shot"), ("personalised", "personal")):
        for where in ("local", "neighbour"):
            assert point[f"{ours}_{where}"] == pytest.approx(np.mean([m[f"{theirs}_{where}"] for m in metrics]))
    assert point["zero_shot_local"] != point["personalised_local"]


def test_a_preference_only_ever_helps_own_classes_and_costs_the_others(backbone, case):
    curve = preference_curve(backbone, *case)

    for name in ("zero_shot", "personalised"):
        own, others = ([p[f"{name}_{where}"] for p in curve] for where in ("local", "neighbour"))
        assert own == sorted(own)
        assert own[0] < own[-1]
        assert others == sorted(others, reverse=True)


def test_its_unit_is_the_logit(backbone, case):
    """Site b's own class wins exactly where its logit is behind by less than the preference."""
    sites, experiment, shared, personal = case
    site = sites[1]
    learner = PromptLearner(backbone, experiment, site.features)
    tokens = backbone.class_tokens(CLASSES, experiment.prompt.num_context)
    nothing = np.zeros(experiment.context_shape)
    text = backbone.text_features(learner.context(nothing, nothing), tokens)
    logits = backbone.logit_scale * site.features.test.features @ text.T
    behind = (logits[:, :2].amax(dim=1) - logits[:, 2]).double().numpy()

    curve = preference_curve(backbone, [site], experiment, shared, personal)

    for point in curve:
        assert point["zero_shot_local"] == pytest.approx(
            float(np.mean(behind < point["preference"])), abs=1 / len(behind)
        )
    assert 0.0 < np.mean(behind < 1.0) < 1.0


def curve_of(zero_shot, personalised):
    return [
        {
            "preference": preference,
            "zero_shot_local": own,
            "zero_shot_neighbour": others,
            "personalised_local": 0.9,
            "personalised_neighbour": personalised,
        }
        for preference, (own, others) in zip((0.0, *PREFERENCES[3:]), zero_shot, strict=False)
    ]


def test_own_accuracy_at_equal_others_lies_between_two_points():
    assert plain_at_equal_others(curve_of([(0.5, 0.8), (0.7, 0.6)], 0.7)) == pytest.approx(0.6)
    assert plain_at_equal_others(curve_of([(0.5, 0.8), (0.7, 0.6), (0.9, 0.2)], 0.3)) == pytest.approx(0.85)
    assert plain_at_equal_others(curve_of([(0.5, 0.8), (0.7, 0.8)], 0.8)) == pytest.approx(0.5)
    assert plain_at_equal_others(curve_of([(0.5, 0.8), (0.7, 0.6)], 0.5)) is None  # beyond the curve
    assert plain_at_equal_others(curve_of([(0.5, None), (0.7, None)], None)) is None  # nobody else's images
