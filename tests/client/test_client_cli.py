"""dpfpl-client as it is typed: exit codes, JSON, and errors that say what to do."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dpfpl_server.sites.provision import ProvisionRequest, provision

COMMANDS = ["init", "check", "start", "agent", "predict", "prompts", "serve", "export", "ledger show", "ledger verify"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(command, name):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0
    assert f"dpfpl-client {name}" in " ".join(out.split())
    assert "Example" in out


def test_init_and_check_on_a_kit(command, tmp_path, image_folder):
    kit = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a",))).kits["a"]
    site = kit / "site.toml"
    code, out, _ = command("check", "--site", site, "--offline")
    assert (code, "ERROR" in out, "Cannot take part yet." in out) == (2, True, True)
    code, out, _ = command("init", "--site", site, "--data", image_folder)
    assert (code, "wrote" in out, "check" in out) == (0, True, True)
    code, out, _ = command("check", "--site", site, "--offline")
    assert (code, out.splitlines()[-1]) == (0, "Ready.")


def test_init_without_a_kit_is_ready_with_a_warning(command, tmp_path, image_folder):
    site = tmp_path / "new" / "site.toml"
    assert command("init", "--site", site, "--data", image_folder, "--name", "my-site")[0] == 0
    code, out, _ = command("check", "--site", site, "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["errors"], len(report["warnings"])) == ([], 1)
    assert report["facts"]["training_images"] == 8


def test_what_nobody_foresaw_is_not_ready_with_warnings(command, fresh_site, monkeypatch):
    def fails(*arguments, **options):
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr("dpfpl_client.check.check_site", fails)
    code, _, err = command("check", "--site", fresh_site)
    assert code == 2
    assert "Traceback" in err
    assert "nobody foresaw this" in err


def test_check_reports_errors_as_json(command, fresh_site):
    (fresh_site.parent / "policy.toml").unlink()
    code, out, _ = command("check", "--site", fresh_site, "--json")
    assert code == 2
    assert "[NO_POLICY]" in json.loads(out)["errors"][0]


@pytest.mark.parametrize(
    ("arguments", "code_word"),
    [
        (["check"], "FILE_MISSING"),
        (["start"], "FILE_MISSING"),
        (["agent"], "FILE_MISSING"),
        (["ledger", "show"], "FILE_MISSING"),
        (["init", "--data", "nowhere"], "NO_DATA"),
    ],
)
def test_errors_are_one_message_with_advice(command, tmp_path, arguments, code_word):
    code, out, err = command(*arguments, "--site", tmp_path / "site.toml")
    assert (code, out) == (2, "")
    first, advice = err.splitlines()
    assert first.startswith(f"{code_word}: ")
    assert advice
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code_word"), [(["ledger", "show"], "NO_LEDGER"), (["start"], "NO_SERVER"), (["agent"], "NO_POLICY")]
)
def test_what_a_site_lacks_is_said(command, fresh_site, arguments, code_word):
    if code_word == "NO_POLICY":
        (fresh_site.parent / "policy.toml").unlink()
    code, _, err = command(*arguments, "--site", fresh_site)
    assert (code, err.startswith(code_word)) == (2, True)


def test_an_unknown_option_is_a_usage_error(command):
    assert command("check", "--sight", "x")[0] == 2


# After training


def test_predict_files_and_folders(command, trained_site, image_folder):
    named = [image_folder / "test" / "dark" / "0.png", image_folder / "test" / "bright"]
    code, out, _ = command("predict", *named, "--site", trained_site, "--json")
    found = json.loads(out)
    assert (code, len(found)) == (0, 3)
    assert found[0]["image"] == str(named[0])
    assert set(found[0]["classes"]) == {"bright", "dark"}
    assert sum(found[0]["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    code, out, _ = command("predict", named[0], "--site", trained_site, "--top", 1)
    assert (code, out.startswith(f"{named[0]}: "), out.count("%")) == (0, True, 1)


def test_prompts_are_listed_and_a_half_finished_one_is_used_only_when_told(command, trained_site, image_folder):
    code, out, _ = command("prompts", "--site", trained_site)
    assert code == 0
    assert "pilot: version " in out
    assert out.rstrip().endswith("round 1 of 1, the default")
    version = json.loads(command("prompts", "--site", trained_site, "--json")[1])[0]["version"]
    picture = image_folder / "test/dark/0.png"
    assert f"Prompt: pilot, version {version}, learned " in command("predict", picture, "--site", trained_site)[2]
    (trained_site.parent / "state/experiments/pilot/final.safetensors").unlink()
    for typed in (("predict", picture), ("export", "--out", trained_site.parent / "out"), ("serve", "--port", "0")):
        code, _, err = command(*typed, "--site", trained_site)
        assert (code, "HALF_FINISHED" in err) == (2, True)
    assert command("predict", picture, "--site", trained_site, "--unfinished")[0] == 0


def test_predict_on_a_corrupt_file_names_it_and_goes_on(command, trained_site, tmp_path):
    (tmp_path / "scan.png").write_bytes(b"broken")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good.png")
    named = [tmp_path / "scan.png", tmp_path / "good.png"]
    code, out, err = command("predict", *named, "--site", trained_site)
    assert (code, out.startswith(f"{tmp_path / 'good.png'}: ")) == (1, True)
    assert err.splitlines()[1].startswith(f"{tmp_path / 'scan.png'}: cannot be read: ")
    code, out, _ = command("predict", *named, "--site", trained_site, "--json")
    bad, good = json.loads(out)
    assert (code, "error" in bad, "classes" in good) == (1, True, True)
    assert command("predict", named[0], "--site", trained_site)[0] == 2


def test_predict_writes_a_csv_file(command, trained_site, image_folder, tmp_path):
    code, out, _ = command("predict", image_folder, "--site", trained_site, "--csv", tmp_path / "a.csv", "--top-k", 1)
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert (code, out, len(rows)) == (0, f"wrote {tmp_path / 'a.csv'}: 12 of 12 images classified\n", 13)
    assert rows[0] == "image,error,class_1,probability_1"


def test_serve_does_not_open_itself_to_a_network_without_a_token(command, trained_site, tmp_path):
    code, _, err = command("serve", "--site", trained_site, "--host", "0.0.0.0")
    assert (code, err.startswith("TOKEN_NEEDED")) == (2, True)
    (tmp_path / "token").write_text("short")
    code, _, err = command("serve", "--site", trained_site, "--host", "0.0.0.0", "--token-file", tmp_path / "token")
    assert (code, err.startswith("TOKEN_TOO_SHORT")) == (2, True)


def test_predict_before_any_training(command, fresh_site, image_folder):
    code, _, err = command("predict", image_folder, "--site", fresh_site)
    assert (code, err.startswith("NO_PROMPT")) == (2, True)
    assert not (fresh_site.parent / "state").exists()  # a folder made now would not be private enough for the agent


def test_predict_for_an_unknown_experiment(command, trained_site, image_folder):
    code, _, err = command("predict", image_folder, "--site", trained_site, "--experiment", "other")
    assert (code, err.startswith("NO_EXPERIMENT"), "pilot" in err) == (2, True, True)


def test_export_writes_the_prompt_and_its_parts(command, trained_site, tmp_path):
    code, out, _ = command("export", "--out", tmp_path / "out", "--site", trained_site, "--json")
    assert (code, json.loads(out)["no_adapter"]) == (0, None)
    assert {"README.md", "prompt.safetensors", "adapter_model.safetensors"} <= set(json.loads(out)["files"])
    parts = load_file(tmp_path / "out" / "prompt.safetensors")
    assert set(parts) == {"context", "global_context", "personal_context", "left", "right", "residual"}
    code, out, _ = command("export", "--out", tmp_path / "out", "--site", trained_site)
    assert (code, out.startswith(f"wrote {tmp_path / 'out'}: README.md")) == (0, True)


def test_ledger_show(command, trained_site):
    code, out, _ = command("ledger", "show", "--site", trained_site)
    assert code == 0
    assert out.startswith("pilot: 2 charges for 1 rounds and the scores, 2 released, epsilon ")
    assert "of 100, left " in out
    assert "at delta 1e-05" in out
    assert "Towards the operator" in out
    code, out, _ = command("ledger", "show", "--site", trained_site, "--json")
    assert json.loads(out)["spent_epsilon"] > 0


def test_a_site_describes_its_model_and_only_if_told_its_classes(command, fresh_site, tmp_path):
    told = json.loads(command("describe", "--site", fresh_site)[1])
    checked = json.loads(command("check", "--site", fresh_site, "--offline", "--json")[1])["facts"]["model"]
    assert told == {
        "site": "north",
        "model": {key: checked[key] for key in ("width", "id", "fingerprint")},
        "classes": [],
    }
    assert command("describe", "--site", fresh_site, "--with-classes", "--out", tmp_path / "north.json")[0] == 0
    assert json.loads((tmp_path / "north.json").read_text())["classes"] == ["bright", "dark"]
