"""``dpfpl-bench run`` from the command line: any image folder, any CLIP folder, strict JSON, clear errors."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import save_file
from typer.testing import CliRunner

from dpfpl_bench import cli
from dpfpl_bench.simulation.simulate import RunProgress, parse_epsilon
from dpfpl_bench.simulation.sources import data_settings
from dpfpl_common.errors import ConfigError
from dpfpl_models import embedded_model_path

CLASSES = ["blue sky", "grass", "rust"]


@pytest.fixture(scope="module")
def images(tmp_path_factory, paint):
    """The three forms in which a site may have its images."""
    root = tmp_path_factory.mktemp("images")
    paint(root / "split" / "train", 8)
    paint(root / "split" / "test", 4)
    rows = paint(root / "flat", 12)
    with (root / "flat" / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((path.relative_to(root / "flat"), name) for path, name in rows)
    return {"split": root / "split", "flat": root / "flat", "csv": root / "flat" / "labels.csv"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small CLIP with random weights, saved as Hugging Face does, with another width than the embedded one."""
    from transformers import CLIPConfig, CLIPModel

    source, folder = embedded_model_path(), tmp_path_factory.mktemp("clip")
    given = json.loads((source / "config.json").read_text())
    text = given["text_config"] | {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    vision = given["vision_config"] | {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    torch.random.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


QUICK = ("--sites", 2, "--rounds", 2, "--set", "rounds.local_steps=1", "--epsilon", "none", "--quiet")


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(("form", "floors"), [("split", "all"), ("flat", "none"), ("csv", "none")])
def test_a_site_needs_no_code_for_its_images(bench, images, form, floors, tmp_path, monkeypatch):
    monkeypatch.setattr("dpfpl_bench.simulation.baselines.MOST_STEPS", 100)
    out_file = tmp_path / "r" / "x.json"
    code, out, err = bench(
        "run", "--data", images[form], *QUICK, "--floors", floors, "--partition", "iid", "--out", out_file
    )

    assert (code, err) == (0, "")
    result = strict(out)
    assert result == strict(out_file.read_text())
    assert result["config"]["classes"] == CLASSES
    assert (result["transport"], result["seed"], len(result["rounds"])) == ("in_process", 0, 2)
    assert all(0 <= site["local"] <= 1 and site["num_classes"] == 3 for site in result["sites"])
    alone = {"local_only", "local_only_no_noise"}
    trained = {"centralised", *alone, *(f"{way}_evidence" for way in alone)} if floors == "all" else set()
    assert set(result["floors"]) == {"zero_shot", "global_only", *trained}
    assert all(0 <= floor["local"] <= 1 for floor in result["floors"].values())
    assert {row["epsilon"] for row in result["privacy"]["epsilons"]} == {"infinite"}


@pytest.mark.parametrize(("rounds", "times"), [(1, 1), (2, 0)])
def test_a_run_of_a_single_round_says_that_it_makes_no_class_vectors(bench, images, rounds, times):
    loud = [flag for flag in QUICK if flag != "--quiet"]
    code, _, err = bench("run", "--data", images["split"], *loud, "--floors", "none", "--rounds", rounds)
    assert code == 0
    assert err.count("class vectors need two rounds: one collects the class sums") == times


def test_any_folder_of_the_clip_family_is_a_model(bench, images, clip_folder):
    code, out, err = bench("run", "--model", clip_folder, "--data", images["split"], *QUICK, "--floors", "none")

    assert (code, err) == (0, "")
    result = strict(out)
    assert result["config"]["model"]["width"] == 48
    assert result["config"]["model"]["id"] == str(clip_folder)
    assert set(result["floors"]) == {"zero_shot", "global_only"}


def test_a_private_run_reports_its_epsilons_and_its_progress(bench, images, tmp_path):
    size = ("--epsilon", 5, "--sites", 3, "--rounds", 2, "--set", "rounds.local_steps=2", "--floors", "none")
    cached = ("--set", f"cache={tmp_path / 'cache'}")
    code, out, err = bench("run", "--data", images["split"], *size, "--trust", "local", *cached)

    assert code == 0
    result = strict(out)
    assert [row["adversary"] for row in result["privacy"]["epsilons"]] == ["prompt_recipient", "other_site", "operator"]
    assert all(4.5 < row["epsilon"] <= 5 for row in result["privacy"]["epsilons"])
    assert result["privacy"]["noise"].startswith("seeded")
    for line in ("reading images", "calibrating the noise", "round 1/2", "round 2/2"):
        assert line in err
    assert list((tmp_path / "cache").glob("features-*.bin"))


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--epsilon", "low"), "IMPOSSIBLE_VALUE"),
        (("--epsilon", "0"), "IMPOSSIBLE_VALUE"),
        (("--method", "magic"), "IMPOSSIBLE_VALUE"),
        (("--trust", "nobody"), "IMPOSSIBLE_VALUE"),
        (("--rank", "500"), "IMPOSSIBLE_VALUE"),
        (("--set", "privacy.target_delta=nan"), "WRONG_TYPE [privacy] target_delta"),
        (("--set", "privacy.target_delta=1"), "IMPOSSIBLE_VALUE [privacy] target_delta"),
        (("--set", "privacy.sample_rate=1.5"), "IMPOSSIBLE_VALUE [privacy] sample_rate"),
        (("--set", "privacy.clipping_norm=-1"), "IMPOSSIBLE_VALUE [privacy] clipping_norm"),
        (("--set", "prompt.num_context=-1"), "IMPOSSIBLE_VALUE [prompt] num_context"),
        (("--set", "prompt.temperatur=1"), "UNKNOWN_KEY [prompt] has the unknown key 'temperatur'"),
        (("--set", "rounds.number"), "BAD_ASSIGNMENT"),
        (("--floors", "some"), "IMPOSSIBLE_VALUE"),
        (("--set", "engine=steam"), "IMPOSSIBLE_VALUE"),
        (("--partition", "magic"), "IMPOSSIBLE_VALUE partition"),
        (("--partition", "none"), "IMPOSSIBLE_VALUE num_sites"),
        (("--set", "alpha=nan"), "WRONG_TYPE alpha"),
        (("--sites", "2000"), "TOO_MANY_SITES"),
        (("--data", "/nowhere/at/all"), "NO_DATA"),
        (("--model", "/nowhere/at/all"), "MODEL_NOT_FOUND"),
        (("--rank", "1", "--set", "prompt.num_context=2"), "INIT_TEXT_TOO_LONG"),
        (("--sites", "0"), "sites is 0, expected a number from 1"),
        (("--seed", "-1"), "--seed"),
        (("--rounds", "many"), "--rounds"),
        (("--nonsense",), "--nonsense"),
        (("--out", "/"), "--out"),
        (("--set", f"cache={__file__}"), "IMPOSSIBLE_VALUE cache"),
    ],
)
def test_bad_flags_are_one_message_and_exit_code_2(bench, images, flags, code):
    exit_code, out, err = bench("run", "--data", images["split"], *QUICK, "--floors", "none", *flags)

    assert exit_code == 2
    assert out == ""
    assert code in err
    assert "Traceback" not in err


def test_an_empty_folder_and_a_foreign_model_are_errors(bench, images, tmp_path):
    assert "NO_CLASSES" in bench("run", "--data", tmp_path, *QUICK)[2]
    (tmp_path / "config.json").write_text('{"model_type": "[/bold]"}')
    save_file({"weight": np.zeros(1, "<f4")}, tmp_path / "model.safetensors")
    code, _, err = bench("run", "--model", tmp_path, "--data", images["split"], *QUICK)
    assert (code, "UNKNOWN_FAMILY" in err, "[/bold]" in err) == (2, True, True)


def test_a_result_that_cannot_be_written_is_still_printed(bench, images, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = bench(
        "run", "--data", images["split"], *QUICK, "--floors", "none", "--out", tmp_path / "file" / "result.json"
    )
    assert code == 2
    assert "CANNOT_WRITE" in err
    assert strict(out)["transport"] == "in_process"


def test_help_has_examples():
    page = CliRunner().invoke(cli.app, ["run", "--help"])
    assert page.exit_code == 0
    assert "dpfpl-bench run --data digits" in " ".join(page.output.split())
    overview = CliRunner().invoke(cli.app, ["--help"]).output
    assert "run" in overview
    assert "demo" in overview


def test_what_data_means(tmp_path):
    assert data_settings("digits", 3).source == "digits"
    assert data_settings(str(tmp_path), 3).source == "folder"
    assert data_settings("somewhere/labels.csv", 3).source == "csv"
    assert data_settings("owner/name", 3).source == "huggingface"
    assert data_settings("shapes", 3).split_seed == 3
    for wrong in ("/nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(ConfigError):
            data_settings(wrong, 0)


def test_without_a_terminal_what_takes_long_is_told_in_lines():
    said, now = io.StringIO(), [0.0]
    progress = RunProgress(Console(file=said, markup=False), 10, clock=lambda: now[0])
    progress.step("baseline: every site alone")
    for done in range(4):
        progress.counted(done, 4)
        now[0] += 6.0
    assert said.getvalue().splitlines() == ["baseline: every site alone", "baseline: every site alone: 2/4"]


def test_what_the_evidence_says_is_told_once():
    said = io.StringIO()
    progress = RunProgress(Console(file=said, markup=False), 10)
    for text in ("nothing stands out", "nothing stands out", "2 of 3 stand out"):
        progress.status({"phase": "EVIDENCE", "round": 1, "text": text})
    assert said.getvalue().splitlines() == ["nothing stands out", "2 of 3 stand out"]


@pytest.mark.parametrize("text", ["none", "inf", "INFINITE"])
def test_no_epsilon(text):
    assert parse_epsilon(text) is None
    assert parse_epsilon("2.5") == 2.5


def test_progress_counts_every_sites_images_against_its_own_total():
    with RunProgress(Console(file=io.StringIO(), force_terminal=True), 3) as progress:
        progress.counted(10, 10)
        progress.counted(3, 40)
        (task,) = progress._bar.tasks
        assert (task.completed, task.total) == (3, 40)
        progress.step("training")
        assert not progress._bar.tasks
