"""The report's words in one language, with places for numbers and names."""

import string
import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any

from dpfpl_common.errors import ConfigError
from dpfpl_server.markup import Html, text
from dpfpl_server.plain_words import printable

__all__ = ["LANGUAGES", "Texts"]

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
