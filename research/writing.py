"""What the measurements share in writing: tables in Markdown, one look of pictures, and results that are made once."""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpfpl_common.ops.files import write_durably

__all__ = ["deviation", "kept", "markdown", "panels", "picture", "points", "spread", "table", "told_apart"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = tuple(head)
    return "\n".join([_line(head), "|---" * len(head) + "|", *map(_line, rows)])


def markdown(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The same of figures by name; each column has a head and a format, as in ``{"CPU s": "{cpu_seconds:.2f}"}``."""
    return table(columns, ([shown.format(**row) for shown in columns.values()] for row in rows))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Mean and deviation of ``scale`` times the values."""
    return f"{scale * statistics.mean(values):.1f} ± {scale * deviation(values):.1f}" if values else "-"


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file holds; it is made first where it is missing, so that what was broken off goes on."""
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, (json.dumps(made, indent=2) + "\n").encode(), 0o644)
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of ``size`` in inches; it is written to ``path`` as SVG, the same for the same figures."""
    import matplotlib as mpl  # seconds; only pictures need it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dpfpl"
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def panels(figure: Any, count: int, columns: int, **options: Any) -> list[Any]:
    """So many axes with a grid, in rows of ``columns``."""
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(color="#dddddd", linewidth=0.6)
    return axes[:count]


def points(axis: Any, places: Sequence[float], lines: Sequence[tuple[float, float]], **style: Any) -> None:
    """A curve through (mean, deviation) at the places."""
    means, bars = zip(*lines, strict=True) if lines else ((), ())
    axis.errorbar(places, means, bars, capsize=2, **{"marker": "o", "markersize": 3, **style})


def told_apart(figure: Any, axis: Any, **options: Any) -> None:
    """The legend of one axis, below all of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", frameon=False, **options)
