"""Uploads to a model hub: where the site's rules name the repository, its own files alone, private unless said."""

import inspect
import json
import re
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.site.settings import load_site

REPOSITORY = "north/pilot-prompt"


def bound(method, *args, **options):
    """A call's arguments by name, as the hub's own client takes them; TypeError where it does not."""
    return inspect.signature(method).bind(None, *args, **options).arguments


class Hub:
    """A stand-in for ``huggingface_hub.HfApi`` that takes what that one takes, and keeps what it is told."""

    calls: list[tuple[str, dict]]
    private = True
    failure: Exception | None = None

    def __init__(self, *args, **options):
        token = bound(HfApi.__init__, *args, **options)["token"]
        assert token is True  # our processes switch the implicit use of a saved token off
        type(self).calls = []

    def create_repo(self, *args, **options):
        if self.failure:
            raise self.failure
        told = bound(HfApi.create_repo, *args, **options)
        self.calls.append(("create", {name: told[name] for name in ("repo_id", "private", "exist_ok")}))

    def model_info(self, *args, **options):
        assert bound(HfApi.model_info, *args, **options)["repo_id"] == REPOSITORY
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *args, **options):
        told = bound(HfApi.upload_folder, *args, **options)
        self.calls.append(("upload", told))
        return SimpleNamespace(commit_url=f"https://hub.example/{told['repo_id']}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", type("Fresh", (Hub,), {"calls": []}))
    import huggingface_hub

    return huggingface_hub.HfApi


@pytest.fixture
def allowed(trained_site, command):
    """The site, whose policy names the repository."""
    with (trained_site.parent / "policy.toml").open("a") as file:
        file.write(f'publish = ["{REPOSITORY}"]\n')
    assert command("policy", "accept", "--site", trained_site, "--yes")[0] == 0
    return trained_site


def code_in(err):
    return re.search(r"^([A-Z_]+):", err, re.MULTILINE).group(1)


def recorded(site):
    lines = AuditLog(load_site(site).state_folder / AUDIT_FILE).lines()
    (line,) = [line for line in lines if line["event"] == "published"]
    return line


def push(command, site, out, *more):
    return command("export", "--out", out, "--site", site, "--push-to-hub", REPOSITORY, *more)


@pytest.mark.privacy
def test_NI7_without_the_rule_nothing_is_uploaded_and_the_error_says_what_to_write(
    command, trained_site, tmp_path, hub
):
    code, _, err = push(command, trained_site, tmp_path / "out")
    assert (code, hub.calls) == (2, [])
    assert code_in(err) == "PUBLISH_NOT_ALLOWED"
    assert "(rule publish)" in err
    assert f'publish = ["{REPOSITORY}"]' in err
    assert "dpfpl-client policy accept" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.privacy
def test_NI7_a_rule_that_nobody_accepted_does_not_hold(command, trained_site, tmp_path, hub):
    assert command("policy", "accept", "--site", trained_site, "--yes")[0] == 0  # what there was before
    with (trained_site.parent / "policy.toml").open("a") as file:
        file.write(f'publish = ["{REPOSITORY}"]\n')
    code, _, err = push(command, trained_site, tmp_path / "out")
    assert (code, code_in(err), hub.calls) == (2, "PUBLISH_NOT_ALLOWED", [])


@pytest.mark.privacy
def test_NI7_an_upload_is_private_holds_the_exports_files_alone_and_is_recorded(command, allowed, tmp_path, hub):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prompt.json").write_text("{}")  # an earlier export, and what somebody put beside it
    (tmp_path / "out/patient.png").write_text("mine")
    code, out, _ = push(command, allowed, tmp_path / "out", "--json")
    assert code == 0
    shown = json.loads(out)
    (made, uploaded) = hub.calls
    assert made == ("create", {"repo_id": REPOSITORY, "private": True, "exist_ok": True})
    assert uploaded[1]["folder_path"] == tmp_path / "out"
    assert uploaded[1]["allow_patterns"] == shown["files"]
    assert "patient.png" not in shown["files"]
    assert uploaded[1]["delete_patterns"] == ["class_vectors.safetensors"]
    assert shown["commit"].endswith("/commit/1")
    assert shown["public"] is False
    line = recorded(allowed)
    assert (line["repository"], line["experiment"], line["public"]) == (REPOSITORY, "pilot", False)


@pytest.mark.privacy
def test_a_repository_that_everybody_reads_takes_a_word_more(command, allowed, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(hub, "private", False)
    code, _, err = push(command, allowed, tmp_path / "out")
    assert (code, code_in(err)) == (2, "REPOSITORY_PUBLIC")
    assert [name for name, _ in hub.calls] == ["create"]
    code, out, _ = push(command, allowed, tmp_path / "out", "--public")
    assert (code, hub.calls[0][1]["private"], "for everybody" in out) == (0, False, True)
    assert recorded(allowed)["public"] is True


@pytest.mark.privacy
def test_a_private_repository_that_exists_stays_private_and_is_recorded_so(command, allowed, tmp_path, hub):
    code, out, _ = push(command, allowed, tmp_path / "out", "--public")
    assert (code, recorded(allowed)["public"]) == (0, False)
    assert "for everybody" not in out
    assert "stays so" in out


def test_public_without_an_upload_is_refused_before_anything_is_written(command, trained_site, tmp_path):
    code, _, err = command("export", "--out", tmp_path / "out", "--site", trained_site, "--public")
    assert (code, code_in(err)) == (2, "NO_REPOSITORY")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failure", [OSError("offline mode is enabled"), ValueError("no such name"), OSError()])
def test_a_hub_out_of_reach_is_said(command, allowed, tmp_path, hub, monkeypatch, failure):
    monkeypatch.setattr(hub, "failure", failure)
    code, _, err = push(command, allowed, tmp_path / "out")
    assert (code, code_in(err)) == (2, "HUB_FAILED")
    assert str(failure) in err
    assert type(failure).__name__ in err


def test_what_the_hubs_own_client_raises_becomes_our_error(command, allowed, tmp_path, monkeypatch):
    """Nothing listens at this address: the real client, with its real exceptions, as far as a machine alone can go."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    code, _, err = push(command, allowed, tmp_path / "out")
    assert (code, code_in(err)) == (2, "HUB_FAILED")
    assert "ConnectError" in err
