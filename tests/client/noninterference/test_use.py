"""NI7: using, serving and exporting a prompt obey the accepted policy as it is now."""

import re

import pytest

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.policy_file import PolicyFile

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
