"""dpfpl-client check: what would stop a site, found before it starts."""

import json
import shutil
import socket

import pytest

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.ledger.dataset import register_site
from dpfpl_client.agent.policy_file import Approvals, PolicyFile
from dpfpl_client.check import check_site, noise_to_signal, noise_words
from dpfpl_client.data import list_classes, load_site_data
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.privacy.accounting import PrivacyEvent
from dpfpl_server.sites.provision import ProvisionRequest, provision


@pytest.fixture(autouse=True)
def own_registry(tmp_path, monkeypatch):
    """Other tests register the same images."""
    monkeypatch.setenv("DPFPL_REGISTRY", str(tmp_path / "registry"))


@pytest.fixture(scope="module")
def made_kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provisioned")
    return provision(ProvisionRequest(folder / "server", folder / "kits", ("a",))).kits["a"]


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def kit(made_kit, tmp_path, image_folder):
    """A provisioned kit that is pointed at real images."""
    shutil.copytree(made_kit, tmp_path / "a")
    edit(tmp_path / "a" / "site.toml", "/path/to/images", str(image_folder))
    return tmp_path / "a"


def check(folder, connect=False, **options):
    return check_site(load_site(folder / "site.toml"), connect=connect, **options)


def test_a_good_kit_is_ready(kit):
    report = check(kit)
    assert (report.errors, report.warnings) == ([], [])
    facts = report.facts
    assert facts["images"] == {"bright": {"train": 4, "test": 2}, "dark": {"train": 4, "test": 2}}
    assert (facts["site"], facts["training_images"], facts["spent_epsilon"]) == ("a", 8, 0.0)
    assert facts["model"]["id"] == "embedded"
    assert facts["policy"]["max_epsilon_lifetime"] == 20.0


def test_it_says_how_long_the_first_start_will_take_and_when_nothing_is_left_to_do(kit):
    def seen():
        return check(kit).facts["image_features"]

    assert seen() == {"to_compute": 12, "takes_about": "1 s"}
    settings = load_site(kit / "site.toml")
    data = load_site_data(settings.data, list_classes(settings.data))
    FeatureCache(settings.state_folder / "cache", load_backbone("embedded")).features([*data.train, *data.test[:1]])
    assert seen()["to_compute"] == 3
    FeatureCache(settings.state_folder / "cache", load_backbone("embedded")).features(data.test)
    assert seen()["to_compute"] == 0


def test_it_leaves_nothing_behind(kit):
    before = sorted(kit.rglob("*"))
    check(kit)
    assert sorted(kit.rglob("*")) == before


@pytest.mark.slow
def test_a_server_that_answers_and_one_that_does_not(kit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        edit(kit / "site.toml", ":9092", f":{port}")
        report = check(kit, connect=True)
        assert "answers" in report.facts["server"]
        assert len(report.warnings) == 1  # this one speaks no TLS, so key and clock cannot be asked about
    report = check(kit, connect=True)
    assert report.errors == []
    assert f"127.0.0.1:{port}" in report.warnings[0]


def test_without_a_server_it_warns(fresh_site):
    report = check(fresh_site.parent)
    assert report.errors == []
    assert "server" in report.warnings[0]


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("policy.toml", None, "NO_POLICY"),
        ("policy.toml", "experiments = 1", "WRONG_TYPE"),
        ("ca.crt", None, "KIT_INCOMPLETE"),
        ("node.key", None, "KIT_INCOMPLETE"),
        ("state/ledger.sqlite", "no ledger" * 500, "LEDGER_UNREADABLE"),
    ],
)
def test_what_stops_a_site_is_an_error(kit, file, content, code):
    (kit / file).unlink(missing_ok=True)
    if content is not None:
        (kit / file).parent.mkdir(exist_ok=True)
        (kit / file).write_text(content)
    report = check(kit)
    assert len(report.errors) == 1
    assert f"[{code}]" in report.errors[0]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [('path = "', 'path = "/nowhere', "DATA"), ('model = "embedded"', 'model = "no/such"', "MODEL_NOT_FOUND")],
)
def test_missing_data_and_models_are_errors_and_the_rest_is_still_checked(kit, old, new, code):
    edit(kit / "site.toml", old, new)
    report = check(kit)
    assert len(report.errors) == 1
    assert code in report.errors[0] or code == "DATA"
    assert "policy" in report.facts


def test_a_readable_key_is_a_warning(kit):
    (kit / "node.key").chmod(0o644)
    report = check(kit)
    assert report.errors == []
    assert "chmod 600" in report.warnings[0]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("policy.toml", 'metrics = "noised"', 'metrics = "exact"'), ("site.toml", "[data]", '[data]\npartition = "iid"')],
)
def test_what_only_public_data_may_do_is_an_error_as_it_is_at_the_start(kit, file, old, new):
    edit(kit / file, old, new)
    (error,) = check(kit).errors
    assert "[DATA_NOT_PUBLIC]" in error
    edit(kit / "site.toml", "[data]", "[data]\npublic = true")
    assert check(kit).errors == []


def test_a_used_up_budget_is_an_error(kit):
    (kit / "state").mkdir()
    ledger = Ledger(kit / "state" / "ledger.sqlite", Registry(load_site(kit / "site.toml").registry_folder))
    events = [PrivacyEvent(a, "per_step", 1.0, 1.0, 16) for a in ("prompt_recipient", "other_site", "operator")]
    ledger.reserve("a", 1, "d", events)
    ledger.close()
    report = check(kit)
    assert "[BUDGET_EXHAUSTED]" in report.errors[0]
    assert report.facts["spent_epsilon"] > 16


# What an experiment would mean here


def plan_of(*classes, name="lungs", **privacy):
    return Experiment(
        name=name,
        classes=classes or ("bright", "dark"),
        sites=("a", "b", "c"),
        model=ModelSettings(width=128),
        privacy=PrivacySettings(**{"noise_multiplier": 6.0, **privacy}),
        rounds=RoundSettings(number=3),
    )


@pytest.fixture
def planned(kit, tmp_path):
    """planned(*classes, ...): what check says to a plan with them."""

    def look(*classes, **privacy):
        (tmp_path / "plan.json").write_text(plan_of(*classes, **privacy).to_json())
        return check(kit, plan=tmp_path / "plan.json")

    return look


def test_classes_of_a_plan_that_the_model_reads_alike_are_an_error(planned):
    (error,) = planned("Bright", "bright").errors
    assert "'Bright' and 'bright' as the same tokens" in error
    assert "CLASSES_READ_ALIKE" in error


def test_class_folders_that_the_model_reads_alike_are_an_error_without_a_plan(kit, tmp_path, image_folder):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    for split in ("train", "test"):
        (images / split / "dark").rename(images / split / "BRIGHT")
    edit(kit / "site.toml", str(image_folder), str(images))
    (error,) = check(kit).errors
    assert "'BRIGHT' and 'bright' as the same tokens" in error


def test_too_few_images_for_a_plan_are_told_in_words(planned):
    report = planned(mechanism="per_step")
    assert report.errors == []
    (warning,) = report.warnings
    assert "8 training images" in warning
    assert "too few images" in warning
    assert report.facts["plan"]["noise_to_signal"] > 2
    enough = planned(mechanism="per_step", noise_multiplier=0.31, target_delta=1e-6)
    assert enough.facts["plan"]["noise_to_signal"] < report.facts["plan"]["noise_to_signal"] / 10


def test_a_plan_that_would_be_refused_is_an_error(planned):
    report = planned(mechanism="per_step", noise_multiplier=0.1)
    assert any("TOO_LITTLE_NOISE" in error for error in report.errors)
    assert any("BUDGET_EXHAUSTED" in error for error in report.errors)


def test_more_images_and_more_steps_drown_the_noise():
    few, many, cheap = (
        Experiment("x", ("a", "b"), ("n",), ModelSettings(width=128), rounds=RoundSettings(number=number),
                   privacy=PrivacySettings(mechanism="per_step", noise_multiplier=z))
        for number, z in ((10, 2.0), (40, 2.0), (10, 4.0))
    )  # fmt: skip
    base = noise_to_signal(few, 300, 30, 64)
    assert noise_to_signal(few, 600, 30, 64) == pytest.approx(base / 2)
    assert noise_to_signal(many, 300, 30, 64) == pytest.approx(base / 2)
    assert noise_to_signal(cheap, 300, 30, 64) == pytest.approx(base * 2)
    texts = [noise_words(ratio, "per_step") for ratio in (0.05, 0.3, 1.0, 5.0)]
    assert [worrying for _, worrying in texts] == [False, False, True, True]
    assert len({text for text, _ in texts}) == 4
    assert ["rounds" in noise_words(5.0, mechanism)[0] for mechanism in ("per_step", "one_shot")] == [True, False]


# The data set, the policy, the folders


def test_F19_changed_images_are_found_before_the_start(kit, tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "own")
    edit(kit / "site.toml", str(image_folder), str(tmp_path / "own"))
    register_site(load_site(kit / "site.toml"))
    report = check(kit)
    assert (report.errors, report.facts["dataset"]["version"]) == ([], 1)
    (tmp_path / "own/train/dark/1.png").unlink()
    (error,) = check(kit).errors
    assert "[DATASET_CHANGED]" in error
    shutil.copytree(kit, tmp_path / "second", ignore=shutil.ignore_patterns("state"))
    assert "[DATASET_HAS_LEDGER]" in check(tmp_path / "second").errors[0]


def test_a_loosened_policy_is_a_warning(kit):
    settings = load_site(kit / "site.toml")
    PolicyFile(kit / "policy.toml", settings.state_folder, AuditLog(None)).current()
    edit(kit / "policy.toml", "max_rounds = 500", "max_rounds = 900")
    (warning,) = check(kit).warnings
    assert "max_rounds" in warning
    assert "policy accept" in warning


def test_a_registry_inside_the_state_folder_is_refused(kit):
    site_file = kit / "site.toml"
    site_file.write_text('registry = "state/registry"\n' + site_file.read_text())
    assert any("REGISTRY_IN_STATE" in error for error in check(kit).errors)


# Classes that an experiment does not know


def unknown(report):
    return [text for text in report.warnings if "[UNKNOWN_CLASS]" in text]


def test_images_that_a_plan_leaves_out_are_counted_and_the_line_to_write_is_shown(planned):
    report = planned("bright", "DARK", "grey")
    (text,) = unknown(report)
    assert "4 of 8 training images are left out" in text
    assert "'dark' (4)" in text
    assert 'class_map = { "dark" = "DARK" }' in text
    assert "capital letters, blanks or underscores alone" in text
    assert "4 of 8" in report.facts["plan"]["left_out"]
    assert not unknown(planned("bright", "dark", "grey"))


def test_a_plan_that_knows_none_of_the_classes_shows_the_line_too(planned):
    (text,) = [text for text in planned("cat", "dog").warnings if "NO_KNOWN_CLASS" in text]
    assert "would only send noise" in text
    assert '"bright" = ' in text
    assert "class_map" in text


def test_what_waits_for_an_approval_is_checked_without_a_plan(kit):
    approvals = Approvals(load_site(kit / "site.toml").state_folder)
    approvals.wait(plan_of("bright", "grey", name="half"))
    approvals.wait(plan_of("bright", "dark", name="whole"))
    (text,) = unknown(check(kit))
    assert text.startswith("half: 4 of 8 training images")


def test_the_class_map_ends_the_warning(kit, planned):
    with (kit / "site.toml").open("a") as site_file:
        site_file.write('\n[data.class_map]\n"dark" = "Dark"\n')
    assert not unknown(planned("bright", "Dark"))


def test_strict_refuses_what_would_be_a_warning(command, kit, tmp_path):
    arguments = ("check", "--site", kit / "site.toml", "--offline")
    assert command(*arguments, "--strict")[0] == 0
    (tmp_path / "plan.json").write_text(plan_of("bright", "grey").to_json())
    arguments += ("--plan", tmp_path / "plan.json")
    code, out, _ = command(*arguments)
    assert (code, "WARNING lungs: 4 of 8" in out, "Ready." in out) == (1, True, True)
    code, out, _ = command(*arguments, "--strict")
    assert (code, "ERROR lungs: 4 of 8" in out, "Cannot take part yet." in out) == (2, True, True)
    code, out, _ = command(*arguments, "--strict", "--json")
    assert (code, json.loads(out)["warnings"]) == (2, [])
