"""site.toml: where things are, and what is never accepted."""

from pathlib import Path

import pytest

from dpfpl_client.site.settings import load_site
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
