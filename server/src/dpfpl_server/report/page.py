"""Puts the report together and writes it beside result.json."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import BaseModel, ValidationError

from dpfpl_common.config import build, read_toml
from dpfpl_common.errors import StateError
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.text import printable
from dpfpl_server.report.charts import Line, line_chart
from dpfpl_server.report.facts import facts
from dpfpl_server.report.roi import INPUTS, RESULTS, RoiInputs
from dpfpl_server.report.texts import FILTERS, Texts
from dpfpl_server.runs.folder import RunFolder

__all__ = ["read_roi", "render_report", "write_report"]

Table = dict[str, Any]
STYLES = {"expected": 0, "low": 1, "high": 2}


class Shape(BaseModel):
    """What a result must have before a page is tried."""

    date: str
    config: Table
    method: str
    transport: str
    accuracy: Table
    baselines: dict[str, Table]
    sites: list[Table]
    rounds: list[Table]
    scores: list[Table]
    privacy: Table
    verdict: Table


def render_report(result: Mapping[str, Any], language: str = "en", roi: RoiInputs | None = None) -> str:
    """The whole page; it needs no network, no script and no other file.

    Args:
        result: as ``build_result`` makes it, or read back from result.json.
        language: "en" or "ja".
        roi: what the company knows; None leaves the return on investment out.

    Raises:
        ConfigError: an unknown language, or a calculation without error rates.
    """
    page, texts = _template(language, str(result["config"].get("task", {}).get("kind", "")))
    found = facts(result, roi)
    return page.render(found, **_lines(found, texts), roi_inputs=INPUTS, roi_results=RESULTS)


@functools.lru_cache
def _template(language: str, task: str) -> tuple[jinja2.Template, Texts]:
    """Whatever a template puts in is escaped, without control characters; a name that is not there is an error."""

    def shown(value: object) -> object:
        return value if isinstance(value, Markup | jinja2.Undefined) else printable(value)

    texts = Texts(language, task)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpfpl_server.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters |= {name: getattr(texts, name) for name in FILTERS}
    environment.filters["baseline"] = lambda name: texts.word(f"baselines.{name}", name)
    environment.filters["quoted"] = lambda name: texts("format.quoted", n=texts.word(f"baselines.{name}", name))
    environment.globals |= {"t": texts, "line_chart": line_chart, "amount": "{:,.0f}".format}
    return environment.get_template("report.html.j2"), texts


def _lines(found: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """The lines of the charts, with their labels."""

    def named(curves: Mapping[str, Mapping[int, float]]) -> list[Line]:
        return [Line(texts(f"rounds.{name}").striptags(), curves[name], style) for style, name in enumerate(curves)]

    cash = found["roi"]["cash"] if found["roi"] else {}
    return {
        "mean_lines": named(found["curves"]),
        "site_lines": {site: named(curves) for site, curves in found["site_curves"].items()},
        "cash_lines": [Line(str(texts(f"roi.{case}")), cash[case], STYLES[case]) for case in STYLES if cash],
    }


def write_report(
    run_folder_path: Path, language: str = "en", roi: RoiInputs | None = None, out: Path | None = None
) -> Path:
    """Write the report of a run and return its path: report.html beside result.json, report.ja.html in Japanese.

    Raises:
        StateError: there is no result yet, it cannot be read, or the report cannot be written.
        ConfigError: see ``render_report``.
    """
    source = run_folder_path / "result.json"
    try:
        result = RunFolder(run_folder_path).read_json("result.json")
    except StateError:
        raise _damaged(source, "it is not valid JSON") from None
    if result is None:
        raise StateError(
            code="NO_RESULT",
            message=f"{run_folder_path} holds no result.json.",
            advice="Let the run finish (dpfpl-server resume NAME), then ask for the report again.",
        )
    try:
        Shape.model_validate(result)
        page = render_report(result, language, roi).encode()
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(source, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, jinja2.UndefinedError) as error:
        raise _damaged(source, f"{error} is missing") from error
    path = out or run_folder_path / ("report.html" if language == "en" else f"report.{language}.html")
    try:
        write_durably(path, page, 0o644)
    except OSError as error:
        raise StateError(
            code="CANNOT_WRITE",
            message=f"{path} cannot be written ({error.strerror}).",
            advice="Give --out a file in a folder that exists and is yours.",
        ) from None
    return path


def _damaged(path: Path, why: str) -> StateError:
    return StateError(
        code="RESULT_DAMAGED",
        message=f"{path} is not a result of this software: {why}.",
        advice="Finish the run again (dpfpl-server resume NAME); it is rebuilt from the checkpoint.",
    )


def read_roi(path: Path) -> RoiInputs:
    """Read roi.toml; errors name the key, the value and what was expected."""
    return build(RoiInputs, read_toml(path), path.name)
