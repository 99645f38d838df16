"""Attacks on a site's training: they succeed where the noise is off and stay below the claim where it is on."""

import numpy as np
import pytest
import torch
from featured_sites import drawn, experiment_of

from dpfpl_bench.audit.audit import AuditSettings, audit, victim_experiment, with_canaries
from dpfpl_bench.audit.bounds import bounded, combined, compared
from dpfpl_bench.audit.canary import one_canary_in_the_sums
from dpfpl_bench.audit.membership import Demo, ReleasedPrompt, attack_released, audit_released, open_demo
from dpfpl_bench.audit.two_worlds import attack
from dpfpl_bench.audit.victim import log_odds
from dpfpl_bench.simulation.in_process import SimulatedSite, Simulation
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.models.class_scorer import class_probabilities
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import calibrate_noise_multiplier
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.privacy_plan import resolve_noise

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "bird")


def experiment(backbone, **privacy):
    claim = {"target_epsilon": 2.0, "noise_multiplier": None, "nominal_site_size": 30} | privacy
    return resolve_noise(experiment_of(backbone, CLASSES, "abc", rounds=3, local_steps=2, **claim))


def images(backbone, count=60):
    return drawn(backbone.feature_size, np.arange(count) % len(CLASSES), 0)


def test_the_victim_makes_the_same_steps_under_the_same_promise_alone(backbone):
    attacked = victim_experiment(experiment(backbone))
    assert attacked.total_steps == 6
    assert attacked.rounds.local_steps == 1
    assert attacked.sites == ("victim",)
    assert attacked.privacy.trust == "local"
    assert attacked.privacy.noise_multiplier == pytest.approx(experiment(backbone).privacy.noise_multiplier, rel=1e-3)


def test_canaries_have_wrong_labels_and_the_same_images(backbone):
    pool = images(backbone)
    canaries = with_canaries(pool, len(CLASSES), np.random.default_rng(0))
    assert not bool((canaries.labels == pool.labels).any())
    assert torch.equal(canaries.features, pool.features)


def test_one_shot_s_release_holds_and_the_attack_on_it_is_alive(backbone):
    once = experiment(backbone, mechanism="one_shot", trust="local")
    single, many = audit(backbone, once, images(backbone), AuditSettings(trials=1500))
    assert single.alive
    assert 0.3 < single.with_noise <= single.claimed_epsilon < single.noise_off
    assert many.alive
    assert many.with_noise <= many.claimed_epsilon


def test_a_tenth_of_the_noise_breaks_one_shot_s_claim(backbone):
    pool = images(backbone)
    claimed = calibrate_noise_multiplier(2.0, 1e-5, 1.0, 1)
    noise = SeededNoise(np.random.default_rng(0))
    assert one_canary_in_the_sums(pool, len(CLASSES), 0, noise, claimed / 10, 500, 1e-5) > 2.0


def test_seeds_are_combined_so_that_a_broken_one_shows_and_a_lucky_one_does_not_count():
    first = [bounded("a", "b", 0.1, 3.0, 2.0), compared("c", "d", "auc", 0.5, 0.9, 0.5)]
    second = [bounded("a", "b", 2.5, 0.2, 2.0), compared("c", "d", "auc", 0.6, 0.7, 0.5)]
    bound, rate = combined([first, second])
    assert (bound.with_noise, bound.noise_off, bound.holds, bound.alive) == (2.5, 0.2, False, False)
    assert (rate.with_noise, rate.noise_off) == (pytest.approx(0.55), pytest.approx(0.8))


@pytest.mark.parametrize("memorised", [True, False])
def test_a_released_prompt_that_fits_its_members_is_told_from_one_that_does_not(backbone, memorised):
    """The score is the gain of the label's odds: here every member's odds are raised by hand, or none's."""
    generator = np.random.default_rng(0)
    tokens = backbone.class_tokens(CLASSES, 4)
    plain = backbone.text_embeddings("a photo of a", 4)
    other = plain + 0.3 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    pool = images(backbone, 400)
    after, before = (
        log_odds(class_probabilities(backbone, context, tokens, pool.features), pool.labels)
        for context in (other, plain)
    )
    gain = after - before
    fits = gain > np.median(gain)
    member = fits if memorised else generator.random(len(pool)) < 0.5
    prompt = ReleasedPrompt(other, plain, pool.take(np.flatnonzero(member)), pool.take(np.flatnonzero(~member)))
    bound, guesses = attack_released(backbone, tokens, [prompt], 1e-5, generator)
    if memorised:
        assert bound > 2.0
        assert guesses.auc == 1.0
    else:
        assert bound < 0.5
        assert 0.4 < guesses.auc < 0.6


def test_a_folder_without_a_finished_demo_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(StateError, match="holds no finished demo") as error:
        open_demo(tmp_path, tmp_path)
    assert "dpfpl-bench demo" in error.value.advice


def test_what_a_demo_released_is_held_against_its_claim(backbone):
    pool = images(backbone, 120)
    halves = [pool.take(np.arange(start, 120, 2)) for start in (0, 1)]
    features = SiteFeatures(*halves, pool.take(np.arange(0)), CLASSES)
    sites = [SimulatedSite(name, features, 3) for name in ("a", "b", "c")]
    audited = experiment(backbone)
    outcome = Simulation(backbone, sites, 0).run(audited)
    prompts = [SitePrompt(audited, outcome.checkpoint.global_context, outcome.personal[s.name], 3) for s in sites]
    bound, auc, hits = audit_released(Demo(audited, backbone, sites, prompts), 1)
    assert bound.claimed_epsilon == pytest.approx(2.0, rel=0.01)
    assert bound.holds
    assert 0.3 < auc.with_noise < 0.7
    assert auc.noise_off != auc.with_noise
    assert hits.guess == 0.05


@pytest.mark.slow
def test_what_is_released_keeps_the_claim_and_half_of_the_noise_would_not():
    """In two worlds, with one example more or less, at an epsilon that people run."""
    for row in attack(2.0, 4000):
        assert 0.9 < row.bounds[1.0] <= row.claimed_epsilon
        assert row.bounds[0.5] > row.claimed_epsilon, row.attack
        assert row.bounds[0.01] > 15


@pytest.mark.long
def test_attacks_are_alive_without_noise_and_stay_below_the_claim_with_it(backbone):
    effort = AuditSettings(canaries=40, trials=300, trainings=8, crowd=4, inversions=2)
    audited = experiment(backbone)
    findings = audit(backbone, audited, images(backbone), effort)
    by_name = {(f.attack, f.adversary, f.measure): f for f in findings}
    bounds = [f for f in findings if f.claimed_epsilon is not None]
    assert len(bounds) == 4
    assert all(f.holds for f in bounds)
    canary = by_name["one canary, one message", "operator: one message", "lower bound on epsilon"]
    assert canary.alive
    assert canary.noise_off > canary.claimed_epsilon
    found = by_name["inversion, one image, local", "operator: one message", "images found"]
    assert found.noise_off == 1.0
