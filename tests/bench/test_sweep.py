"""``dpfpl-bench sweep``: every combination once, nothing run twice, sums that are right, clear errors."""

import json

import pytest

from dpfpl_bench.simulation.settings import RunPrivacy, RunPrompt
from dpfpl_bench.sweep.sweep import Cell, Grid, Sweep, SweepProgress, load_sweep, run_sweep
from dpfpl_bench.sweep.table import as_csv, as_markdown, summarise, write_plots
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import RoundSettings


def result(local, neighbour=0.5, worst=0.4, zero_shot=0.3, recipient=8.0, operator="infinite"):
    floor = {"local": zero_shot, "neighbour": zero_shot}
    return {
        "accuracy": {"local": local, "neighbour": neighbour, "worst_site": worst},
        "floors": {"zero_shot": floor, "global_only": floor},
        "privacy": {
            "epsilons": [
                {"adversary": "prompt_recipient", "epsilon": recipient},
                {"adversary": "operator", "epsilon": operator},
            ],
            "events": [],
        },
    }


def test_every_combination_is_run_once_and_meaningless_ones_are_not():
    sweep = Sweep(
        name="s",
        seeds=2,
        grid=Grid(
            method=("dpfpl", "promptfl"),
            rank=(1, 4),
            mechanism=("per_step",),
            trust=("distributed", "local"),
            epsilon=(8.0, 1.0),
        ),
    )
    cells = sweep.cells()
    assert len(set(cells)) == len(cells)
    # dpfpl: 2 ranks x (2 epsilons x 2 trusts + 1 without noise); promptfl has no rank
    assert len(cells) == 2 * (2 * 5 + 5)
    assert {c.rank for c in cells if c.method == "promptfl"} == {1}
    assert {c.trust for c in cells if c.epsilon is None} == {"distributed"}


def test_a_changed_setting_is_another_file_and_a_longer_sweep_is_not():
    cell = Cell("dpfpl", 4, "per_step", "local", 8.0, 0)
    base = Sweep(name="s")
    assert base.file_name(cell) == Sweep(name="other", seeds=7, grid=Grid(rank=(1, 2))).file_name(cell)
    assert base.file_name(cell) != Sweep(name="s", partition="iid").file_name(cell)
    assert base.file_name(cell) != Sweep(name="s", floors="none").file_name(cell)


def test_the_table_holds_mean_spread_and_the_worst_site_of_all_seeds():
    cells = [Cell("dpfpl", 4, "per_step", "local", 8.0, seed) for seed in range(2)]
    (row,) = summarise({cells[0]: result(0.6, worst=0.5), cells[1]: result(0.8, worst=0.2)})
    assert row.seeds == 2
    assert row.local == pytest.approx(0.7)
    assert row.local_spread == pytest.approx(0.02**0.5)
    assert row.worst_site == 0.2
    assert row.floors["zero_shot_local"] == 0.3
    assert row.floors["local_only_local"] is None
    assert "70.0 ± 14.1" in as_markdown([row])
    assert "infinite" in as_markdown([row])
    header, line = as_csv([row]).splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["worst_site"] == "0.2"


def test_pictures_show_what_was_varied_and_are_the_same_each_time(tmp_path):
    results = {
        Cell("dpfpl", rank, "per_step", "local", epsilon, 0): result(0.1 * rank + 0.01 * epsilon)
        for rank in (1, 4)
        for epsilon in (8.0, 1.0)
    }
    rows = summarise(results)
    written = write_plots(rows, tmp_path, "title")
    assert [path.name for path in written] == ["accuracy-by-epsilon.svg", "accuracy-by-rank.svg"]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_plots(rows, tmp_path, "title")] == first
    assert write_plots(rows[:1], tmp_path, "title") == []


def test_a_run_of_a_sweep_has_what_its_cell_says_and_nothing_of_the_other_mechanism():
    prompt = RunPrompt(absent_weight=0.5, retention=1.0, contrast=1.0)
    sweep = Sweep(
        name="s", sites=7, prompt=prompt, privacy=RunPrivacy(projection="text"), rounds=RoundSettings(number=3)
    )
    once = sweep.run_of(Cell("fedpgp", 2, "one_shot", "local", 4.0, 0))
    assert (once.prompt.method, once.prompt.rank, once.sites, once.rounds.number) == ("fedpgp", 2, 7, 3)
    assert (once.privacy.mechanism, once.privacy.trust, once.privacy.target_epsilon) == ("one_shot", "local", 4.0)
    assert (once.prompt.absent_weight, once.prompt.retention, once.prompt.contrast) == (0.5, 0.0, 0.0)
    assert once.privacy.projection == "text"
    steps = sweep.run_of(Cell("fedpgp", 2, "per_step", "central", None, 0))
    assert (steps.prompt.absent_weight, steps.prompt.retention, steps.prompt.contrast) == (0.0, 1.0, 1.0)
    assert (steps.privacy.projection, steps.privacy.noise_multiplier) == ("none", 0.0)
    assert sweep.run_of(Cell("dpfpl", 2, "per_step", "central", None, 0)).prompt.contrast == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "s"\nseeds = 0', "seeds"),
        ('name = "s"\nfloors = "some"', "floors"),
        ('name = "s"\n[grid]\nmethod = []', "method"),
        ('name = "s"\n[grid]\nepsilon = []\nno_noise = false', "epsilon"),
        ('name = "s"\n[grid]\ncolour = ["red"]', "colour"),
        ('name = "s"\n[rounds]\nnumber = "ten"', r"\[rounds\] number is 'ten'"),
        ('name = "s"\n[rounds]\nlocal_stepz = 1', "local_stepz"),
    ],
)
def test_a_wrong_sweep_is_named(tmp_path, text, said):
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_sweep(tmp_path / "sweep.toml")


@pytest.mark.slow
def test_a_sweep_from_the_command_line_goes_on_where_it_was(bench, tmp_path):
    (tmp_path / "sweep.toml").write_text(
        'name = "tiny"\ndata = "shapes"\nsites = 2\nseeds = 1\nfloors = "none"\n'
        '[grid]\nmethod = ["dpfpl"]\nmechanism = ["one_shot"]\ntrust = ["central", "local"]\nepsilon = [8]\n'
        "no_noise = false\n[rounds]\nnumber = 1\nlocal_steps = 1\n"
    )

    out = tmp_path / "out"
    code, text, err = bench("sweep", tmp_path / "sweep.toml", "--out", out, "--workers", 1, "--json")
    assert code == 0, err
    summary = json.loads(text)
    assert len(summary["rows"]) == 1
    assert summary["rows"][0]["local"] > 0
    assert list(summary["refused"]) == ["dpfpl rank 4, one_shot, central, epsilon 8"]
    (event,) = {event["noise_multiplier"] for events in summary["events"].values() for event in events}
    assert event > 0
    (file,) = (out / "runs").glob("*.json")
    before = file.stat().st_mtime_ns

    seen: list[SweepProgress] = []
    sweep = load_sweep(tmp_path / "sweep.toml")
    outcome = run_sweep(sweep, out, 1, seen.append)
    assert file.stat().st_mtime_ns == before
    assert len(outcome.results) == 1
    assert seen[0].done == 1
