"""``docs/results/performance.md`` from bench.json: ``performance.md.jinja`` with its figures, and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from research.writing import picture

__all__ = ["performance_page", "write_performance"]

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")
NAMES: Final = {
    "published_replica": "replica of the published step's cost: image tower every step, 77 tokens, copies",
    "hugging_face": "Hugging Face text tower at 77 tokens, image features cached",
    "truncated": "the same, cut at the longest class prompt",
    "shared_prefix": "**D**: begin token and context once for all classes, autograd",
    "fast": "ours, without privacy",
    "naive": "private, naive: the context expanded for each example",
    "naive_opacus": "the same through Opacus' optimizer",
    "naive_part": "private, naive, 2 of the 32 examples",
    "batched_autograd": "private, batched autograd on D",
    "private": "**private, exact, ours**",
    "private_bfloat16": "private, ours, products rounded to bfloat16",
    "private_few": "private, ours, 3 classes of each example",
    "private_few_bfloat16": "private, ours, 3 classes and bfloat16",
    "private_160": "private, exact, ours, 160 examples",
    "private_bfloat16_160": "private, ours, bfloat16, 160 examples",
    "private_few_bfloat16_160": "private, ours, 3 classes and bfloat16, 160 examples",
}
WAYS: Final = {
    "transformers": "`transformers`, float32",
    "ours": "the agent, cold cache",
    "bfloat16": "`transformers`, bfloat16 by autocast",
    "openvino": "OpenVINO, float32",
    "onnxruntime": "ONNX Runtime, float32",
}
PROGRAMS: Final = {
    "predict": "`predict`, one image",
    "predict --served": "the same while `serve` runs: `predict --served`",
    "least": "the same by hand: loading with `transformers` and one forward",
}


def write_performance(bench: Path, docs: Path) -> Path:
    """Write ``performance.md`` and its pictures into ``docs``; returns the page."""
    result = json.loads(bench.read_text())
    folder = docs / "performance"
    with picture(folder / "steps.svg", (8, 4.2)) as figure:
        _draw_steps(figure.subplots(), result["steps"])
    with picture(folder / "round.svg", (8, 2.2)) as figure:
        _draw_round(figure.subplots(), result["profile"])
    with picture(folder / "simulation.svg", (8, 2.6)) as figure:
        _draw_simulation(figure.subplots(), result["simulation"])
    page = docs / "performance.md"
    page.write_text(performance_page(result))
    return page


def _draw_steps(axis: Any, steps: Mapping[str, Any]) -> None:
    """Bars of CPU time over D for every contestant."""
    shown = [name for name in NAMES if any(name in rows for rows in steps.values())]
    for number, (classes, rows) in enumerate(steps.items()):
        present = [(place, rows[name]["ratio"]) for place, name in enumerate(shown) if name in rows]
        heights = [place + 0.2 * (2 * number - 1) for place, _ in present]
        axis.barh(heights, [ratio for _, ratio in present], 0.38, color=COLOURS[number], label=f"{classes} classes")
    axis.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
    axis.set_xscale("log")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xlabel("CPU time over D")
    axis.invert_yaxis()
    axis.legend(frameon=False)


def _draw_round(axis: Any, profile: Mapping[str, Any]) -> None:
    """Two bars, before and after, of the parts of a round."""
    left = [0.0, 0.0]
    for number, part in enumerate(profile["before"]["shares"]):
        widths = [_milliseconds(profile[when], part) for when in ("before", "after")]
        axis.barh(["before", "after"], widths, left=left, color=COLOURS[number % len(COLOURS)], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("CPU ms a round")
    axis.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.3))


def _draw_simulation(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """CPU time of one site's share of a round, by the number of sites."""
    each = [row["cpu_milliseconds_a_round_and_site"] for row in rows]
    axis.plot([row["sites"] for row in rows], each, "o-", color=COLOURS[0])
    axis.set_xscale("log")
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("sites")
    axis.set_ylabel("CPU ms a round and site")


def performance_page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown of our own figures
    )
    environment.filters["to"] = format
    return environment.get_template("performance.md.jinja").render(
        result,
        names=NAMES,
        ways=WAYS,
        programs=PROGRAMS,
        missed=sum(not row["met"] for row in result["targets"]),
        compared=_compared(result["steps"]),
        floors=_floors(result),
        first_day=_first_day(result["images"]),
        predict_parts=sorted(result["starting"]["predict_parts"].items(), key=lambda pair: -pair[1]),
        profile_parts=_profile_parts(result["profile"]),
    )


def _compared(steps: Mapping[str, Any]) -> list[list[str]]:
    """Every contestant's ratios and seconds with ten and a hundred classes."""
    rows = []
    for name, label in NAMES.items():
        found = [steps.get(classes, {}).get(name) for classes in ("10", "100")]
        if any(found):
            rows.append([label, *(cell for row in found for cell in _step(row))])
    return rows


def _step(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    low, high = row["ratio_range"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", f"{row['cpu_seconds']:.2f}"


def _floors(result: Mapping[str, Any]) -> list[list[str]]:
    """What a step of nothing but the products that no exact way can avoid would take."""
    rows = []
    for classes, steps in result["steps"].items():
        seconds = {name: row.get("cpu_seconds_of_whole_batch", row["cpu_seconds"]) for name, row in steps.items()}
        others = [seconds.get("published_replica"), seconds.get("naive", seconds.get("naive_part"))]
        for name in ("fast", "private"):
            least = steps[name]["flops"] / result["rate"]["chosen"]
            rows.append(
                [
                    f"{NAMES[name]}, {classes} classes",
                    f"{steps[name]['flops'] / 1e9:.0f}",
                    f"{100 * least / seconds[name]:.0f} %",
                    f"{least / seconds['shared_prefix']:.2f}",
                    *(f"{each / least:.0f}" if each and name == "private" else "" for each in others),
                ]
            )
    return rows


def _first_day(images: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Seconds an image by part: before, through transformers' own tower, and now."""
    ours, before = (images["ways"][way]["cpu_seconds_an_image"] for way in ("ours", "transformers"))
    decoding, preparing = images["decoding_an_image"], images["preparing_an_image"]
    return [
        ("decoding", decoding, decoding),
        ("preparing", preparing, preparing),
        ("tower, keys and cache", before - decoding - preparing, ours - decoding - preparing),
        ("**all**", before, ours),
    ]


def _profile_parts(profile: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Milliseconds of a round by part, the largest first."""
    shares = profile["before"]["shares"]
    return [
        (part, _milliseconds(profile["before"], part), _milliseconds(profile["after"], part))
        for part in sorted(shares, key=lambda part: -shares[part])
    ]


def _milliseconds(profile: Mapping[str, Any], part: str) -> float:
    return float(1e3 * profile["shares"][part] * profile["cpu_seconds_a_round"])
