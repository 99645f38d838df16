"""Numbers on the page: each is computed from a formula over result.json and carries that formula with it.

``figures.percent("sites[0].local")`` gives ``<data value="0.984..." data-from="sites[0].local">98.5 %</data>``, so
whoever doubts a number finds where it comes from, and a test follows every one.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from dpfpl_server.report.formulas import evaluate
from dpfpl_server.report.markup import Html, text
from dpfpl_server.report.texts import Texts
from dpfpl_server.runs.words import DASH, bytes_text, epsilon_text, exact

__all__ = ["Figures", "is_loose", "key_path"]

NO_BREAK_SPACE = "\u00a0"
NEARLY_CERTAIN = 0.95


def key_path(root: str, key: str) -> str:
    """The formula for ``root[key]``, for a key from outside."""
    return f"{root}[{json.dumps(key, ensure_ascii=False)}]"


class Figures:
    """Formats what formulas over a result give, in one language.

    Args:
        values: result.json, and beside its keys ``roi`` and ``stopped_after`` where they were computed.
        texts: the language.
    """

    def __init__(self, values: Mapping[str, Any], texts: Texts) -> None:
        self.values = values
        self.texts = texts

    def of(self, formula: str) -> Any:
        """The formula's value; None where something is missing."""
        return evaluate(formula, self.values)

    def percent(self, formula: str) -> Html:
        """A share of one as "71.3 %"."""
        return self._data(formula, lambda value: self.texts.plain("format.percent", n=f"{100 * value:.1f}"))

    def bare_percent(self, formula: str) -> Html:
        """A share of one as "71.3", where the head of the column says percent."""
        return self._data(formula, lambda value: f"{100 * value:.1f}")

    def points(self, formula: str) -> Html:
        """A difference of two shares in percentage points, "+17.3"."""
        return self._data(formula, lambda value: f"{100 * value:+.1f}")

    def number(self, formula: str, digits: int = 0) -> Html:
        """A number with thousands separated."""
        return self._data(formula, lambda value: f"{value:,.{digits}f}")

    def money(self, formula: str) -> Html:
        """An amount, in whole units from a hundred on."""
        return self._data(formula, lambda value: f"{value:,.{0 if value == 0 or abs(value) >= 100 else 2}f}")

    def exact(self, formula: str) -> Html:
        """A setting as it is."""
        return self._data(formula, exact)

    def epsilon(self, formula: str) -> Html:
        """An epsilon, rounded up; infinite as the sign."""
        return self._data(formula, lambda value: "∞" if value == "infinite" else epsilon_text(value))

    def certainty(self, formula: str) -> Html:
        """A certainty in percent, rounded up; from a millionth below one on it is 100."""
        return self._data(formula, lambda value: self.texts.plain("format.percent", n=_certainty(value)))

    def one_in(self, formula: str) -> Html:
        """A small probability as "1 in 100,000", the number rounded down."""
        return self._data(
            formula, lambda value: self.texts.plain("format.one_in", n=self.texts.whole(math.floor(1 / value + 1e-6)))
        )

    def seconds(self, formula: str) -> Html:
        """A duration."""
        return self._data(formula, self._duration)

    def bytes(self, formula: str) -> Html:
        """A number of bytes."""
        return self._data(formula, bytes_text)

    def energy(self, formula: str) -> Html:
        """Watt hours."""
        return self._data(formula, lambda value: self.texts.plain("format.energy", n=f"{value:,.2f}"))

    def count(self, thing: str, formula: str) -> Html:
        """An amount of things: "3 rounds"."""
        return self.texts.count(thing, self.of(formula), self.number(formula))

    def _duration(self, seconds: float) -> str:
        if seconds < 60:
            return self.texts.plain("format.seconds", n=f"{seconds:.1f}")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return self.texts.plain("format.hours", h=hours, m=f"{minutes:02d}")
        return self.texts.plain("format.minutes", m=minutes, s=f"{rest:02d}")

    def _data(self, formula: str, shown: Callable[[Any], str]) -> Html:
        value = self.of(formula)
        if value is None:
            missing = text(self.texts.plain("format.not_available"))
            return Html(f'<data value="" data-from="{text(formula)}"><abbr title="{missing}">{DASH}</abbr></data>')
        unbroken = text(shown(value)).replace(" ", NO_BREAK_SPACE)
        return Html(f'<data value="{text(json.dumps(value))}" data-from="{text(formula)}">{unbroken}</data>')


def is_loose(figures: Figures, formula: str) -> bool:
    """Whether an epsilon by itself no longer excludes that somebody becomes nearly certain (from about 2.95 on)."""
    return figures.of(formula) != "infinite" and float(figures.of(f"posterior({formula})")) > NEARLY_CERTAIN


def _certainty(value: float) -> str:
    """Rounded up, finer near certainty: 0.881 is "88.1", 0.99966 is "99.967"."""
    if value > 1 - 1e-6:
        return "100"
    digits = 1 if value < 0.99 else -math.floor(math.log10(1 - value)) - 1
    return f"{math.ceil(100 * value * 10**digits) / 10**digits:.{digits}f}"
