"""Translates a source's labels to the experiment's class names, and skips what the experiment does not know."""

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dpfpl_client.data.listing import SourceItem
from dpfpl_client.data.records import DataProblem
from dpfpl_common.errors import ConfigError, DataError

__all__ = ["check_class_names", "map_labels", "select_known"]

_LISTED = 20


def map_labels(items: Sequence[SourceItem], class_map: Mapping[str, str]) -> tuple[list[SourceItem], list[DataProblem]]:
    """Apply the class map; a line of it that fits no label of the source is a warning.

    Names are compared in Unicode's composed form, since some systems store folder names decomposed.
    """
    mapping = {_composed(own): name for own, name in class_map.items()}
    found = {_composed(item.label) for item in items}
    mapped = [replace(item, label=mapping.get(_composed(item.label), item.label)) for item in items]
    unused = [own for own in class_map if _composed(own) not in found]
    problems = [
        DataProblem(
            "CLASS_MAP_UNUSED",
            "warning",
            f"class_map names {own!r}, but the data have no such class. Correct or remove the line.",
        )
        for own in unused
    ]
    return mapped, problems


def select_known(items: Sequence[SourceItem], class_names: Sequence[str]) -> tuple[list[SourceItem], list[DataProblem]]:
    """Keep the images whose class the experiment knows, spelled as the experiment spells it.

    Raises:
        DataError: none is left.
    """
    spelled = {_composed(name): name for name in class_names}
    known = [replace(item, label=spelled[_composed(item.label)]) for item in items if _composed(item.label) in spelled]
    unknown = Counter(item.label for item in items if _composed(item.label) not in spelled)
    if items and not known:
        raise DataError(
            code="NO_KNOWN_CLASS",
            message=f"None of the data's classes ({_listed(sorted(unknown))}) is a class of the experiment "
            f"({_listed(list(class_names))}).",
            advice=_map_advice(sorted(unknown), class_names),
        )
    if not unknown:
        return known, []
    counts = [f"{label!r} ({count})" for label, count in sorted(unknown.items())]
    message = f"Images are skipped, the experiment does not know their class: {_shortened(counts)}. "
    return known, [DataProblem("UNKNOWN_CLASS", "warning", message + _map_advice(sorted(unknown), class_names))]


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse a class list that is empty or names a class twice."""
    if isinstance(class_names, str) or not class_names:
        raise ConfigError(
            code="WRONG_VALUE", message=f"class_names is {class_names!r}.", advice="Expected a list of class names."
        )
    twice = [name for name, count in Counter(_composed(name) for name in class_names).items() if count > 1]
    if twice:
        raise ConfigError(
            code="WRONG_VALUE", message=f"class_names has {twice[0]!r} twice.", advice="Name every class once."
        )


def _map_advice(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """The lines of the class map that would make the labels known, with the nearest names as a guess."""
    lines = [f"{json.dumps(label, ensure_ascii=False)} = {_guess(label, class_names)}" for label in unknown[:_LISTED]]
    return (
        "If they are the experiment's classes under other names, write in site.toml (checking each name): "
        f"[data] class_map = {{ {', '.join(lines)} }}"
    )


def _guess(label: str, class_names: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in class_names}
    close = difflib.get_close_matches(label.lower(), list(lowered), n=1)
    return json.dumps(lowered[close[0]] if close else "A CLASS OF THE EXPERIMENT", ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return _shortened([repr(name) for name in names])


def _shortened(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
