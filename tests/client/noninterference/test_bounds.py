"""NI9 to NI11: what is bounded, counted and added up at a site does not depend on how many examples it has."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import noised_step
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.clipping import GRAIN, clipped_sums
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.privacy_plan import planned_events, resolve_noise, site_noise_stddev
from dpfpl_server.federation.aggregation import update_norm_cap
from no_noise import NoNoise

pytestmark = pytest.mark.privacy


DISTRIBUTED = {"mechanism": "per_step", "trust": "distributed", "noise_multiplier": 1.0}
DISTRIBUTED |= {"nominal_site_size": 1, "sample_rate": 0.5}


def experiment(sites=3, **privacy):
    return Experiment(
        name="e",
        classes=("a", "b"),
        sites=tuple(f"s{number}" for number in range(sites)),
        model=ModelSettings(width=8),
        prompt=PromptSettings(num_context=2, rank=1),
        privacy=PrivacySettings(**(DISTRIBUTED | privacy)),
        rounds=RoundSettings(number=2, local_steps=1),
    )


@pytest.mark.parametrize("sites", [2, 3])
def test_ni9_a_sites_own_share_never_counts_even_where_nobody_colludes(sites):
    """The noise that a site does not know has the whole deviation, and the claimed epsilon is what that gives."""
    planned = resolve_noise(experiment(sites, noise_multiplier=None, target_epsilon=8.0, tolerated_colluders=0))
    unknown = math.sqrt(sites - 1) * site_noise_stddev(planned)
    assert unknown >= planned.privacy.noise_multiplier * planned.privacy.clipping_norm * (1 - 1e-12)
    claimed = next(event for event in planned_events(planned) if event.adversary == "other_site")
    real = dataclasses.replace(claimed, noise_multiplier=unknown / planned.privacy.clipping_norm)
    assert epsilon([real], 1e-5) <= epsilon([claimed], 1e-5) + 1e-9


@pytest.mark.parametrize("trust", ["distributed", "local", "central"])
@pytest.mark.parametrize("examples", [1, 150, 5000])
def test_ni11_an_honest_site_of_any_size_stays_below_the_servers_cap(trust, examples):
    """5,000 examples where one is nominal, all pulling the same way: held at the site, before the noise."""
    planned = experiment(trust=trust)
    directions = build_method("dpfpl", planned.context_shape, 1).directions(
        np.zeros(planned.context_shape), np.random.default_rng(0)
    )
    gradients = np.full((examples, *planned.context_shape), 10.0)
    update = noised_step(planned, directions, gradients, SystemNoise()).shared.astype("<f4").astype(np.float64)
    assert np.linalg.norm(update) <= update_norm_cap(planned)
    if examples == 5000 and trust != "central":
        assert np.linalg.norm(noised_step(planned, directions, gradients, NoNoise()).shared) > 0.99 * (
            planned.privacy.clipping_norm * planned.aggregation.largest_site / planned.privacy.sample_rate
        ), "the bound binds"


@pytest.mark.parametrize("clipping", ["joint", "separate"])
def test_ni10_what_an_example_adds_is_the_same_to_the_bit_whatever_the_others_are(clipping):
    """Sums of whole numbers on a grid: order and company do not matter, and no contribution passes its bound."""
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(200, 4, 8)) * 10.0 ** rng.integers(-3, 3, (200, 1, 1)) for _ in range(2)]
    norms = [0.1, 0.03]
    whole = clipped_sums(blocks, norms, clipping)
    for left_out in (0, 57, 199):
        rest = clipped_sums([np.delete(block, left_out, axis=0) for block in blocks], norms, clipping)
        alone = clipped_sums([block[left_out : left_out + 1] for block in blocks], norms, clipping)
        for total, others, one, norm in zip(whole, rest, alone, norms, strict=True):
            steps = [np.rint(part / (norm * GRAIN)) for part in (total, others, one)]
            assert np.array_equal(steps[0] - steps[1], steps[2])
        assert sum(np.linalg.norm(one) ** 2 / norm**2 for one, norm in zip(alone, norms, strict=True)) <= (
            1.0 if clipping == "joint" else 2.0
        )
    order = torch.randperm(200).numpy()
    shuffled = clipped_sums([block[order] for block in blocks], norms, clipping)
    assert all(np.array_equal(one, other) for one, other in zip(whole, shuffled, strict=True))
