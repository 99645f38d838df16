"""report.html: one self-contained page that tells management and engineers what a run brought and what it cost."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dpfpl_common.durable import write_durably
from dpfpl_common.errors import StateError
from dpfpl_server.markup import paragraph, text
from dpfpl_server.report_answer import gain_sentences, privacy_sentences, traffic_sentences
from dpfpl_server.report_details import details_section
from dpfpl_server.report_sections import (
    accuracy_section,
    curves_section,
    floors_section,
    privacy_section,
    rounds_section,
)
from dpfpl_server.report_text import TRANSPORTS, noise_is_real
from dpfpl_server.run_folder import RunFolder

__all__ = ["render_report", "write_report"]

PAGE = """<!DOCTYPE html>
<html lang="en">
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


def render_report(result: Mapping[str, Any]) -> str:
    """The whole page; it needs no network, no script and no other file.

    Args:
        result: as ``build_result`` makes it, or read back from result.json.
    """
    name = result["config"]["name"]
    transport = TRANSPORTS.get(result["transport"], result["transport"])
    answer = (gain_sentences(result), privacy_sentences(result), traffic_sentences(result))
    pieces = (
        f"<h1>{text(name)}</h1>",
        paragraph([f"Federated prompt learning with {result['method']}, {transport}."], "quiet"),
        '<div class="answer">' + "\n".join(paragraph(sentences) for sentences in answer) + "</div>",
        ""
        if noise_is_real(result)
        else paragraph([f"Noise: {result['privacy'].get('noise', 'not stated')}."], "warning"),
        accuracy_section(result),
        floors_section(result),
        curves_section(result),
        privacy_section(result),
        rounds_section(result),
        details_section(result),
    )
    style = resources.files("dpfpl_server").joinpath("report.css").read_text(encoding="utf-8")
    content = "\n".join(piece for piece in pieces if piece)
    return PAGE.format(title=text(f"{name} – DP-FPL report"), style=style, content=content)


def write_report(run_folder_path: Path) -> Path:
    """Write report.html beside a run's result.json and return its path.

    Raises:
        StateError: there is no result yet, or it cannot be read.
    """
    try:
        result = RunFolder(run_folder_path).read_json("result.json")
    except StateError:
        raise StateError(
            code="RESULT_DAMAGED",
            message=f"{run_folder_path / 'result.json'} is not valid JSON.",
            advice="Finish the run again (dpfpl-server resume NAME); it is rebuilt from the checkpoint.",
        ) from None
    if result is None:
        raise StateError(
            code="NO_RESULT",
            message=f"{run_folder_path} holds no result.json.",
            advice="Let the run finish (dpfpl-server resume NAME), then ask for the report again.",
        )
    path = run_folder_path / "report.html"
    write_durably(path, render_report(result).encode(), 0o644)
    return path
