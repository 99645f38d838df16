"""``dpfpl-server new-experiment``: experiment.toml from what a pilot found, what sites told and who is provisioned."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from dpfpl_common.config import build, to_table
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Experiment, SiteDescription

__all__ = ["experiment_text"]

HEAD = """\
# Made by dpfpl-server new-experiment; what is not here keeps its default. A changed experiment needs a new name.
# [privacy] nominal_site_size is a public, round stand-in for the images of a site, never a real count.
"""
EPSILON = 8.0
GIVEN = ("name", "classes", "sites", "model")


def experiment_text(
    name: str,
    told: Sequence[Path],
    sites: Sequence[str],
    *,
    classes: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
    epsilon: float | None = None,
) -> str:
    """The text of an experiment.toml.

    Args:
        name: of the experiment.
        told: what a site wrote with ``dpfpl-client describe``, or a pilot's folder, whose settings are taken.
        sites: who takes part.
        classes: instead of all that were told.
        model: keys of [model], instead of what was told.
        epsilon: instead of the pilot's; 8 where there is none.

    Raises:
        ConfigError: a file says something else, two name different models, or something is missing or impossible.
    """
    parts = {path: _read(path) for path in told}
    pilot = next((part for part in parts.values() if isinstance(part, Experiment)), None)
    table: dict[str, Any] = {
        "name": name,
        "classes": list(classes) or sorted({each for part in parts.values() for each in part.classes}),
        "sites": sorted(sites),
        "model": _one_model(parts) | dict(model or {}),
    }
    if "width" not in table["model"]:
        raise _missing("The model is not known.", "--from a site's description or a pilot, or --width")
    if pilot is not None:
        table |= _settings(pilot)
    privacy = table.setdefault("privacy", {})
    if epsilon is not None or not privacy.keys() & {"target_epsilon", "noise_multiplier"}:
        privacy.pop("noise_multiplier", None)
        privacy["target_epsilon"] = EPSILON if epsilon is None else epsilon
    if not table["classes"] and (pilot is None or not pilot.task.in_words):
        raise _missing("No class is known.", "--class NAME for each, or descriptions made --with-classes")
    build(Experiment, table, "the new experiment")
    return HEAD + tomli_w.dumps(table)


def _read(path: Path) -> Experiment | SiteDescription:
    file = path / "result.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            code="FILE_UNREADABLE", message=f"{file} cannot be read ({error.strerror}).", advice="Check the path."
        ) from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError(
            code="NOT_TOLD",
            message=f"{file} is neither a site's description nor a pilot's result.",
            advice="Ask the site for what dpfpl-client describe writes, or give the folder of dpfpl-bench pilot.",
        )
    if "config" in content:
        return build(Experiment, content["config"], f"{file} config")
    return build(SiteDescription, content, str(file))


def _one_model(parts: Mapping[Path, Experiment | SiteDescription]) -> dict[str, Any]:
    models = {part.model.fingerprint: path for path, part in parts.items()}
    if len(models) > 1:
        raise ConfigError(
            code="OTHER_MODEL",
            message=f"{' and '.join(map(str, models.values()))} name different models: {' and '.join(models)}.",
            advice="All sites need the same one: agree on it, and let them run dpfpl-client init --model.",
        )
    return next((to_table(part.model) for part in parts.values()), {})


def _settings(pilot: Experiment) -> dict[str, Any]:
    """What the pilot had other than the defaults, but for the names and its noise, which depends on the sites."""
    table = to_table(pilot)
    required = {"privacy": {"target_epsilon": EPSILON}, **{key: table[key] for key in GIVEN}}
    plain, changed = to_table(build(Experiment, required, "")), {}
    for section in sorted(table.keys() - set(GIVEN)):
        rows = {key: value for key, value in table[section].items() if value not in (None, plain[section][key])}
        if rows:
            changed[section] = rows
    privacy = changed.setdefault("privacy", {})
    if pilot.privacy.target_epsilon is not None:
        privacy["target_epsilon"] = privacy.pop("target_epsilon", EPSILON)
        privacy.pop("noise_multiplier", None)
    if size := privacy.get("nominal_site_size"):
        digits = 10 ** (len(str(size)) - 1)
        privacy["nominal_site_size"] = max(1, round(size / digits)) * digits
    return changed


def _missing(what: str, give: str) -> ConfigError:
    return ConfigError(code="MISSING_KEY", message=what, advice=f"Give {give}.")
