"""What the keys of a result are called in the report's language; unknown ones keep their own text."""

import string
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from dpfpl_common.errors import ConfigError
from dpfpl_common.ops.text import printable
from dpfpl_server.report.markup import Html, text

__all__ = ["LANGUAGES", "Texts", "floor_meaning", "floor_name", "transport_name", "unit_name", "unit_short", "who"]


# The report's words in one language, with places for numbers and names.


LANGUAGES = ("en", "ja")
OWN_WORDS = ("vqa", "caption")


class Texts:
    """The words of one language: ``texts("answer.gain", sites=...)``.

    Args:
        language: "en" or "ja".
        task: of the experiment; where answers are words, some texts are others. An unknown one reads as classify.

    Attributes:
        language: as given.
        in_words: whether the texts are about answers in words, not about classes.
        is_share: whether what is measured is a share of right answers.
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
        self._texts = _read(language, task if self.in_words else "")

    def __call__(self, key: str, **values: object) -> Html:
        """The text as HTML; whatever is put in is escaped unless it is a finished piece."""
        return Html(self._filled(key, lambda value: text(str(value) if not isinstance(value, str) else value), values))

    def plain(self, key: str, **values: object) -> str:
        """The text without markup, for attributes and drawings, which escape it themselves."""
        return self._filled(key, printable, values)

    def optional(self, section: str, key: str) -> str | None:
        """A text that is looked up by a name from outside, or None where there is none."""
        found = self._texts[section].get(key)
        return found if isinstance(found, str) else None

    def count(self, thing: str, number: object, shown: object) -> Html:
        """An amount of things: "3 rounds"."""
        return self(f"format.count_{thing}{'_one' if number == 1 else ''}", n=shown)

    def listed(self, parts: "list[Html]") -> Html:
        """Several pieces in one phrase."""
        if len(parts) < 2:
            return Html("".join(parts))
        return Html(
            text(self._texts["format"]["list_comma"]).join(parts[:-1])
            + text(self._texts["format"]["list_and"])
            + parts[-1]
        )

    @property
    def space(self) -> str:
        """What stands between two sentences."""
        return "" if self.language == "ja" else " "

    def whole(self, number: int) -> str:
        """A whole number with its thousands separated, in Japanese in units of ten thousand where it is round."""
        if self.language == "ja" and number % 10_000 == 0:
            return f"{number // 10_000:,} 万"
        return f"{number:,}"

    def _filled(self, key: str, shown: Any, values: dict[str, object]) -> str:
        section, _, name = key.partition(".")
        parts = []
        for literal, field, _, _ in string.Formatter().parse(self._texts[section][name]):
            parts.append(shown(literal))
            if field is not None:
                parts.append(shown(values[field]))
        return "".join(parts)


@lru_cache
def _read(language: str, task: str) -> dict[str, dict[str, str]]:
    texts = _file(f"texts_{language}.toml")
    others = _file(f"texts_{language}_{task}.toml") if task else {}
    return {section: {**table, **others.get(section, {})} for section, table in texts.items()}


def _file(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("dpfpl_server.report").joinpath(name).read_text(encoding="utf-8"))


ADVERSARIES = {"prompt_recipient": "recipient", "other_site": "other_site", "operator": "operator"}
Result = Mapping[str, Any]


def floor_name(texts: Texts, key: str) -> Html:
    """What a comparison is called."""
    return text_or(texts.optional("floors", key) if not key.endswith("_meaning") else None, key)


def floor_meaning(texts: Texts, key: str) -> Html:
    """What a comparison is; empty if it is unknown."""
    return text_or(texts.optional("floors", f"{key}_meaning"), "")


def transport_name(texts: Texts, key: str) -> Html:
    """How the run was carried out."""
    return text_or(texts.optional("transport", key.removesuffix("+tls")), key)


def who(texts: Texts, entry: Mapping[str, Any], *, short: bool = False) -> Html:
    """The adversary of an entry of ``privacy.epsilons``, as a sentence begins with it or, short, within one."""
    key = ADVERSARIES.get(entry["adversary"])
    known = texts.optional("left", f"{key}_short" if short else key) if key else None
    return text_or(known, str(entry.get("who", entry["adversary"])))


def unit_name(texts: Texts, result: Result, *, brief: bool = False) -> Html:
    """What the epsilons protect, as a definition or, brief, within a sentence."""
    entries = result["privacy"]["epsilons"]
    given = str(entries[0]["unit"]) if entries else ""
    unit = result["config"].get("privacy", {}).get("unit", "example")
    known = texts.optional("left", f"{'brief' if brief else 'unit'}_{unit}")
    english = Texts("en").optional("left", f"unit_{unit}")  # what the accountant writes, whatever the task
    return text_or(known if given == english else None, given)


def unit_short(texts: Texts, result: Result) -> Html:
    """What the epsilons protect, as a thing that somebody could ask about."""
    unit = result["config"].get("privacy", {}).get("unit", "example")
    return text_or(texts.optional("left", f"short_{unit}"), str(unit))


def text_or(known: str | None, otherwise: str) -> Html:
    """The known text, or the other, escaped."""
    return Html(text(otherwise if known is None else known))
