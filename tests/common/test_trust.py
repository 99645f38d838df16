"""Who adds which noise: the variances, counted out for every set of survivors and colluders."""

import itertools
import math

import pytest

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy_plan import ADVERSARIES, planned_events, server_noise_stddev, site_noise_stddev

pytestmark = pytest.mark.privacy

Z, C = 1.7, 0.3


def experiment(trust, sites=4, dropouts=0, colluders=1, noise_multiplier=Z):
    return Experiment(
        name="pilot",
        classes=("cat", "dog"),
        sites=tuple(f"s{i}" for i in range(sites)),
        model=ModelSettings(width=8),
        privacy=PrivacySettings(
            mechanism="per_step",
            trust=trust,
            noise_multiplier=noise_multiplier,
            target_epsilon=None if noise_multiplier is not None else 1.0,
            clipping_norm=C,
            sample_rate=0.25,
            tolerated_dropouts=dropouts,
            tolerated_colluders=colluders,
        ),
        rounds=RoundSettings(number=3, local_steps=5),
    )


CASES = [(n, d, k) for n in range(1, 7) for d in range(n) for k in range(n)]


@pytest.mark.parametrize(("sites", "dropouts", "colluders"), CASES)
def test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices(sites, dropouts, colluders):
    """Distributed: for every survivor set the server accepts, every victim and every K colluders besides it."""
    e = experiment("distributed", sites, dropouts, colluders)
    assert server_noise_stddev(e) == 0.0
    share = site_noise_stddev(e) ** 2
    least = math.inf
    for count in range(e.min_sites, sites + 1):
        for survivors in itertools.combinations(range(sites), count):
            for gang in itertools.combinations(survivors[1:], min(max(1, colluders), count - 1)):
                least = min(least, share * sum(site not in gang for site in survivors))
    assert least >= Z**2 * C**2 * (1 - 1e-12)
    if sites - dropouts - colluders >= 1:  # and no more noise than that: the worst case is met exactly
        assert least == pytest.approx(Z**2 * C**2)


@pytest.mark.parametrize("sites", [1, 2, 7])
def test_central_and_local_put_the_whole_noise_in_one_place(sites):
    central, local = experiment("central", sites, colluders=0), experiment("local", sites, colluders=0)
    assert (site_noise_stddev(central), server_noise_stddev(central)) == (0.0, pytest.approx(Z * C))
    assert (site_noise_stddev(local), server_noise_stddev(local)) == (pytest.approx(Z * C), 0.0)


@pytest.mark.parametrize(("trust", "operator"), [("distributed", Z / math.sqrt(5)), ("central", 0.0), ("local", Z)])
def test_each_adversary_is_held_to_the_noise_it_meets(trust, operator):
    e = experiment(trust, sites=8, dropouts=1, colluders=2)
    events = {event.adversary: event for event in planned_events(e)}
    assert {name: event.noise_multiplier for name, event in events.items()} == {
        "prompt_recipient": Z,
        "other_site": Z,
        "operator": pytest.approx(operator),
    }
    assert set(events) == set(ADVERSARIES)
    if trust != "central":  # what the operator sees is one message, with this site's share alone
        assert events["operator"].noise_multiplier == pytest.approx(site_noise_stddev(e) / C)


@pytest.mark.parametrize("trust", ["distributed", "central", "local"])
def test_one_joint_event_a_step_and_adversary(trust):
    e = experiment(trust)
    for event in planned_events(e):
        assert (event.steps, event.sample_rate, event.mechanism) == (15, 0.25, "per_step")
    assert len(planned_events(e)) == 3
    assert {event.steps for event in planned_events(e, steps=2)} == {2}
    assert {event.steps for event in planned_events(e, steps=0)} == {0}


def test_an_unresolved_noise_level_is_an_error():
    with pytest.raises(ValueError, match="not resolved"):
        planned_events(experiment("distributed", noise_multiplier=None))
    with pytest.raises(ValueError, match="not resolved"):
        site_noise_stddev(experiment("distributed", noise_multiplier=None))
