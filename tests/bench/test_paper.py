"""The paper's figures are carried as printed, and ours stand beside them with what their noise is worth."""

import pytest

from dpfpl_bench import paper
from dpfpl_bench.paper import REASONS, Comparison, compare, markdown, paper_rows, paper_training
from dpfpl_bench.sweep.sweep import Grid, Sweep
from dpfpl_common.errors import ConfigError


def row(table, data, epsilon):
    return next(r for r in paper_rows(table) if (r.data, r.epsilon) == (data, epsilon))


def test_figures_are_the_published_ones():
    assert row(2, "oxford_pets", 0.01).accuracy == {"promptfl": 43.68, "fedotp": 54.08, "fedpgp": 45.49, "dpfpl": 73.71}
    assert row(2, "caltech101", None).accuracy["fedotp"] == 97.06
    assert [len(paper_rows(table)) for table in (2, 3, 4)] == [24, 24, 12]
    assert {r.where for r in paper_rows(3)} == {"neighbour"}
    assert {r.sites for r in paper_rows(4)} == {25, 50}


def test_a_table_that_is_not_carried_is_refused():
    with pytest.raises(ConfigError, match="--table is 6"):
        paper_rows(6)


@pytest.fixture
def base():
    return Sweep(**vars(paper_training(1, 1, 0.1)), name="p", seeds=1, grid=Grid(rank=(2,)))


def test_data_that_is_not_at_hand_is_listed_with_what_to_do(monkeypatch, base, tmp_path):
    monkeypatch.delenv("DPFPL_DATA_SETS", raising=False)
    found = compare(paper_rows(2), base, tmp_path, 1)
    assert set(found.missing) == {"caltech101", "oxford_pets", "oxford_flowers", "food101"}
    assert all(line["own_noise"]["accuracy"] is None for line in found.lines)
    text = markdown(found, "embedded")
    assert "timm/oxford-iiit-pet" in text
    assert all(reason in text for reason in REASONS)


@pytest.mark.slow
@pytest.mark.usefixtures("in_one_process")
def test_ours_runs_under_both_noises_and_says_what_each_is_worth(monkeypatch, base, tmp_path):
    monkeypatch.delenv("DPFPL_DATA_SETS", raising=False)
    monkeypatch.setattr(paper, "METHODS", ("promptfl", "dpfpl"))
    wanted = [r for r in paper_rows(2) if r.data == "food101" and r.epsilon == 0.4]

    found = compare(wanted, base, tmp_path, 1, stand_in="digits")

    assert isinstance(found, Comparison)
    assert not found.failed
    assert len(found.lines) == 2
    for line in found.lines:
        assert line["ran_on"] == "digits"
        assert 0 < line["own_noise"]["accuracy"] <= 1
        assert line["own_noise"]["epsilon_recipient"] <= 0.4
        assert line["paper_noise"]["epsilon_operator"] == "infinite"
