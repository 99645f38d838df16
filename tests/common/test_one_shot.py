"""Class sums, vote and moment: sensitivity 1, clipping, noise, and that the three compose to what is charged."""

import math

import numpy as np
import pytest

from dpfpl_common.errors import PrivacyError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon
from dpfpl_common.privacy.counts import noised_counts
from dpfpl_common.privacy.noise import ROUNDING_SLACK, SCALE, SystemNoise
from dpfpl_common.privacy.one_shot import noised_class_sums, noised_moment, noised_vote, shared_out
from dpfpl_common.privacy_plan import class_sums_multiplier, planned_events, vote_multiplier
from no_noise import NoNoise

pytestmark = pytest.mark.privacy


@pytest.mark.parametrize("moment", [True, False])
@pytest.mark.parametrize("z", [0.3, 1.0, 7.5])
def test_class_sums_vote_and_moment_compose_to_the_multiplier_that_is_charged(z, moment):
    first, second = shared_out(z, moment=moment)
    shares = (first, second, second) if moment else (first, second)
    assert sum(1 / share**2 for share in shares) == pytest.approx(1 / z**2, rel=1e-12)
    events = [PrivacyEvent("operator", "one_shot", m, 1.0, 1) for m in shares]
    assert epsilon(events, 1e-5) == pytest.approx(
        epsilon([PrivacyEvent("operator", "one_shot", z, 1.0, 1)], 1e-5), rel=2e-3
    )


@pytest.mark.parametrize("evidence", [True, False])
def test_what_is_charged_is_what_is_released(evidence):
    experiment = Experiment(
        "pilot",
        ("cat", "dog"),
        ("north",),
        ModelSettings(8),
        prompt=PromptSettings(evidence=evidence),
        privacy=PrivacySettings(mechanism="one_shot", trust="local", noise_multiplier=2.0),
    )
    released = [class_sums_multiplier(experiment)]
    if evidence:
        released += [vote_multiplier(experiment)] * 2  # the vote and the moment
    for event in planned_events(experiment):
        assert sum(1 / z**2 for z in released) == pytest.approx(event.steps / event.noise_multiplier**2)


@pytest.mark.parametrize("value", [5.0, -5.0, math.inf, -math.inf, math.nan])
def test_one_example_moves_the_vote_by_at_most_one(value):
    without, within = NoNoise(), NoNoise()
    votes = np.array([0.5, -1.0, 1.0])
    noised_vote(votes, without, 3.0)
    noised_vote(np.append(votes, value), within, 3.0)

    (before, stddev), (after, _) = without.calls[0], within.calls[0]
    assert abs(after - before).item() <= 1.0
    assert stddev == 3.0


def test_the_votes_noise_has_the_stated_deviation():
    told = np.array([noised_vote(np.zeros(0), SystemNoise(), 2.0) for _ in range(3000)])
    assert told.std() == pytest.approx(2.0, rel=0.08)
    assert abs(told.mean()) < 0.2


@pytest.mark.parametrize("residual", [[5.0, 0, 0], [1.0, -1.0, 1.0], [0.6, 0.8, 0], [1e-9, 0, 0], [math.nan, 1, 0],
                                      [math.inf, 0, 0], [1e300, 1e300, 0]])  # fmt: skip
def test_one_example_moves_the_moment_by_at_most_one(residual):
    without, within = NoNoise(), NoNoise()
    residuals = np.random.default_rng(0).normal(size=(600, 3))
    noised_moment(residuals, without, 3.0)
    noised_moment(np.concatenate([residuals[:200], [residual], residuals[200:]]), within, 3.0)

    (before, stddev), (after, _) = without.calls[0], within.calls[0]
    assert before.shape == (6,)
    assert np.linalg.norm(after - before) <= 1.0
    assert stddev == 3.0


def test_the_moments_noise_has_the_stated_deviation_in_every_coordinate():
    told = np.array([noised_moment(np.zeros((0, 4)), SystemNoise(), 2.0) for _ in range(1500)])
    np.testing.assert_allclose(told.std(axis=0), 2.0, rtol=0.1)
    assert np.abs(told.mean(axis=0)).max() < 0.3


def test_without_a_privacy_claim_the_sum_itself_is_told():
    noise = NoNoise()
    np.testing.assert_allclose(noised_moment(np.array([[0.6, 0.8]]), noise, 0.0), [0.36, 0.48 * 2**0.5, 0.64])
    assert noised_vote(np.array([1.0, -0.25]), noise, 0.0) == 0.75
    assert noise.calls == []


@pytest.mark.parametrize(
    ("size", "release"),
    [
        (1, lambda z: noised_vote(np.zeros(3), NoNoise(), z)),
        (3, lambda z: noised_counts(np.ones((5, 2)), NoNoise(), z)),
        (8, lambda z: noised_class_sums(np.eye(4, dtype=np.float32), np.zeros(4, np.int64), 2, NoNoise(), z)),
        (10, lambda z: noised_moment(np.eye(4), NoNoise(), z)),
    ],
    ids=["vote", "counts", "class sums", "moment"],
)
def test_noise_for_which_the_grids_slack_does_not_pay_is_refused(size, release):
    largest = ROUNDING_SLACK * SCALE / np.sqrt(size)
    release(0.999 * largest)
    with pytest.raises(PrivacyError, match="NOISE_GRID"):
        release(1.001 * largest)
