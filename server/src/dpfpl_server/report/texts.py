"""The report's words and numbers in one language; texts_en.toml and texts_ja.toml hold every word."""

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.text import printable
from dpfpl_server.runs.words import DASH, bytes_text, epsilon_text, exact

__all__ = ["FILTERS", "LANGUAGES", "OWN_WORDS", "Texts"]

LANGUAGES = ("en", "ja")
OWN_WORDS = ("vqa", "caption")
"""Tasks whose answers are words: their sections of the files replace texts about classes."""

FILTERS = (
    "percent", "bare", "points", "number", "money", "exact", "epsilon", "certainty", "one_in", "seconds", "bytes",
    "energy", "day",
)  # fmt: skip
"""The methods of ``Texts`` that show a number."""


class Texts:
    """The words of one language, ``texts("answer.gain", sites=...)``, and its way to write numbers.

    A number is shown as ``<data value="0.984...">98.5 %</data>``, with its exact value; None as a dash.

    Args:
        language: "en" or "ja".
        task: of the experiment; where answers are words, some texts are others. An unknown one reads as classify.

    Attributes:
        language: as given.
        in_words: whether the texts are about answers in words, not about classes.
        is_share: whether what is measured is a share of right answers.
        space: what stands between two sentences.
    """

    def __init__(self, language: str, task: str = "classify") -> None:
        if language not in LANGUAGES:
            raise ConfigError(
                code="UNKNOWN_LANGUAGE",
                message=f"The report is not written in {language!r}.",
                advice=f"Known: {', '.join(LANGUAGES)}.",
            )
        self.language = language
        self.in_words, self.is_share = task in OWN_WORDS, task != "caption"
        self.space = "" if language == "ja" else " "
        self._texts = _read(language, task if self.in_words else "")

    def __call__(self, key: str, **values: object) -> Markup:
        """The text as HTML; whatever is put in is escaped unless it is a finished piece."""
        section, _, name = key.partition(".")
        shown = {name: value if isinstance(value, Markup) else printable(value) for name, value in values.items()}
        return escape(self._texts[section][name]).format(**shown)

    def word(self, key: str, otherwise: object) -> Markup:
        """A text that is looked up by a name from outside, or else that name itself."""
        section, _, name = key.partition(".")
        return escape(self._texts[section].get(name, printable(otherwise)))

    def count(self, thing: str, number: int) -> Markup:
        """An amount of things: "3 rounds"."""
        return self(f"format.count_{thing}{'_one' if number == 1 else ''}", n=self.number(number))

    def listed(self, parts: Sequence[object]) -> Markup:
        """Several pieces in one phrase."""
        pieces = [part if isinstance(part, Markup) else escape(printable(part)) for part in parts]
        last = [self("format.list_and").join(pieces[-2:])] if len(pieces) > 1 else pieces
        return self("format.list_comma").join([*pieces[:-2], *last])

    def percent(self, value: float | None) -> Markup:
        """A share of one as "71.3 %"."""
        return self._data(value, lambda v: self("format.percent", n=f"{100 * v:.1f}"))

    def bare(self, value: float | None) -> Markup:
        """A share of one as "71.3", where the head of the column says percent."""
        return self._data(value, lambda v: f"{100 * v:.1f}")

    def points(self, value: float | None) -> Markup:
        """A difference of two shares in percentage points, "+17.3"."""
        return self._data(value, lambda v: f"{100 * v:+.1f}")

    def number(self, value: float | None, digits: int = 0) -> Markup:
        """A number with thousands separated."""
        return self._data(value, lambda v: f"{v:,.{digits}f}")

    def money(self, value: float | None) -> Markup:
        """An amount, in whole units from a hundred on."""
        return self._data(value, lambda v: f"{v:,.{0 if v == 0 or abs(v) >= 100 else 2}f}")

    def exact(self, value: Any) -> Markup:
        """A setting as it is."""
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        return self._data(value, exact) if number else escape(printable(value))

    def epsilon(self, value: float | str | None) -> Markup:
        """An epsilon, rounded up; infinite as the sign."""
        return self._data(value, lambda v: "∞" if v == "infinite" else epsilon_text(v))

    def certainty(self, value: float | None) -> Markup:
        """A certainty in percent, rounded up, finer near one; from a millionth below one on it is 100."""

        def shown(v: float) -> str:
            if v > 1 - 1e-6:
                return "100"
            digits = 1 if v < 0.99 else -math.floor(math.log10(1 - v)) - 1
            return f"{math.ceil(100 * v * 10**digits) / 10**digits:.{digits}f}"

        return self._data(value, lambda v: self("format.percent", n=shown(v)))

    def one_in(self, value: float | None) -> Markup:
        """A small probability as "1 in 100,000", the number rounded down, in Japanese in units of ten thousand."""

        def shown(v: float) -> str:
            whole = math.floor(1 / v + 1e-6)
            return f"{whole // 10_000:,} 万" if self.language == "ja" and whole % 10_000 == 0 else f"{whole:,}"

        return self._data(value, lambda v: self("format.one_in", n=shown(v)))

    def seconds(self, value: float | None) -> Markup:
        """A duration."""

        def shown(v: float) -> str:
            if v < 60:
                return self("format.seconds", n=f"{v:.1f}")
            minutes, rest = divmod(round(v), 60)
            hours, minutes = divmod(minutes, 60)
            if hours:
                return self("format.hours", h=hours, m=f"{minutes:02d}")
            return self("format.minutes", m=minutes, s=f"{rest:02d}")

        return self._data(value, shown)

    def bytes(self, value: float | None) -> Markup:
        """A number of bytes."""
        return self._data(value, bytes_text)

    def energy(self, value: float | None) -> Markup:
        """Watt hours."""
        return self._data(value, lambda v: self("format.energy", n=f"{v:,.2f}"))

    def day(self, value: str) -> Markup:
        """A date of result.json, 2026-11-29."""
        year, month, day = (int(part) for part in value.split("-"))
        return self._data(value, lambda _: f"{year}年{month}月{day}日" if self.language == "ja" else value)

    def _data(self, value: Any, shown: Callable[[Any], str]) -> Markup:
        if value is None:
            return Markup('<abbr title="{}">{}</abbr>').format(self("format.not_available"), DASH)
        unbroken = escape(shown(value)).replace(" ", "\u00a0")
        return Markup('<data value="{}">{}</data>').format(json.dumps(value), unbroken)


@lru_cache
def _read(language: str, task: str) -> dict[str, dict[str, str]]:
    text = resources.files("dpfpl_server.report").joinpath(f"texts_{language}.toml").read_text(encoding="utf-8")
    texts: dict[str, Any] = tomllib.loads(text)
    others = {name: texts.pop(name) for name in OWN_WORDS}
    if task:
        for section, table in others[task].items():
            texts[section] = texts[section] | table
    return texts
