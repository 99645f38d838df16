"""Who adds which noise, and how much of it an experiment gets before it starts."""

import itertools
import math

import pytest

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import (
    ADVERSARIES,
    BLOCKS,
    paper_noise_multiplier,
    planned_events,
    resolve_noise,
    separate_blocks,
    server_noise_stddev,
    site_noise_stddev,
)

pytestmark = pytest.mark.privacy

Z, C = 1.7, 0.3


def experiment(trust="distributed", sites=4, method="dpfpl", rounds=(3, 5), **privacy):
    asked = {"mechanism": "per_step", "noise_multiplier": Z, "clipping_norm": C, "sample_rate": 0.25} | privacy
    return Experiment(
        name="pilot",
        classes=("cat", "dog"),
        sites=tuple(f"s{i}" for i in range(sites)),
        model=ModelSettings(width=8),
        prompt=PromptSettings(method=method),
        privacy=PrivacySettings(trust=trust, **asked),
        rounds=RoundSettings(*rounds),
    )


CASES = [(n, d, k) for n in range(1, 7) for d in range(n) for k in range(n)]


@pytest.mark.parametrize(("sites", "dropouts", "colluders"), CASES)
def test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices(sites, dropouts, colluders):
    """Distributed: for every survivor set the server accepts, every victim and every K colluders besides it."""
    e = experiment("distributed", sites, tolerated_dropouts=dropouts, tolerated_colluders=colluders)
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
    central, local = (experiment(trust, sites, tolerated_colluders=0) for trust in ("central", "local"))
    assert (site_noise_stddev(central), server_noise_stddev(central)) == (0.0, pytest.approx(Z * C))
    assert (site_noise_stddev(local), server_noise_stddev(local)) == (pytest.approx(Z * C), 0.0)


@pytest.mark.parametrize(("trust", "operator"), [("distributed", Z / math.sqrt(5)), ("central", 0.0), ("local", Z)])
def test_each_adversary_is_held_to_the_noise_it_meets(trust, operator):
    e = experiment(trust, sites=8, tolerated_dropouts=1, tolerated_colluders=2)
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
    for noise in (planned_events, site_noise_stddev):
        with pytest.raises(ValueError, match="not resolved"):
            noise(experiment(noise_multiplier=None, target_epsilon=1.0))


def planned(method="dpfpl", steps=20, **privacy):
    """An experiment of three sites that asks for an epsilon of 2, with its noise."""
    asked = {"noise_multiplier": None, "target_epsilon": 2.0, "sample_rate": 0.3} | privacy
    return resolve_noise(experiment(sites=3, method=method, rounds=(steps, 1), **asked))


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        {"trust": "central"},
        {"trust": "local"},
        {"clipping": "separate"},
        {"mechanism": "one_shot", "trust": "local"},
    ],
)
def test_the_target_holds_and_is_nearly_used_up(privacy):
    spent = epsilon([planned_events(planned(**privacy))[0]], 1e-5)
    assert 0.98 * 2.0 <= spent <= 2.0


def test_separate_clipping_pays_for_every_block():
    joint, separate = planned(), planned(clipping="separate")
    ratio = separate.privacy.noise_multiplier / joint.privacy.noise_multiplier
    assert math.isclose(ratio, math.sqrt(3), rel_tol=1e-3)
    assert separate_blocks(separate) == BLOCKS["dpfpl"] == 3
    assert separate_blocks(planned("promptfl", clipping="separate")) == 1
    # Unseen blocks steer the personal context and so every later shared gradient: they count towards everybody.
    z = separate.privacy.noise_multiplier
    _, other_site, operator = planned_events(separate)
    assert math.isclose(other_site.noise_multiplier, z / math.sqrt(3))
    assert math.isclose(operator.noise_multiplier, z / math.sqrt(2 + 2))  # H = 3 - 0 - 1 shares, two more blocks


def test_one_shot_is_one_release_without_sampling_however_long_the_run():
    e = planned(mechanism="one_shot", trust="local")
    for event in planned_events(e):
        assert (event.steps, event.sample_rate) == (1, 1.0)
        assert event.noise_multiplier == e.privacy.noise_multiplier
    assert all(event.steps == 0 for event in planned_events(e, 0))
    assert all(event.steps == 1 for event in planned_events(e, 7))


def test_paper_accounting_is_the_published_formula_and_not_an_honest_target():
    steps = 100
    e = planned(steps=steps, accounting="paper")
    assert e.privacy.noise_multiplier == math.sqrt(steps * math.log(1e5)) / 2.0
    assert paper_noise_multiplier(0.1, 1e-5, 100) == pytest.approx(339.3, abs=0.1)
    assert epsilon([planned_events(e)[0]], 1e-5) != pytest.approx(2.0, rel=0.05)
