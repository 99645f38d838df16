"""The noise that an experiment gets before it starts, whatever mechanism, clipping and accounting it names."""

import dataclasses
import math

import pytest

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy_plan import BLOCKS, paper_noise_multiplier, planned_events, resolve_noise, separate_blocks

pytestmark = pytest.mark.privacy


def experiment(method="dpfpl", steps=20, **privacy):
    base = Experiment(
        name="plan",
        classes=("a", "b"),
        sites=("one", "two", "three"),
        model=ModelSettings(width=8),
        privacy=PrivacySettings(**({"mechanism": "per_step", "target_epsilon": 2.0, "sample_rate": 0.3} | privacy)),
        rounds=RoundSettings(number=steps, local_steps=1),
    )
    return dataclasses.replace(base, prompt=dataclasses.replace(base.prompt, method=method))


def recipient(planned):
    return planned_events(planned)[0]


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
    planned = resolve_noise(experiment(**privacy))
    spent = epsilon([recipient(planned)], planned.privacy.target_delta)
    assert 0.98 * 2.0 <= spent <= 2.0


def test_separate_clipping_pays_for_every_block():
    joint, separate = resolve_noise(experiment()), resolve_noise(experiment(clipping="separate"))
    ratio = separate.privacy.noise_multiplier / joint.privacy.noise_multiplier
    assert math.isclose(ratio, math.sqrt(3), rel_tol=1e-3)
    assert separate_blocks(separate) == BLOCKS["dpfpl"] == 3
    assert separate_blocks(resolve_noise(experiment("promptfl", clipping="separate"))) == 1
    # Unseen blocks steer the personal context and so every later shared gradient: they count towards everybody.
    z = separate.privacy.noise_multiplier
    _, other_site, operator = planned_events(separate)
    assert math.isclose(other_site.noise_multiplier, z / math.sqrt(3))
    assert math.isclose(operator.noise_multiplier, z / math.sqrt(2 + 2))  # H = 3 - 0 - 1 shares, two more blocks


def test_one_shot_is_one_release_without_sampling_however_long_the_run():
    planned = resolve_noise(experiment(mechanism="one_shot", trust="local"))
    for event in planned_events(planned):
        assert (event.steps, event.sample_rate) == (1, 1.0)
        assert event.noise_multiplier == planned.privacy.noise_multiplier
    assert all(event.steps == 0 for event in planned_events(planned, 0))
    assert all(event.steps == 1 for event in planned_events(planned, 7))


def test_paper_accounting_is_the_published_formula_and_not_an_honest_target():
    steps = 100
    planned = resolve_noise(experiment(steps=steps, accounting="paper"))
    assert planned.privacy.noise_multiplier == math.sqrt(steps * math.log(1e5)) / 2.0
    assert paper_noise_multiplier(0.1, 1e-5, 100) == pytest.approx(339.3, abs=0.1)
    assert epsilon([recipient(planned)], 1e-5) != pytest.approx(2.0, rel=0.05)
