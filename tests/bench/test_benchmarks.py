"""docs/results/benchmarks.md: every table names seeds, settings, events, floors and the worst site."""

import pytest

from dpfpl_bench.simulation.curves import PREFERENCES, STRENGTHS
from dpfpl_bench.sweep.sweep import SweepOutcome
from research.tables.benchmark_page import aims_section, audit_section, page
from research.tables.benchmarks import STUDIES


def result(cell, local=0.9):
    floor = {"local": 0.8, "neighbour": 0.7, "worst_site": 0.6}
    floors = {"zero_shot": floor, "global_only": floor, "local_only": floor | {"local": 0.85}}
    if cell.epsilon is None:
        floors |= {"local_only_no_noise": floor | {"local": 0.95}, "centralised": floor}
    return {
        "accuracy": {"local": local, "neighbour": 0.75, "worst_site": 0.55},
        "floors": floors,
        "privacy": {
            "epsilons": [
                {"adversary": "prompt_recipient", "epsilon": cell.epsilon or "infinite"},
                {"adversary": "operator", "epsilon": "infinite"},
            ],
            "events": [
                {"adversary": "prompt_recipient", "noise_multiplier": 1.25, "sample_rate": 0.5, "steps": 40},
            ],
        },
        "strength_curve": [
            {"strength": alpha, "local": 0.5 + alpha / 10, "neighbour": 0.7, "worst_site": 0.4} for alpha in STRENGTHS
        ],
        "preference_curve": [
            {
                "preference": value,
                "zero_shot_local": 0.8 + value / 20,
                "zero_shot_neighbour": 0.8 - value / 20,
                "personalised_local": local,
                "personalised_neighbour": 0.75,
            }
            for value in PREFERENCES
        ],
        "seconds": 3.0,
    }


def outcome(study):
    cells = [cell for sweep in study.sweeps for cell in sweep.cells()]
    return SweepOutcome(results={cell: result(cell) for cell in cells})


def test_every_run_of_every_study_has_settings_of_its_own():
    names = [sweep.file_name(cell) for study in STUDIES for sweep in study.sweeps for cell in sweep.cells()]
    assert len(names) == len(set(names))
    for study in STUDIES:
        for sweep in study.sweeps:
            for cell in sweep.cells():
                sweep.run_of(cell)


def test_defaults_are_held_against_the_private_floor_on_both_sets_at_four_epsilons_and_three_seeds():
    for data in ("digits", "shapes"):
        (study,) = (s for s in STUDIES if s.key == f"{data}-default")
        bare, noisy = study.sweeps
        assert noisy.floors == "alone"
        assert bare.floors == "all"
        assert {(c.epsilon, c.seed) for c in noisy.cells()} == {(e, s) for e in (8.0, 4.0, 2.0, 1.0) for s in range(3)}


@pytest.fixture
def written(tmp_path):
    kept = {study.key: outcome(study) for study in STUDIES if study.key in ("digits-default", "ranks")}
    return page(kept, tmp_path, "## Attacks\n", 90.0), tmp_path


def test_a_table_names_seeds_settings_events_floors_and_the_worst_site(written):
    text, docs = written
    assert "## The default settings on digits" in text
    assert "on shapes" not in text.replace("digits and shapes", "")
    assert "| none | 90.0 ± 0.0 | 75.0 ± 0.0 | 55.0 | 80.0 / 70.0 | 80.0 / 70.0 | 85.0 / 70.0 | +10.0 / +5.0 |" in text
    assert "8: z 1.250, rate 0.5, 40 releases (one_shot)" in text
    assert "each site alone without noise 95.0 / 70.0, worst site 60.0" in text
    assert "clipping_norm 0.1" in text
    assert "alpha 1.5" in text
    assert (
        "| any | plain text | 70.0 / 90.0 | 75.0 / 85.0 | 80.0 / 80.0 | 85.0 / 75.0 | 90.0 / 70.0 | 100.0 / 60.0 | |"
        in text
    )
    assert "| 90.0 / 75.0 | 85.0, +5.0 |" in text
    for picture in ("digits-default-accuracy-by-epsilon", "ranks-accuracy-by-rank"):
        assert (docs / "images" / f"benchmark-{picture}.svg").is_file()


def runs_of_default(own_at_2=0.9, own_alone=0.85):
    (study,) = (s for s in STUDIES if s.key == "digits-default")
    cells = [cell for sweep in study.sweeps for cell in sweep.cells()]
    results = {cell: result(cell, own_at_2 if cell.epsilon == 2.0 else 0.9) for cell in cells}
    for each in results.values():
        each["floors"]["local_only"] = {"local": own_alone, "neighbour": 0.7, "worst_site": 0.6}
    return {"digits-default": SweepOutcome(results=results)}


def test_an_aim_is_reached_only_where_the_runs_say_so():
    text = aims_section(runs_of_default())
    assert "at most 2 points of own accuracy against no noise | digits | 0.0 | yes |" in text
    assert "| digits | +10.0 (epsilon 8), +10.0 (4), +10.0 (2), +10.0 (1) | yes |" in text
    assert (
        "each site alone under the same promise | digits | +5.0 (epsilon 8), +5.0 (4), +5.0 (2), +5.0 (1) | yes |"
        in text
    )
    assert "shapes" not in text

    text = aims_section(runs_of_default(own_at_2=0.79, own_alone=0.9))
    assert "at most 2 points of own accuracy against no noise | digits | 11.0 | no |" in text
    assert "| digits | +10.0 (epsilon 8), +10.0 (4), -1.0 (2), +10.0 (1) | no |" in text
    assert "| digits | +0.0 (epsilon 8), +0.0 (4), -11.0 (2), +0.0 (1) | no |" in text


def test_the_gain_that_is_kept_is_that_of_the_best_strength_that_stays_near_zero_shot():
    runs = runs_of_default()
    for each in runs["digits-default"].results.values():
        each["floors"]["zero_shot"] = {"local": 0.5, "neighbour": 0.7, "worst_site": 0.5}
        for point in each["strength_curve"]:  # alpha 0.5: 0.8 own, 0.69 others'; alpha 0.75: 0.95 and 0.67
            alpha = point["strength"]
            point |= {"local": 0.5 + 0.6 * alpha, "neighbour": 0.73 - 0.08 * alpha}
    assert "| digits | 75 % (epsilon 8), 75 % (4), 75 % (2), 75 % (1) | no |" in aims_section(runs)


def finding(**changes):
    return {
        "attack": "a",
        "adversary": "who",
        "measure": "m",
        "with_noise": 0.1,
        "noise_off": 3.0,
        "guess": 0.0,
        "claimed_epsilon": 2.0,
        "holds": True,
        "alive": True,
    } | changes


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "alive, holds"),
        ({"alive": False}, "weak attack, says little"),
        ({"holds": False}, "BROKEN"),
        ({"claimed_epsilon": None, "holds": False}, "alive, noise hides little"),
    ],
)
def test_an_attack_that_proves_nothing_is_not_called_a_success(changes, verdict):
    text = audit_section({"T": {"findings": [finding(**changes)], "seeds": [0, 1], "effort": {}}})
    assert f"| {verdict} |" in text
    assert "Seeds 0, 1" in text
