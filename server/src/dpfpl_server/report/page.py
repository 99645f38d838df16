"""Puts the report together and writes it beside result.json."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dpfpl_common.config import build, read_toml
from dpfpl_common.errors import StateError
from dpfpl_common.ops.files import write_durably
from dpfpl_server.report.accuracy import (
    accuracy_section,
    floors_section,
    rounds_curves_section,
    scores_section,
    stopped_earlier_section,
    uncertainty_section,
)
from dpfpl_server.report.answer import cost_sentence, gain_sentence, privacy_sentence
from dpfpl_server.report.facts import stopped_after
from dpfpl_server.report.figures import Figures
from dpfpl_server.report.markup import Html, paragraph, text
from dpfpl_server.report.privacy import (
    audit_section,
    cost_section,
    details_section,
    limits_section,
    privacy_section,
    rounds_section,
)
from dpfpl_server.report.roi import RoiCase, RoiInputs, roi_case
from dpfpl_server.report.roi_section import roi_section
from dpfpl_server.report.texts import Texts, transport_name
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.words import noise_is_real

__all__ = ["read_roi", "render_report", "write_report"]

SHAPE: dict[str, type] = {
    "config": Mapping,
    "method": str,
    "transport": str,
    "accuracy": Mapping,
    "floors": Mapping,
    "sites": list,
    "rounds": list,
    "privacy": Mapping,
    "verdict": Mapping,
}

PAGE = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""


def render_report(result: Mapping[str, Any], language: str = "en", roi: RoiInputs | None = None) -> str:
    """The whole page; it needs no network, no script and no other file.

    Args:
        result: as ``build_result`` makes it, or read back from result.json.
        language: "en" or "ja".
        roi: what the company knows; None leaves the return on investment out.

    Raises:
        ConfigError: an unknown language, or a calculation without error rates.
    """
    texts = Texts(language, str(result["config"].get("task", {}).get("kind", "")))
    case = roi_case(result, roi) if roi is not None else None
    values = {**result, "stopped_after": stopped_after(result)}
    if case is not None:
        values["roi"] = case.values()
    figures = Figures(values, texts)
    name = result["config"]["name"]
    content = "\n".join(piece for piece in _pieces(result, figures, case, name) if piece)
    style = resources.files("dpfpl_server.report").joinpath("report.css").read_text(encoding="utf-8")
    return PAGE.format(
        language=language, title=text(texts.plain("page.title", name=name)), style=style, content=content
    )


def _pieces(result: Mapping[str, Any], figures: Figures, roi: RoiCase | None, name: str) -> tuple[Html, ...]:
    texts = figures.texts
    answer = (gain_sentence(result, figures), privacy_sentence(result, figures), cost_sentence(result, figures, roi))
    noise = result["privacy"].get("noise", "–")
    return (
        Html(f"<h1>{text(name)}</h1>"),
        paragraph(
            [
                texts(
                    "page.subtitle", method=result["method"], transport=transport_name(texts, str(result["transport"]))
                )
            ],
            "quiet",
        ),
        Html(
            f'<section class="answer">\n<h2>{texts("page.answer")}</h2>\n<ol>'
            + "".join(f"<li>{sentence}</li>" for sentence in answer)
            + "</ol>\n</section>"
        ),
        Html("") if noise_is_real(result) else paragraph([texts("page.noise", noise=noise)], "warning"),
        scores_section(result, figures),
        accuracy_section(result, figures),
        uncertainty_section(result, figures),
        floors_section(result, figures),
        rounds_curves_section(result, figures),
        stopped_earlier_section(result, figures),
        privacy_section(result, figures),
        audit_section(result, figures),
        cost_section(result, figures),
        roi_section(name, figures, roi),
        limits_section(result, figures),
        rounds_section(result, figures),
        details_section(result, figures),
        paragraph([texts("page.sources")], "quiet"),
    )


def write_report(
    run_folder_path: Path, language: str = "en", roi: RoiInputs | None = None, out: Path | None = None
) -> Path:
    """Write the report of a run and return its path: report.html beside result.json, report.ja.html in Japanese.

    Raises:
        StateError: there is no result yet, it cannot be read, or the report cannot be written.
        ConfigError: see ``render_report``.
    """
    try:
        result = RunFolder(run_folder_path).read_json("result.json")
    except StateError:
        raise _not_a_result(run_folder_path / "result.json", "it is not valid JSON") from None
    if result is None:
        raise StateError(
            code="NO_RESULT",
            message=f"{run_folder_path} holds no result.json.",
            advice="Let the run finish (dpfpl-server resume NAME), then ask for the report again.",
        )
    _check_shape(result, run_folder_path / "result.json")
    path = out or run_folder_path / ("report.html" if language == "en" else f"report.{language}.html")
    page = render_report(result, language, roi).encode()
    try:
        write_durably(path, page, 0o644)
    except OSError as error:
        raise StateError(
            code="CANNOT_WRITE",
            message=f"{path} cannot be written ({error.strerror}).",
            advice="Give --out a file in a folder that exists and is yours.",
        ) from None
    return path


def _check_shape(result: object, path: Path) -> None:
    """Refuse what no version of this software wrote, by the first key that is not as it should be.

    Raises:
        StateError: a key is missing or of another type.
    """
    if not isinstance(result, Mapping):
        raise _not_a_result(path, "it is no table")
    for key, kind in SHAPE.items():
        if not isinstance(result.get(key), kind):
            raise _not_a_result(path, f"{key!r} is missing or of another type")
    nested = {
        "floors": list(result["floors"].values()),
        "sites": result["sites"],
        "rounds": result["rounds"],
        "privacy": [*result["privacy"].get("epsilons", [None]), *result["privacy"].get("events", [None])],
    }
    for key, entries in nested.items():
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise _not_a_result(path, f"an entry of {key!r} is missing or no table")


def _not_a_result(path: Path, why: str) -> StateError:
    return StateError(
        code="RESULT_DAMAGED",
        message=f"{path} is not a result of this software: {why}.",
        advice="Finish the run again (dpfpl-server resume NAME); it is rebuilt from the checkpoint.",
    )


def read_roi(path: Path) -> RoiInputs:
    """Read roi.toml; errors name the key, the value and what was expected."""
    return build(RoiInputs, read_toml(path), path.name)
