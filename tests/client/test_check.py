"""dpfpl-client check: what would stop a site, found before it starts."""

import socket

import pytest

from dpfpl_client.agent.ledger import Ledger
from dpfpl_client.agent.registry import Registry
from dpfpl_client.check import check_site
from dpfpl_client.site_settings import load_site
from dpfpl_common.accounting import PrivacyEvent
from dpfpl_server.provision import ProvisionRequest, provision


@pytest.fixture
def kit(tmp_path, image_folder):
    """A provisioned kit that is pointed at real images."""
    folder = provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("a",))).kits["a"]
    site_file = folder / "site.toml"
    site_file.write_text(site_file.read_text().replace("/path/to/images", str(image_folder)))
    return folder


def check(folder, **options):
    return check_site(load_site(folder / "site.toml"), **options)


def test_a_good_kit_is_ready(kit):
    report = check(kit, connect=False)
    assert (report.errors, report.warnings) == ([], [])
    facts = report.facts
    assert facts["images"] == {"bright": {"train": 4, "test": 2}, "dark": {"train": 4, "test": 2}}
    assert (facts["site"], facts["training_images"], facts["spent_epsilon"]) == ("a", 8, 0.0)
    assert facts["model"]["id"] == "embedded"
    assert facts["policy"]["max_epsilon_lifetime"] == 20.0


def test_it_leaves_nothing_behind(kit):
    before = sorted(kit.rglob("*"))
    check(kit, connect=False)
    assert sorted(kit.rglob("*")) == before


def test_a_server_that_answers_and_one_that_does_not(kit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        site_file = kit / "site.toml"
        site_file.write_text(site_file.read_text().replace(":9092", f":{port}"))
        report = check(kit)
        assert (report.warnings, "answers" in report.facts["server"]) == ([], True)
    report = check(kit)
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
    report = check(kit, connect=False)
    assert len(report.errors) == 1
    assert f"[{code}]" in report.errors[0]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [('path = "', 'path = "/nowhere', "DATA"), ('model = "embedded"', 'model = "no/such"', "MODEL_NOT_FOUND")],
)
def test_missing_data_and_models_are_errors_and_the_rest_is_still_checked(kit, old, new, code):
    site_file = kit / "site.toml"
    site_file.write_text(site_file.read_text().replace(old, new))
    report = check(kit, connect=False)
    assert len(report.errors) == 1
    assert code in report.errors[0] or code == "DATA"
    assert "policy" in report.facts


def test_a_readable_key_is_a_warning(kit):
    (kit / "node.key").chmod(0o644)
    report = check(kit, connect=False)
    assert report.errors == []
    assert "chmod 600" in report.warnings[0]


def test_a_used_up_budget_is_an_error(kit):
    (kit / "state").mkdir()
    ledger = Ledger(kit / "state" / "ledger.sqlite", Registry(load_site(kit / "site.toml").registry_folder))
    events = [PrivacyEvent(a, "per_step", 1.0, 1.0, 16) for a in ("prompt_recipient", "other_site", "operator")]
    ledger.reserve("a", 1, "d", events)
    ledger.close()
    report = check(kit, connect=False)
    assert "[BUDGET_EXHAUSTED]" in report.errors[0]
    assert report.facts["spent_epsilon"] > 16
