"""NI7: using, serving and exporting a prompt obey the accepted policy as it is now."""

import dataclasses
import os
import re

import numpy as np
import pytest

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.ledger.book import SCORES, Ledger
from dpfpl_client.agent.policy_file import PolicyFile
from dpfpl_client.agent.store import Choice, DiskStore
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.site.settings import load_site
from dpfpl_client.use import results
from dpfpl_client.use.prompt import load_prompt
from dpfpl_common.experiment import PrivacySettings, RoundSettings
from dpfpl_common.privacy_plan import scored

pytestmark = pytest.mark.privacy


def tighten(site_file, rule):
    path = site_file.parent / "policy.toml"
    before = path.read_text()
    path.write_text(before + rule)
    return before


@pytest.mark.parametrize("rule", ['mechanisms = ["one_shot"]\n', "min_noise_multiplier = 5.0\n"])
def test_ni7_a_prompt_that_the_policy_no_longer_admits_is_not_used(command, trained_site, image_folder, tmp_path, rule):
    image = next((image_folder / "test" / "bright").iterdir())
    commands = (
        ("predict", image, "--site", trained_site),
        ("export", "--out", tmp_path / "out", "--site", trained_site),
        ("serve", "--site", trained_site, "--port", "0"),
    )
    assert command(*commands[0])[0] == 0
    before = tighten(trained_site, rule)
    for typed in commands:
        code, _, error = command(*typed)
        assert code == 2
        assert "(rule " in error
    state = trained_site.parent / "state"
    PolicyFile(trained_site.parent / "policy.toml", state, AuditLog(None)).current()  # what a running agent would keep
    (trained_site.parent / "policy.toml").write_text(before)
    for typed in commands:
        assert command(*typed)[0] == 2, "loosened in the file, but not accepted"
    assert command("policy", "accept", "--site", trained_site, "--yes")[0] == 0
    assert command(*commands[0])[0] == 0


def test_results_are_exact_and_for_the_sites_own_people_beside_what_left_with_noise(command, trained_site):
    code, out, _ = command("results", "--site", trained_site)
    assert code == 0
    assert "on 4 held-back images" in out
    assert "stay at this site" in out
    assert re.search(r"noised counts:\n  plain text .* \(95 % interval [\d.]+% to [\d.]+%\)\n", out)


def test_ni7_no_byte_of_an_export_depends_on_what_a_site_keeps_of_its_exact_images(command, trained_site, tmp_path):
    """Not even the version: who guesses what two neighbours keep would see which of them has that hash."""
    store = DiskStore(trained_site.parent / "state")
    backbone, prompt = load_backbone("embedded"), load_prompt(trained_site.parent)
    pool = np.ones((3, backbone.feature_size + 2), "<f4")
    written = []
    for number, (shares, own) in enumerate((([0.5, 0.5], None), ([0.25, 0.75], np.array([0.0, 5.0])))):
        store.write_final("pilot", prompt.global_context, Choice("evidence", pool, np.array(shares), own))
        final = trained_site.parent / "state/experiments/pilot/final.safetensors"
        os.utime(final, (86400, 86400))
        out = tmp_path / str(number)
        assert command("export", "--out", out, "--site", trained_site)[0] == 0
        written.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert "class_vectors.safetensors" in written[0]
    assert written[0] == written[1]


def test_ni7_an_export_reads_no_image(command, trained_site, image_folder, tmp_path):
    def written(name):
        assert command("export", "--out", tmp_path / name, "--site", trained_site)[0] == 0
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    before = written("a")
    trained_site.write_text(trained_site.read_text().replace(str(image_folder), "/nowhere"))
    assert written("b") == before


@pytest.mark.parametrize("trust", ["local", "secure"])
def test_a_site_is_shown_what_left_it_of_class_vectors_too(trained_site, monkeypatch, trust):
    """Under ``secure`` no score left it but in a sum: what the ledger recorded are masked integers."""
    learned = load_prompt(trained_site.parent)
    one_shot = PrivacySettings(mechanism="one_shot", trust=trust, noise_multiplier=1.0, nominal_site_size=8)
    sites, rounds = ("north", "south", "west"), RoundSettings(number=2)
    experiment = dataclasses.replace(learned.experiment, name="rows", sites=sites, privacy=one_shot, rounds=rounds)
    assert experiment.uses_evidence
    ledger, counts = Ledger(None), tuple(float(number) for number in range(len(scored(experiment)) + 1))
    digest = DiskStore(trained_site.parent / "state").write_scores("rows", counts) if trust == "local" else "0" * 64
    ledger.commit(ledger.reserve("rows", SCORES, "asked", ()), digest)
    monkeypatch.setattr(results, "observed_ledger", lambda _: ledger)
    shown = results.released_scores(load_site(trained_site), dataclasses.replace(learned, experiment=experiment))
    assert len(shown) == (len(scored(experiment)) if trust == "local" else 0)
