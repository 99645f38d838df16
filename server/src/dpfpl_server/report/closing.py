"""The end of the report: what the data cannot tell, and everything needed to repeat the run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dpfpl_server.markup import Html, bullets, details, section, table
from dpfpl_server.plain_words import DASH
from dpfpl_server.report.figures import Figures

__all__ = ["details_section", "limits_section"]

Result = Mapping[str, Any]


def limits_section(result: Result, figures: Figures) -> Html:
    """What management must not read into the numbers."""
    texts = figures.texts
    keys = ["same_images", "chance", "people", "outside", "units", "operator"]
    if "local_only" not in result["floors"]:
        keys.insert(2, "alone")
    if not any(site.get("test_images") for site in result["sites"]):
        keys.insert(1, "counts")
    return section(texts("limits.title"), bullets([texts(f"limits.{key}") for key in keys]))


def details_section(result: Result, figures: Figures) -> Html:
    """Run, configuration and versions, each folded."""
    texts = figures.texts
    keys = ("transport", "node_authentication", "method", "seed", "experiment_digest")
    run = [(key, DASH if result.get(key) is None else result[key]) for key in keys]
    return section(
        texts("details.title"),
        details(
            texts("details.run"),
            table(texts("details.run_caption"), [texts("details.what"), texts("details.value")], run),
        ),
        details(
            texts("details.config"),
            table(
                texts("details.config_caption"),
                [texts("details.key"), texts("details.value")],
                list(_flat(result["config"])),
            ),
        ),
        details(
            texts("details.versions"),
            table(
                texts("details.versions_caption"),
                [texts("details.package"), texts("details.version")],
                sorted(result["versions"].items()),
            ),
        ),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, DASH if value is None else json.dumps(value, ensure_ascii=False)
