"""The notebooks run from their first cell to their last, and say what their text says they do."""

import functools
import json
from pathlib import Path

import matplotlib as mpl
import pytest

from dpfpl_bench import simulate

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


def run(name: str, **instead: object) -> dict[str, object]:
    """The names that a notebook's code leaves behind; ``instead`` replaces constants that it sets, to be quicker."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    space: dict[str, object] = {}
    assert all(any(key in line for cell in cells for line in cell["source"]) for key in instead)
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), space)
            space |= {key: value for key, value in instead.items() if key in space}
    return space


@pytest.mark.slow
def test_the_pilot_runs_on_folders(tmp_path, monkeypatch):
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    left = run("pilot", simulate=functools.partial(simulate, rounds=2))
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["north", "south", "west"]
    assert set(left["rows"]) == {8, 2, 1}
    assert (tmp_path / "runs/pilot/report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_methods_are_compared(tmp_path):
    def cached(settings=None, **given):
        return simulate(settings={**(settings or {}), "cache": str(tmp_path)}, **given)

    left = run("methods", METHODS=("dpfpl", "promptfl"), ROUNDS=2, simulate=cached)
    mechanisms = ("one_shot", "per_step")
    assert set(left["prompts"]) == {(method, how) for method in ("dpfpl", "promptfl") for how in mechanisms}
    assert left["vectors"][8]["others'"] > left["prompts"]["dpfpl", "one_shot"]["others'"]
    assert left["vectors"][8]["operator's epsilon"] == pytest.approx(8, abs=0.01)
    assert left["prompts"]["dpfpl", "per_step"]["operator's epsilon"] > 8
