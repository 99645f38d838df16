"""``dpfpl-bench pilot`` and ``dpfpl_bench.simulate``: the sites' own images, the same run either way, clear errors."""

import json
import sys

import pytest

from dpfpl_bench import simulate
from dpfpl_bench.simulation.run import RunRequest
from dpfpl_bench.simulation.settings import RunPrivacy
from dpfpl_bench.simulation.simulate import Simulated, make_request
from dpfpl_common.errors import ConfigError, DpfplError

QUICK = {"rounds.number": 1, "rounds.local_steps": 1, "floors": "alone"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, paint):
    """north and south as folders; east as a CSV file of three of north's pictures, under a name of its own."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("test", 4)):
        paint(root / "north" / split, count)
        paint(root / "south" / split, count, ("grass", "rust"))
    rows = [f"north/{split}/grass/{number}.png,Lawn,{split}" for split in ("train", "test") for number in range(3)]
    (root / "east.csv").write_text("\n".join(["path,label,split", *rows]))
    (root / "site.toml").write_text(f'name = "a"\n[data]\nsource = "folder"\npath = "{root / "south"}"\n')
    return root


def test_a_pilot_runs_on_the_sites_own_images_and_ends_with_table_result_and_report(bench, photos, tmp_path):
    sites = {"north": photos / "north", "south": photos / "site.toml", "east": photos / "east.csv"}
    quick = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    flags = [part for name, path in sites.items() for part in ("--site", f"{name}={path}")]
    code, out, err = bench("pilot", *flags, "--class-map", "east:Lawn=grass", *quick, "--out", tmp_path / "p")
    assert code == 0, err
    result = json.loads((tmp_path / "p" / "result.json").read_text())
    assert [(site["name"], site["num_classes"], site["test_images"]) for site in result["sites"]] == [
        ("north", 3, 12),
        ("south", 2, 8),
        ("east", 1, 3),
    ]
    assert result["config"]["classes"] == ["blue sky", "grass", "rust"]
    assert all(site["neighbour"] is not None for site in result["sites"])
    assert result["privacy"]["noise"].startswith("seeded")
    assert "points gained over" in out
    assert "6 images are at more than one site" in err
    assert "baseline: every site alone" in err
    assert "<html" in (tmp_path / "p" / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--site", "north={root}/north"], "TOO_FEW_SITES"),
        (["--site", "north"], "BAD_ASSIGNMENT --site is 'north'"),
        (["--site", "n={root}/north", "--site", "n={root}/south"], "BAD_ASSIGNMENT"),
        (["--site", "North={root}/north", "--site", "s={root}/south"], "IMPOSSIBLE_VALUE A site's name"),
        (["--site", "n={root}/north", "--site", "s=/nowhere"], "NO_DATA s: "),
        (["--site", "n={root}/north", "--site", "s={root}/none.csv"], "DATA_UNREADABLE s: "),
        (["--site", "n={root}/north", "--site", "s={root}/south", "--class-map", "s:x=y"], "CLASS_MAP_UNUSED"),
        (["--site", "n={root}/north", "--site", "s={root}/south", "--class-map", "s:rust=Grass"], "CLASSES_ALIKE"),
        (["--site", "n={root}/north", "--site", "s={root}/south", "--out", "{run}"], "NOT_A_PILOT_FOLDER"),
    ],
)
def test_what_is_wrong_with_a_pilot_is_said_before_anything_is_trained(bench, photos, tmp_path, flags, said):
    (tmp_path / "experiment.json").write_text("{}")
    code, _, err = bench("pilot", *(flag.format(root=photos, run=tmp_path) for flag in flags))
    assert (code, said in err, "training" in err) == (2, True, False), err


def test_python_and_the_command_line_run_the_same(bench, photos):
    given = ["--data", photos / "north", "--sites", "2", "--rounds", "1", "--floors", "alone", "--partition", "iid"]
    code, out, _ = bench("run", *given, "--set", "rounds.local_steps=2", "--quiet")
    settings = {"rounds.local_steps": 2}
    ours = simulate(
        str(photos / "north"), sites=2, rounds=1, floors="alone", partition="iid", settings=settings, progress=False
    )
    assert code == 0
    for key in ("accuracy", "baselines", "config", "privacy", "data_digest"):
        assert json.loads(out)[key] == ours.result[key]
    names = ["federation", *ours.result["baselines"]]
    assert [label.get_text() for label in ours.plot().get_yticklabels()] == names


def test_a_frame_has_a_row_for_the_federation_and_each_baseline():
    pytest.importorskip("pandas")
    frame = Simulated({"accuracy": {"local": 0.5}, "baselines": {"zero_shot": {"local": 0.25, "all": 1}}}).to_frame()
    assert frame["local"].to_dict() == {"federation": 0.5, "zero_shot": 0.25}
    assert frame["neighbour"].isna().all()


def test_what_is_not_given_is_the_models_default():
    asked = make_request()
    assert asked == RunRequest(privacy=RunPrivacy(target_epsilon=8.0))


def test_a_frame_without_pandas_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="dpfpl-bench\\[pandas\\]"):
        Simulated({}).to_frame()


def test_a_wrong_keyword_is_an_error():
    with pytest.raises(DpfplError, match="unknown key"):
        simulate(settings={"prompt.temperatur": 1}, progress=False)
    with pytest.raises(TypeError, match="epsilom"):
        simulate(epsilom=8, progress=False)
