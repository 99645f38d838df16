"""``dpfpl-client init``: point a kit at a folder of images, or start a site without a kit."""

import json
import re
import tomllib
from pathlib import Path

from dpfpl_common.config import build
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import NAME
from dpfpl_common.policy import Policy

__all__ = ["initialise", "model_note", "name_users", "template_policy"]

SITE = """\
name = {name}
model = {model} # a Hugging Face id, a folder, "embedded"; for questions a generative one: "embedded-vlm"
state = "state"               # personal prompt, privacy ledger and caches; keep it, and back it up

[data]
source = {source}  # folder | csv | questions | huggingface | digits | shapes
path = {path}
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

BUILT_IN = ("digits", "shapes")


def template_policy() -> Policy:
    """This program's own starting policy: a kit's may be stricter, but what is looser in it has to be accepted."""
    return build(Policy, tomllib.loads(POLICY), "the template of policy.toml")


def initialise(site_file: Path, data: str, name: str) -> list[Path]:
    """Write the data's place into site.toml, making site.toml and policy.toml where they are missing.

    Args:
        site_file: the site's site.toml.
        data: a folder, a .csv or .jsonl file, "digits" or "shapes".
        name: the site's name, used only for a new site.toml.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the data are not there, the name is no site name, or an existing site.toml has no [data] source and
            path to replace.
    """
    source, path = _source(data)
    written = []
    if site_file.exists():
        text = site_file.read_text(encoding="utf-8")
        for key, value in (("source", source), ("path", path)):
            text = _with_value(text, key, value, site_file)
        site_file.write_text(text, encoding="utf-8")
        written.append(site_file)
    else:
        if not NAME.fullmatch(name):
            raise ConfigError(
                code="IMPOSSIBLE_VALUE",
                message=f"The site's name is {name!r}.",
                advice="Use 1-63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit.",
            )
        site_file.parent.mkdir(parents=True, exist_ok=True)
        model = "embedded-vlm" if source == "questions" else "embedded"
        facts = {"name": name, "model": model, "source": source, "path": path}
        text = SITE.format(**{key: _quoted(value) for key, value in facts.items()})
        site_file.write_text(text, encoding="utf-8")
        written.append(site_file)
    policy = site_file.parent / "policy.toml"
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
    text = site_file.read_text(encoding="utf-8")
    table = f"[users]\nagent = {_quoted(agent)}\nnode = {_quoted(node)}\n"
    if re.search(r"(?m)^\[users\]", text):
        text = re.sub(r"(?m)^\[users\][^\[]*", lambda _: table + "\n", text)
    else:
        text = f"{text.rstrip()}\n\n{table}"
    site_file.write_text(text, encoding="utf-8")


def _with_value(text: str, key: str, value: str, site_file: Path) -> str:
    """The text with the one line ``key = "..."`` saying something else."""
    lines = re.findall(rf'(?m)^{key} *= *"[^"\n]*"', text)
    if len(lines) != 1:
        raise ConfigError(
            code="CANNOT_EDIT",
            message=f"{site_file} has not exactly one line {key} = ... to replace.",
            advice="Edit its [data] table by hand.",
        )
    return text.replace(lines[0], f"{key} = {_quoted(value)}")


def _quoted(value: str) -> str:
    """A TOML string; like JSON's, but for surrogate pairs, which TOML does not know."""
    return json.dumps(value, ensure_ascii=False)


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
