"""site.toml: where things are, and what is never accepted."""

from pathlib import Path

import pytest
import torch

from dpfpl_client.agent.build import build_agent
from dpfpl_client.check import check_site
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import ComputeSettings, load_site
from dpfpl_common.errors import ConfigError

DATA = '[data]\nsource = "folder"\npath = "images"\n'


@pytest.fixture
def site(tmp_path):
    def write(text, name='name = "north"\n'):
        (tmp_path / "site.toml").write_text(name + text)
        return load_site(tmp_path / "site.toml")

    return write


def test_relative_paths_start_from_site_toml(site, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    settings = site(f'state = "st"\npolicy = "../policy.toml"\n{DATA}[server]\nca_certificate = "/etc/ca.crt"\n')
    assert settings.data.path == str(tmp_path / "images")
    assert settings.state_folder == tmp_path / "st"
    assert settings.token_file == tmp_path / "st" / "agent.token"
    assert settings.path(settings.policy).resolve() == tmp_path.parent / "policy.toml"
    assert settings.path(settings.server.ca_certificate) == Path("/etc/ca.crt")
    assert settings.path("~/x") == Path.home() / "x"
    assert settings.agent_address == f"unix:{tmp_path}/state/agent.sock"


def test_paths_are_absolute_when_site_toml_is_named_relatively(tmp_path, monkeypatch):
    (tmp_path / "site.toml").write_text('name = "north"\n' + DATA)
    monkeypatch.chdir(tmp_path)
    settings = load_site(Path("site.toml"))
    monkeypatch.chdir("/")
    assert settings.state_folder == tmp_path / "state"


def test_links_stay_links_so_that_the_policy_cannot_hide_behind_one(site, tmp_path):
    (tmp_path / "policy.toml").symlink_to("elsewhere.toml")
    settings = site(DATA)
    assert settings.path(settings.policy).is_symlink()


def test_a_hub_id_is_no_path(site):
    settings = site('model = "openai/clip-vit-base-patch16"\n[data]\nsource = "huggingface"\npath = "owner/pets"\n')
    assert (settings.data.path, settings.model) == ("owner/pets", "openai/clip-vit-base-patch16")


def test_a_model_folder_beside_site_toml_is_found_from_everywhere(site, tmp_path):
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "embedded").mkdir()
    assert site('model = "models/clip"\n' + DATA).model == str(tmp_path / "models" / "clip")
    assert site('model = "embedded"\n' + DATA).model == "embedded"


def test_the_built_ins_need_no_path(site):
    assert site('[data]\nsource = "digits"\n').data.path == ""


@pytest.mark.parametrize("address", ["127.0.0.1:7000", "unix:/run/dpfpl/agent.sock"])
def test_absolute_addresses_stay(site, address):
    assert site(f'{DATA}[agent]\naddress = "{address}"\n').agent_address == address


@pytest.mark.parametrize("source", ["folder", "csv", "huggingface"])
def test_a_seed_is_refused_for_private_data(site, source):
    with pytest.raises(ConfigError) as error:
        site(f'[data]\nsource = "{source}"\npath = "x"\n[simulation]\nseed = 1\n')
    assert error.value.code == "PRIVATE_DATA_NEEDS_REAL_NOISE"


@pytest.mark.parametrize("source", ["digits", "shapes"])
def test_a_seed_is_accepted_for_public_data(site, source):
    assert site(f'[data]\nsource = "{source}"\n[simulation]\nseed = 1\n').simulation.seed == 1


@pytest.mark.parametrize("name", ["", "North", "a b", "../x", "-a", "a" * 64, "ä", "a/b", "a\\n"])
def test_impossible_names_are_refused(site, name):
    with pytest.raises(ConfigError, match="IMPOSSIBLE_VALUE"):
        site(DATA, name=f'name = "{name}"\n')


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ('nane = "x"\n' + DATA, "UNKNOWN_KEY", "nane"),
        ('folder = "/"\n' + DATA, "UNKNOWN_KEY", "folder"),
        (DATA + 'paht = "x"\n', "UNKNOWN_KEY", "paht"),
        (DATA + '[server]\nadress = "x"\n', "UNKNOWN_KEY", "adress"),
        (DATA + "[server]\npoll_s = 0.0\n", "IMPOSSIBLE_VALUE", "poll_s"),
        (DATA + "[agent]\nthread = 2\n", "UNKNOWN_KEY", "thread"),
        (DATA + "[agent]\nthreads = 0\n", "IMPOSSIBLE_VALUE", "threads"),
        (DATA + '[agent]\nthreads = "2"\n', "WRONG_TYPE", "threads"),
        ("offline = 1\n" + DATA, "WRONG_TYPE", "offline"),
        ('[data]\nsource = "digits"\n[simulation]\n', "MISSING_KEY", "seed"),
        ('[data]\nsource = "digits"\n[simulation]\nseed = 1.5\n', "WRONG_TYPE", "seed"),
        ("", "MISSING_KEY", "data"),
        ('[data]\nsource = "ftp"\n', "IMPOSSIBLE_VALUE", "ftp"),
        ("[data\n", "BAD_TOML", "site.toml"),
    ],
)
def test_mistakes_are_named(site, text, code, word):
    with pytest.raises(ConfigError) as error:
        site(text)
    assert error.value.code == code
    assert word in error.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="FILE_MISSING"):
        load_site(tmp_path / "site.toml")


# [compute]: what holds where nothing is said, what is refused, and that the site's model obeys


def saying(site, text, model="embedded"):
    """The site with this [compute] and model."""
    content = site.read_text()
    lines = [line for line in content.splitlines() if not line.startswith("model =")]
    site.write_text(f'model = "{model}"\n' + "\n".join(lines) + f"\n[compute]\n{text}\n")
    return load_site(site)


def test_without_it_the_processor_computes_in_float32(fresh_site):
    settings = load_site(fresh_site)
    assert settings.compute == ComputeSettings("cpu", "float32")
    assert check_site(settings).facts["model"]["computes"] == "on cpu in float32"


def test_a_generative_model_is_loaded_in_the_precision_that_the_site_says(fresh_site):
    settings = saying(fresh_site, 'precision = "bfloat16"', model="embedded-vlm")
    model = load_computing(settings.model, settings.compute)
    assert {weight.dtype for weight in model._model.parameters()} == {torch.bfloat16}
    built = build_agent(settings)
    try:
        assert built.backbone._model.dtype == torch.bfloat16
    finally:
        built.lock.release()
    assert check_site(settings).facts["model"]["computes"] == "on cpu in bfloat16"


def test_a_generative_model_holds_as_much_of_pictures_as_the_site_says(fresh_site):
    settings = saying(fresh_site, "picture_memory = 3", model="embedded-vlm")
    assert load_computing(settings.model, settings.compute).language._kept_most == 3 * 2**20


@pytest.mark.parametrize(
    ("text", "model", "code"),
    [
        ('device = "cuda:63"', "embedded", "DEVICE_NOT_THERE"),
        ('precision = "bfloat16"', "embedded", "PRECISION_UNUSABLE"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_check(fresh_site, text, model, code):
    found = check_site(saying(fresh_site, text, model))
    assert any(f"[{code}]" in error for error in found.errors)


@pytest.mark.parametrize(
    "text",
    [
        'device = "gpu"',
        'device = "cuda:"',
        'precision = "float16"',
        "precision = 16",
        "picture_memory = -1",
        'speed = "high"',
    ],
)
def test_what_has_no_meaning_is_named(fresh_site, text):
    with pytest.raises(ConfigError) as caught:
        saying(fresh_site, text)
    value = text.partition(" = ")[2].strip('"')
    assert value in caught.value.message or "speed" in caught.value.message
    assert caught.value.advice
