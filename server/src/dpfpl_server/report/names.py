"""What the keys of a result are called in the report's language; unknown ones keep their own text."""

from collections.abc import Mapping
from typing import Any

from dpfpl_server.markup import Html, text
from dpfpl_server.report.texts import Texts

__all__ = ["floor_meaning", "floor_name", "transport_name", "unit_name", "unit_short", "who"]

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
