"""The pictures of ``docs/performance.md``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["write_plots"]

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")


def write_plots(result: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> None:
    """Write steps.svg, round.svg and simulation.svg.

    Args:
        result: what bench.json holds.
        names: the contestants, in the order of the page.
        folder: made if missing.
    """
    import matplotlib as mpl  # seconds; nothing else needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, draw in (
        ("steps", (8, 4.2), lambda axis: _steps(axis, result["steps"], names)),
        ("round", (8, 2.2), lambda axis: _round(axis, result["profile"])),
        ("simulation", (8, 2.6), lambda axis: _simulation(axis, result["simulation"])),
    ):
        _save(folder / f"{name}.svg", size, draw)


def _save(path: Path, size: tuple[float, float], draw: Any) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=size, layout="constrained")
    draw(axis)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _steps(axis: Any, steps: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Bars of CPU time over D for every contestant."""
    shown = [name for name in names if any(name in rows for rows in steps.values())]
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


def _round(axis: Any, profile: Mapping[str, Any]) -> None:
    """Two bars, before and after, of the parts of a round."""
    left = [0.0, 0.0]
    whole = [profile["before"], profile["after"]]
    for number, part in enumerate(whole[0]["shares"]):
        widths = [1e3 * one["shares"][part] * one["cpu_seconds_a_round"] for one in whole]
        axis.barh(["before", "after"], widths, left=left, color=COLOURS[number % len(COLOURS)], label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("CPU ms a round")
    axis.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.3))


def _simulation(axis: Any, rows: Any) -> None:
    """CPU time of one site's share of a round, by the number of sites."""
    axis.plot(
        [r["sites"] for r in rows], [r["cpu_milliseconds_a_round_and_site"] for r in rows], "o-", color=COLOURS[0]
    )
    axis.set_xscale("log")
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("sites")
    axis.set_ylabel("CPU ms a round and site")
