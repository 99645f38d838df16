"""``dpfpl-client init``: point a kit at a folder of images, or start a site without a kit."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import tomlkit

from dpfpl_client.data.settings import BUILT_IN
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.config import build, read_toml
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import NAME
from dpfpl_common.policy import Policy

__all__ = ["initialise", "model_note", "name_users", "template_policy"]

SITE = """\
name = "site"
model = "embedded"  # a Hugging Face id, a folder, "embedded"; for questions a generative one: "embedded-vlm"
state = "state"               # personal prompt, privacy ledger and caches; keep it, and back it up

[data]
source = "folder"  # folder | csv | questions | huggingface | digits | shapes
path = ""
# bits = 12          # of 16-bit greyscale files that do not say it themselves: what the device writes
# frames = "refuse"  # leave out files of several pictures; "first" takes their first

# [data.class_map]   # your folder names -> the experiment's class names
# "Viral_Pneumonia" = "viral pneumonia"
"""

POLICY = """\
# What this site allows at most; everything else is refused.
experiments = ["*"]
max_epsilon_per_experiment = 10.0
max_epsilon_lifetime = 20.0
metrics = "noised"
"""


def template_policy() -> Policy:
    """This program's own starting policy: a kit's may be stricter, but what is looser in it has to be accepted."""
    return build(Policy, tomllib.loads(POLICY), "the template of policy.toml")


def initialise(
    site_file: Path,
    data: str | None,
    name: str,
    *,
    model: str | None = None,
    class_map: Mapping[str, str] | None = None,
    usual_mix: float | None = None,
) -> list[Path]:
    """Write what is given into site.toml, making site.toml and policy.toml where they are missing.

    Args:
        site_file: the site's site.toml.
        data: a folder, a .csv or .jsonl file, "digits" or "shapes".
        name: the site's name, used only for a new site.toml.
        model, usual_mix: as in site.toml; a folder that is there becomes an absolute path.
        class_map: the site's own class names -> the experiment's; added to those that are there.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the data are not there, the name is no site name, site.toml is no TOML, or would say something
            impossible; nothing is written then.
    """
    source, path = ("", "") if data is None else _source(data)
    if site_file.exists():
        document = _read(site_file)
    else:
        if data is None:
            raise ConfigError(code="NO_DATA", message=f"There is no {site_file} yet.", advice="Give --data as well.")
        if not NAME.fullmatch(name):
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"The site's name is {name!r}.",
                advice="Use 1-63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit.",
            )
        document = tomlkit.parse(SITE)
        document["name"] = name
        document["model"] = "embedded-vlm" if source == "questions" else "embedded"
    table = document.setdefault("data", tomlkit.table())
    if data is not None:
        table["source"], table["path"] = source, path
    if model is not None:
        folder = Path(model).expanduser()
        document["model"] = str(folder.resolve()) if folder.is_dir() else model
    if class_map:
        merged = tomlkit.inline_table()
        merged.update({**table.get("class_map", {}), **class_map})
        table["class_map"] = merged
    if usual_mix is not None:
        document["usual_mix"] = usual_mix
    build(SiteSettings, document.unwrap(), site_file.name)  # raises what loading the file would
    site_file.parent.mkdir(parents=True, exist_ok=True)
    site_file.write_text(tomlkit.dumps(document), encoding="utf-8")
    written, policy = [site_file], site_file.parent / "policy.toml"
    if not policy.exists():
        policy.write_text(POLICY)
        policy.chmod(0o640)
        written.append(policy)
    return written


def model_note(site_file: Path) -> str:
    """What an administrator should know about the model where the data are questions; empty elsewhere."""
    table = tomllib.loads(site_file.read_text(encoding="utf-8"))
    if table.get("data", {}).get("source") != "questions":
        return ""
    model = table.get("model", "embedded")
    if model == "embedded":
        return (
            f'Questions and captions need a generative model, which "embedded" is not: set model in {site_file} to the '
            'one that the operator names; for a trial "embedded-vlm".'
        )
    if model == "embedded-vlm":
        return 'The model "embedded-vlm" is for a trial: it knows drawn pictures only. Set model as the operator says.'
    return ""


def name_users(site_file: Path, agent: str, node: str) -> None:
    """Name the two users in site.toml's [users], which is made where it is missing."""
    document = _read(site_file)
    document["users"] = {"agent": agent, "node": node}
    site_file.write_text(tomlkit.dumps(document), encoding="utf-8")


def _read(site_file: Path) -> tomlkit.TOMLDocument:
    read_toml(site_file)  # its errors say where
    return tomlkit.parse(site_file.read_text(encoding="utf-8-sig"))


def _source(data: str) -> tuple[str, str]:
    if data in BUILT_IN:
        return data, ""
    path = Path(data).expanduser().resolve()
    if path.is_dir():
        return "folder", str(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return "csv", str(path)
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return "questions", str(path)
    raise ConfigError(
        code="NO_DATA",
        message=f"{data!r} is neither a folder nor a .csv or .jsonl file.",
        advice="Give a folder of images, a CSV file with the columns path and label, a file of questions (.jsonl), "
        "digits or shapes.",
    )
