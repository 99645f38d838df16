"""dpfpl-client init: with a kit and without one."""

import stat
import tomllib

import pytest

from dpfpl_client.agent.policy_file import load_policy
from dpfpl_client.site.init import initialise
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import ConfigError
from dpfpl_server.sites.provision import ProvisionRequest, provision


@pytest.fixture
def kit(tmp_path):
    return provision(ProvisionRequest(tmp_path / "server", tmp_path / "kits", ("hospital-a",))).kits["hospital-a"]


def test_a_kit_is_pointed_at_the_images_and_keeps_the_rest(kit, tmp_path):
    (tmp_path / "scans").mkdir()
    before, policy = tomllib.loads((kit / "site.toml").read_text()), (kit / "policy.toml").read_bytes()
    assert initialise(kit / "site.toml", str(tmp_path / "scans"), "ignored") == [kit / "site.toml"]
    after = tomllib.loads((kit / "site.toml").read_text())
    assert after == {**before, "data": {"source": "folder", "path": str(tmp_path / "scans")}}
    assert "#" in (kit / "site.toml").read_text()  # its comments stay
    assert (kit / "policy.toml").read_bytes() == policy
    settings = load_site(kit / "site.toml")
    assert (settings.name, settings.server.address) == ("hospital-a", "127.0.0.1:9092")
    load_policy(settings.path(settings.policy))


def test_it_can_be_done_again_with_other_data(kit, tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n")
    initialise(kit / "site.toml", "digits", "x")
    assert load_site(kit / "site.toml").data.path == ""
    initialise(kit / "site.toml", str(tmp_path / "list.csv"), "x")
    data = load_site(kit / "site.toml").data
    assert (data.source, data.path) == ("csv", str(tmp_path / "list.csv"))


@pytest.mark.parametrize("source", ["digits", "shapes"])
def test_without_a_kit_a_strict_site_is_made(tmp_path, source):
    site_file = tmp_path / "new" / "site.toml"
    assert initialise(site_file, source, "my-site") == [site_file, tmp_path / "new" / "policy.toml"]
    settings = load_site(site_file)
    assert (settings.name, settings.data.source, settings.server.address) == ("my-site", source, "")
    policy = load_policy(settings.path(settings.policy))
    assert "central" not in policy.trust
    assert stat.S_IMODE((tmp_path / "new" / "policy.toml").stat().st_mode) == 0o640


def test_questions_need_a_model_that_answers(kit, tmp_path, command):
    (tmp_path / "asked.jsonl").write_text("{}\n")
    code, out, _ = command("init", "--data", tmp_path / "asked.jsonl", "--site", kit / "site.toml")
    assert code == 0
    assert load_site(kit / "site.toml").model == "embedded"  # the operator's choice is not changed
    assert "generative" in out
    assert '"embedded-vlm"' in out
    code, out, _ = command("init", "--data", tmp_path / "asked.jsonl", "--site", tmp_path / "own" / "site.toml")
    assert load_site(tmp_path / "own" / "site.toml").model == "embedded-vlm"
    assert "trial" in out
    for site_file in (kit / "site.toml", tmp_path / "own" / "site.toml"):
        (source,) = [line for line in site_file.read_text().splitlines() if line.startswith("source")]
        assert "questions" in source.partition("#")[2]
    (path,) = [line for line in (kit / "site.toml").read_text().splitlines() if line.startswith("path")]
    assert ".jsonl" in path.partition("#")[2]
    assert "embedded" not in command("init", "--data", "digits", "--site", tmp_path / "own" / "site.toml")[1]


@pytest.mark.parametrize("folder", ["plain", "with space", 'quo"te', "back\\slash", "älter-😀", "l'été"])
def test_any_folder_name_survives(tmp_path, folder):
    (tmp_path / folder).mkdir()
    initialise(tmp_path / "site.toml", str(tmp_path / folder), "a")
    assert load_site(tmp_path / "site.toml").data.path == str(tmp_path / folder)


def test_relative_data_are_relative_to_where_one_types(tmp_path, monkeypatch):
    (tmp_path / "here" / "scans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    initialise(tmp_path / "site.toml", "scans", "a")
    assert load_site(tmp_path / "site.toml").data.path == str(tmp_path / "here" / "scans")


@pytest.mark.parametrize(("data", "name"), [("nowhere", "a"), ("notes.txt", "a"), ("digits", "Bad Name")])
def test_mistakes_write_nothing(tmp_path, data, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError) as error:
        initialise(tmp_path / "new" / "site.toml", data, name)
    assert error.value.advice
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [('name="a"\n[data]\npath = "y"\npath = "z"\n', "BAD_TOML"), ('name = "a"\ncolour = 1\n', "UNKNOWN_KEY")],
)
def test_a_file_that_it_does_not_understand_is_left_alone(tmp_path, text, code):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=code):
        initialise(tmp_path / "site.toml", "digits", "a")
    assert (tmp_path / "site.toml").read_text() == text


def test_model_class_map_and_usual_mix_are_written_and_the_rest_stays(kit, tmp_path, command):
    before = (kit / "site.toml").read_text()
    (tmp_path / "clip").mkdir()
    typed = ("init", "--site", kit / "site.toml", "--model", tmp_path / "clip", "--class-map", "A=b c=d")
    assert command(*typed, "--class-map", "X_Y=x y", "--usual-mix", "0.9")[0] == 0
    settings = load_site(kit / "site.toml")
    assert (settings.model, settings.usual_mix) == (str(tmp_path / "clip"), 0.9)
    assert settings.data.class_map == {"A": "b c=d", "X_Y": "x y"}
    kept = [line for line in before.splitlines() if not line.startswith("model")]
    assert set(kept) <= set((kit / "site.toml").read_text().splitlines())
    assert command("init", "--site", kit / "site.toml", "--class-map", "Z=z")[0] == 0
    assert load_site(kit / "site.toml").data.class_map == {"A": "b c=d", "X_Y": "x y", "Z": "z"}
    code, _, err = command("init", "--site", kit / "site.toml", "--usual-mix", "1")
    assert (code, "usual_mix is 1.0" in err) == (2, True)
    assert load_site(kit / "site.toml").usual_mix == 0.9
    assert "NO_DATA" in command("init", "--site", tmp_path / "none.toml", "--model", "embedded")[2]


def test_a_policy_is_never_replaced(tmp_path):
    (tmp_path / "policy.toml").write_text("mine")
    initialise(tmp_path / "site.toml", "digits", "a")
    assert (tmp_path / "policy.toml").read_text() == "mine"
