"""docs/results/benchmarks.md: every table stands beside each site alone, and names seeds, settings and what failed."""

import pytest

from dpfpl_bench.simulation.curves import PREFERENCES
from dpfpl_bench.sweep.sweep import SweepOutcome
from research.tables.benchmarks import EPSILONS, FEWER_SEEDS, SEEDS, STUDIES, audit_section, page


def accuracies(own, others=0.75, every=0.8):
    return {"local": own, "neighbour": others, "all": every, "worst_site": own - 0.3}


def result(cell, own=0.9):
    with_vectors = cell.mechanism == "one_shot"
    baselines = {"zero_shot": accuracies(0.7), "local_only": accuracies(0.85)}
    candidates = {"zero_shot": accuracies(0.7), "prompt": accuracies(0.8, 0.7, 0.6)}
    if with_vectors:
        baselines["local_only_evidence"] = accuracies(0.88, 0.55, 0.65)
        candidates |= {"text": accuracies(0.71, 0.61, 0.66), "evidence": accuracies(0.89, 0.74, 0.79)}
    if cell.epsilon is None:
        baselines |= {"local_only_no_noise": accuracies(0.95), "centralised": accuracies(0.97)}
    found = {
        "accuracy": accuracies(own - cell.seed / 100),
        "baselines": baselines,
        "candidates": candidates,
        "privacy": {"epsilons": [{"adversary": "operator", "epsilon": cell.epsilon or "infinite"}]},
        "preference_curve": [
            {
                "preference": value,
                "zero_shot_local": 0.8 + value / 20,
                "zero_shot_neighbour": 0.8 - value / 20,
                "personalised_local": own,
                "personalised_neighbour": 0.75,
            }
            for value in PREFERENCES
        ],
    }
    if with_vectors:
        alone = None if cell.seed == 0 and cell.epsilon == 1.0 else 0.6
        found["own_at_equal_others"] = {"federated": 0.95, "alone": alone, "zero_shot": 0.72}
    return found


def outcome(study):
    cells = [cell for sweep in study.sweeps for cell in sweep.cells()]
    return SweepOutcome(results={cell: result(cell) for cell in cells})


GROWTH = [
    {
        "set": "digits",
        "epsilon": epsilon,
        "lines": {
            n: dict.fromkeys(("secure", "pooled", "alone", "unnoised", "text"), (50.0 + n, 1.0)) for n in (1, 5, 10)
        },
    }
    for epsilon in (8.0, 2.0)
]


@pytest.fixture
def written(tmp_path):
    return page(
        {study.key: outcome(study) for study in STUDIES},
        GROWTH,
        tmp_path,
        "## Attacks\n",
    ), tmp_path


def section(text, title):
    return next(part for part in text.split("\n## ") if part.startswith(title))


def test_every_run_of_every_study_has_settings_of_its_own():
    names = [sweep.file_name(cell) for study in STUDIES for sweep in study.sweeps for cell in sweep.cells()]
    assert len(names) == len(set(names))
    for study in STUDIES:
        for sweep in study.sweeps:
            for cell in sweep.cells():
                sweep.run_of(cell)


def test_both_sets_are_measured_with_and_without_noise_beside_each_site_alone():
    for data in ("digits", "shapes"):
        for key, seeds in (("default", SEEDS), ("dirichlet", FEWER_SEEDS)):
            (study,) = (s for s in STUDIES if s.key == f"{data}-{key}")
            cells = {(cell.epsilon, cell.seed) for sweep in study.sweeps for cell in sweep.cells()}
            assert cells == {(epsilon, seed) for epsilon in (None, *EPSILONS) for seed in range(seeds)}
    assert {sweep.floors for study in STUDIES for sweep in study.sweeps} == {"all", "alone"}


def test_the_headline_is_own_accuracy_where_the_others_are_known_and_says_where_there_is_none(written):
    text, docs = written
    headline = section(text, "What federating brings")
    assert "| digits | 4, pathological | 2 | 95.0 ± 0.0 | 60.0 ± 0.0 | 72.0 ± 0.0 |" in headline
    assert "| digits | 4, pathological | 1 | 95.0 ± 0.0 | 60.0 ± 0.0 (4 of 5) | 72.0 ± 0.0 |" in headline
    assert (docs / "images" / "benchmark-own-at-equal-others.svg").is_file()
    assert "| digits | 8 | 5 | 55.0 ± 1.0 |" in section(text, "What more sites bring")
    assert (docs / "images" / "benchmark-growth.svg").is_file()


def test_a_table_stands_beside_each_site_alone_under_the_same_promise(written):
    text, _ = written
    table = section(text, "Sites that share no class, digits")
    line = next(line for line in table.splitlines() if line.startswith("| 2 |"))
    assert line.split(" | ")[1:] == [
        "88.0 ± 1.6", "75.0 ± 0.0", "80.0 ± 0.0", "56.0", "80.0 / 70.0 / 60.0", "89.0 / 74.0 / 79.0",
        "71.0 / 61.0 / 66.0", "88.0 / 55.0 / 65.0", "+0.0 / +20.0 / +15.0", "2", "5 |",
    ]  # fmt: skip
    assert "trained until it stops improving 97.0 / 75.0 / 80.0" in table
    assert "learning_rate 0.02" in table


def test_prompts_alone_are_held_against_a_mere_preference_for_own_classes(written):
    text, _ = written
    table = section(text, "The paper's own set-up, digits")
    assert "| +5.0 |" in table
    assert "class vectors alone" not in table


def test_what_is_missing_or_failed_is_said(tmp_path):
    (study,) = (s for s in STUDIES if s.key == "digits-default")
    whole = outcome(study)
    *kept, _, failed = whole.results
    part = SweepOutcome(results={cell: whole.results[cell] for cell in kept}, failed={failed: "NO_IMAGES: none"})
    text = page({study.key: part}, [], tmp_path, "")
    assert "**Not whole: 1 runs are missing;**" in text
    assert "Failed: NO_IMAGES: none." in text


@pytest.mark.parametrize("panels", [1, 3])
def test_a_page_is_written_of_what_there_is(tmp_path, panels):
    """Growth of some sets alone, and sites alone that keep the others' classes at no epsilon."""
    (study,) = (s for s in STUDIES if s.key == "digits-default")
    some = outcome(study)
    for each in some.results.values():
        each["own_at_equal_others"] |= {"alone": None}
    text = page({study.key: some}, [*GROWTH, *GROWTH][:panels], tmp_path, "")
    assert "| 95.0 ± 0.0 | - (0 of 5) | 72.0 ± 0.0 |" in text
    assert (tmp_path / "images" / "benchmark-growth.svg").is_file()


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
