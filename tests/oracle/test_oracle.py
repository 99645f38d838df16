"""Seeded federations release, keep and charge what they did when ``hashes.json`` was recorded; see ``oracle.py``."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch

ORACLE = runpy.run_path(str(Path(__file__).with_name("oracle.py")))
KEPT = json.loads(ORACLE["KEPT"].read_text())
torch.set_num_threads(1)


@pytest.mark.privacy
@pytest.mark.parametrize("name", sorted(ORACLE["SIMULATIONS"]))
def test_nothing_has_changed(name):
    found = json.loads(ORACLE["as_json"]({name: ORACLE["SIMULATIONS"][name]()}))
    assert ORACLE["differences"]({name: KEPT[name]}, found, exactly=False) == []


def test_everything_kept_is_run():
    assert sorted(KEPT) == sorted(ORACLE["SIMULATIONS"])


def test_a_change_is_noticed():
    name = "per_step/central"
    for change in (
        lambda one: one["facts"]["arrays"]["sent"][0].__setitem__(1, one["facts"]["arrays"]["sent"][0][1] + 1e-3),
        lambda one: one["facts"]["arrays"].pop("sent"),
        lambda one: one["facts"]["planned_events"].pop(),
        lambda one: next(iter(one["facts"]["charges"].values())).pop(),
    ):
        changed = copy.deepcopy(KEPT)
        change(changed[name])
        assert len(ORACLE["differences"](KEPT, changed, exactly=True)) == 1
    changed = copy.deepcopy(KEPT)
    changed[name]["bytes"]["sent"] = "0"
    assert ORACLE["differences"](KEPT, changed, exactly=False) == []
    assert ORACLE["differences"](KEPT, changed, exactly=True) == [f"{name}: bytes of sent"]
