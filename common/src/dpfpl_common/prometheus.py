"""The Prometheus text format, written by hand: a few lines, and no dependency on either side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CONTENT_TYPE", "Family", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True)
class Family:
    """One metric with all its samples.

    Attributes:
        name: snake case with its unit, ``_total`` at the end of a counter.
        kind: ``gauge`` or ``counter``.
        help: one sentence.
        samples: labels and value; none leaves the metric out.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> str:
    """The exposition of these metrics, format 0.0.4."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    shown = ",".join('{}="{}"'.format(key, _escaped(value).replace('"', '\\"')) for key, value in labels.items())
    return f"{{{shown}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
