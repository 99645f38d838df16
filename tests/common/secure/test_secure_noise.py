"""Row SE8: the noise of a secure sum is standard normal at the deviation that is charged, whoever is missing."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.policy import Policy, violations
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.counts import count_noise_stddev
from dpfpl_common.privacy.noise import SystemNoise, from_steps, to_steps
from dpfpl_common.privacy_plan import (
    class_sums_multiplier,
    noise_share,
    planned_events,
    planned_score_events,
    resolve_noise,
    score_noise_multiplier,
    scored,
    share_stddev,
    vote_multiplier,
)
from dpfpl_common.secure import SUMS
from dpfpl_common.secure.terms import terms_of

pytestmark = pytest.mark.privacy

DRAWS = 6000


def experiment(sites: int = 9, dropouts: int = 0, colluders: int = 1, **privacy: object) -> Experiment:
    settings = {"target_epsilon": 2.0, "tolerated_dropouts": dropouts, "tolerated_colluders": colluders, **privacy}
    return resolve_noise(
        Experiment(
            name="pilot",
            classes=("cat", "dog"),
            sites=tuple(f"s{number}" for number in range(sites)),
            model=ModelSettings(width=8),
            privacy=PrivacySettings(trust="secure", **settings),  # type: ignore[arg-type]
            rounds=RoundSettings(number=2),
        )
    )


def charged(e: Experiment, name: str) -> float:
    """The deviation that the accountant counts on, towards who knows the shares of all colluders."""
    z = score_noise_multiplier(e)
    counts = count_noise_stddev(len(scored(e)), z)
    return {"rows": class_sums_multiplier(e), "vote": vote_multiplier(e), "scores": counts}[name]


def unknown_noise(e: Experiment, name: str) -> np.ndarray:
    """What is left of the sum's noise in the worst case: D sites gone, K known, or the victim itself."""
    stddev, privacy = share_stddev(e, name), e.privacy
    left = len(e.sites) - privacy.tolerated_dropouts - max(1, privacy.tolerated_colluders)
    nothing = np.zeros(DRAWS)
    parts = [to_steps(SystemNoise().add(nothing, stddev), stddev) for _ in range(left)]
    return from_steps(np.sum(parts, axis=0), stddev)


@pytest.mark.parametrize(("sites", "dropouts", "colluders"), [(3, 0, 1), (9, 0, 1), (9, 2, 3), (20, 5, 0)])
@pytest.mark.parametrize("name", SUMS)
def test_se8_the_noise_of_the_sum_is_the_one_that_is_charged(
    sites: int, dropouts: int, colluders: int, name: str
) -> None:
    e = experiment(sites, dropouts, colluders)
    noise = unknown_noise(e, name) / charged(e, name)

    assert stats.kstest(noise, "norm").pvalue > 1e-5
    assert stats.kstest(noise * 1.5, "norm").pvalue < 1e-9
    assert stats.kstest(noise / 1.5, "norm").pvalue < 1e-9


@pytest.mark.parametrize(("sites", "dropouts", "colluders"), [(3, 0, 1), (9, 2, 3), (100, 10, 5)])
def test_all_three_adversaries_are_held_to_the_target(sites: int, dropouts: int, colluders: int) -> None:
    e = experiment(sites, dropouts, colluders)

    for events in (planned_events(e), planned_score_events(e)):
        assert {event.noise_multiplier for event in events} == {e.privacy.noise_multiplier}
        assert max(epsilon([event], 1e-5) for event in events) <= 2.0


def test_a_share_alone_would_not_do() -> None:
    """Why the masks matter: one site's part carries the noise of 1 of H."""
    e = experiment(9)

    assert e.honest_shares == 8
    assert noise_share(e) == pytest.approx(1 / math.sqrt(8))
    assert noise_share(dataclasses.replace(e, privacy=dataclasses.replace(e.privacy, trust="local"))) == 1.0


def test_steps_of_the_grid_come_back_exactly_and_add_up() -> None:
    e = experiment()
    stddev = share_stddev(e, "rows")
    released = SystemNoise().add(np.linspace(-300, 300, 50), stddev)
    steps = to_steps(released, stddev)

    np.testing.assert_allclose(from_steps(steps, stddev), released, rtol=1e-12)
    assert np.abs(to_steps(np.array([1e30, -1e30]), stddev)).max() * 2000 < 2**63


def test_a_site_makes_its_own_terms_of_the_experiment() -> None:
    about = terms_of(experiment(9, dropouts=2, colluders=3), "rows", 4)

    assert (about.least, about.dropouts, about.colluders, about.threshold, about.attempt) == (7, 2, 3, 7, 4)
    labels = {terms_of(experiment(9), name, attempt).label for name in SUMS for attempt in (1, 2)}
    assert len(labels | {terms_of(experiment(9, target_delta=1e-6), "rows", 1).label}) == 7


@pytest.mark.parametrize(
    "parts",
    [
        {"sites": 2},
        {"sites": 5, "dropouts": 2},
        {"sites": 9, "dropouts": 0, "colluders": 9},
        {"sites": 9, "noise_multiplier": 0.0},
        {"sites": 9, "mechanism": "per_step"},
    ],
    ids=str,
)
def test_sums_that_could_not_be_unmasked_or_protect_nobody_are_refused(parts: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        experiment(**parts)  # type: ignore[arg-type]


def test_without_evidence_there_is_nothing_to_sum() -> None:
    e = experiment()

    with pytest.raises(ConfigError, match=r"prompt\.evidence"):
        dataclasses.replace(e, prompt=PromptSettings(evidence=False))


def test_a_policy_must_name_it() -> None:
    e = experiment()
    named = Policy(("*",), 50.0, 50.0, trust=("secure",), max_epsilon_operator=2.0)

    assert [broken.code for broken in violations(Policy(("*",), 50.0, 50.0), e)] == ["TRUST_NOT_ALLOWED"]
    assert list(violations(named, e)) == []
