"""The ledger as an administrator sees it, and what verification finds."""

import dataclasses

import pytest

from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.ledger.view import summarise, verify
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import StateError
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon


@pytest.fixture
def settings(trained_site):
    return load_site(trained_site)


@pytest.fixture
def release(settings):
    return settings.state_folder / "experiments/pilot/round-00001.safetensors"


def reserve(settings, experiment="pilot", number=1):
    ledger = Ledger(settings.state_folder / "ledger.sqlite", Registry(settings.registry_folder))
    recipients = [PrivacyEvent(a, "per_step", 2.0, 0.5, 2) for a in ("prompt_recipient", "other_site")]
    ledger.reserve(experiment, number, "d", [*recipients, PrivacyEvent("operator", "per_step", 1.5, 0.5, 2)])
    ledger.close()


def test_the_summary_adds_up(settings):
    paid = epsilon([PrivacyEvent("x", "per_step", 2.0, 0.5, 2)], 1e-5)
    summary = summarise(settings)
    (pilot,) = summary["experiments"]
    assert [pilot[key] for key in ("experiment", "rounds", "charges", "released", "assumed")] == ["pilot", 1, 2, 2, 0]
    assert pilot["epsilon"] == pilot["epsilons"]["prompt_recipient"] == paid
    assert (summary["left_epsilon"], summary["left_epsilon_operator"]) == (100.0 - paid, 40.0 - paid)
    assert (summary["spent_epsilon"], summary["max_epsilon_lifetime"], summary["delta"]) == (paid, 100.0, 1e-5)


def test_an_interrupted_round_is_charged_and_not_released(settings):
    once = summarise(settings)["spent_epsilon"]
    reserve(settings)
    reserve(settings, "another")
    another, pilot = summarise(settings)["experiments"]
    assert (another["experiment"], another["charges"], another["released"]) == ("another", 1, 0)
    assert (pilot["rounds"], pilot["charges"], pilot["released"]) == (1, 3, 2)  # the round twice, the scores
    assert summarise(settings)["spent_epsilon"] > pilot["epsilon"] > once


def test_a_sound_ledger_has_no_problems(settings):
    assert verify(settings) == []
    reserve(settings, number=2)
    assert verify(settings) == []


@pytest.mark.parametrize("change", ["tampered", "truncated", "deleted"])
def test_a_changed_release_is_found(settings, release, change):
    content = bytearray(release.read_bytes())
    content[-3] ^= 1
    match change:
        case "tampered":
            release.write_bytes(content)
        case "truncated":
            release.write_bytes(release.read_bytes()[:-1])
        case "deleted":
            release.unlink()
    (problem,) = verify(settings)
    assert "pilot round 1" in problem


def test_a_release_that_was_never_charged_is_found(settings):
    store = DiskStore(settings.state_folder)
    record = store.read("pilot", 1)
    store.write("pilot", 2, dataclasses.replace(record))
    assert verify(settings) == ["pilot round 2: released, but never charged."]


def test_a_damaged_ledger_is_found(settings):
    path = settings.state_folder / "ledger.sqlite"
    for number in range(2, 200):
        reserve(settings, "x" * 50, number)
    content = bytearray(path.read_bytes())
    content[8192:16384] = b"\0" * 8192
    path.write_bytes(content)
    assert verify(settings)


def test_nothing_charged_yet(fresh_site):
    for view in (summarise, verify):
        with pytest.raises(StateError, match="NO_LEDGER"):
            view(load_site(fresh_site))
    assert not (fresh_site.parent / "state").exists()
