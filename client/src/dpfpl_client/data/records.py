"""A site's labelled images, what is wrong with them, and their labels under the experiment's class names."""

import difflib
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

from PIL import Image

from dpfpl_client.data.decode import UnreadableImageError, pixel_digest
from dpfpl_common.errors import ConfigError, DataError

__all__ = [
    "VIEWPOINTS",
    "DataProblem",
    "ImageRecord",
    "ImageSource",
    "Listing",
    "SiteData",
    "SourceItem",
    "apply_viewpoint",
    "check_class_names",
    "left_out",
    "listed",
    "map_labels",
    "problem_per_name",
    "quoted",
    "select_known",
    "spelled_alike",
]


# How a site sees its images: the four viewpoints of the paper's Figure 1.


Viewpoint = Literal["upright", "upside_down", "rotated", "mirrored"]
VIEWPOINTS: tuple[Viewpoint, ...] = get_args(Viewpoint)

_TRANSPOSE = {
    "upside_down": Image.Transpose.ROTATE_180,
    "rotated": Image.Transpose.ROTATE_90,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
}


def apply_viewpoint(image: Image.Image, viewpoint: str) -> Image.Image:
    """Turn the image: by 180 degrees, by 90 counter-clockwise, mirrored left to right, or not at all."""
    return image if viewpoint == "upright" else image.transpose(_TRANSPOSE[viewpoint])


# What the rest of a site sees of its data: labelled images, and what an administrator should know about them.


MOST_NAMED = 20
"""So many names stand in one message, or in one message each."""


class ImageSource(Protocol):
    """Where an image's pixels come from; reading twice gives the same pixels."""

    def read(self) -> Image.Image:
        """Decode to RGB.

        Raises:
            UnreadableImageError: with the reason, without the name.
        """
        ...


@dataclass(frozen=True)
class ImageRecord:
    """One labelled image, decoded only when it is opened.

    Attributes:
        key: stable id inside its source (a relative path, ``digits/17``); never leaves the site.
        label: the class name as the experiment knows it.
        digest: sha256 of the decoded pixels and their size, before the viewpoint: a renamed or losslessly re-encoded
            copy has the same digest, a turned one as well.
        split: ``train`` or ``test``.
        source: where the pixels come from.
        viewpoint: how the site sees the image (see :mod:`dpfpl_client.data.records`).
        question: what is asked about the image, where the data are questions; the label is then the right answer. Empty
            for a caption, which is such an answer too.
    """

    key: str
    label: str
    digest: str
    split: str
    source: ImageSource = field(repr=False, compare=False)
    viewpoint: str = "upright"
    question: str = ""

    def open(self) -> Image.Image:
        """Decode the image to RGB and turn it to the viewpoint.

        Raises:
            DataError: the file is gone or damaged, or holds other pixels than when it was split and counted; training
                on those would be training on something that the split and the manifest do not describe.
        """
        try:
            image = self.source.read()
        except UnreadableImageError as error:
            raise DataError(
                code="IMAGE_UNREADABLE",
                message=f"The image {self.key!r} can no longer be read: {error}.",
                advice="Restore the file, or start again without it.",
            ) from None
        if pixel_digest(image) != self.digest:
            raise DataError(
                code="IMAGE_CHANGED",
                message=f"The image {self.key!r} changed after the data set was read.",
                advice="Leave the data folder alone while an experiment runs; start again to use the new image.",
            )
        return apply_viewpoint(image, self.viewpoint)


@dataclass(frozen=True)
class DataProblem:
    """A warning for a site's administrator; it stays at the site.

    Attributes:
        code: stable, for scripts (``CORRUPT_IMAGE``).
        message: names the file or class, and says what to do.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


@dataclass(frozen=True)
class SiteData:
    """The images of one site.

    Attributes:
        train: what the site trains on.
        test: held-back images; of a simulated site only those of the classes that it trains on ("local").
        neighbour_test: of a simulated site, test images of the other sites or of classes that it does not train on.
        classes: the classes of ``train``, in the experiment's order.
        problems: what was skipped, and what looks wrong.
        unreadable: keys of the images of the source, not only of this site's part, that cannot be read.
    """

    train: tuple[ImageRecord, ...]
    test: tuple[ImageRecord, ...]
    neighbour_test: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    problems: tuple[DataProblem, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def manifest_digest(self) -> str:
        """The training set's identity: sha256 over the sorted (digest, label, question), whatever the files' names."""
        lines = sorted(
            f"{record.digest} {record.label}\n" + (f"{record.question}\n" if record.question else "")
            for record in self.train
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def problem_per_name(code: str, reasons: dict[str, str], advice: str) -> list[DataProblem]:
    """One warning for each name, with its reason, and one for the rest when there are many."""
    named = list(reasons.items())[:MOST_NAMED]
    problems = [DataProblem(code, f"{name!r} is skipped: {reason}. {advice}") for name, reason in named]
    if len(reasons) > MOST_NAMED:
        problems.append(DataProblem(code, f"{len(reasons) - MOST_NAMED} more are skipped as well. {advice}"))
    return problems


def listed(texts: Sequence[str], most: int = MOST_NAMED, what: str = "more") -> str:
    """The first of them, separated by commas, and how many more there are."""
    more = f" and {len(texts) - most} {what}" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def quoted(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """As :func:`listed`, each name in quotes."""
    return listed([repr(name) for name in names], most)


# What a source says it holds, before any pixel is read.


@dataclass(frozen=True)
class SourceItem:
    """One image of a source.

    Attributes:
        key: stable id inside the source, for messages at the site.
        label: as the source calls the class.
        split: ``train`` or ``test`` where the source says so, None where it is to be drawn.
        source: the pixels.
        question: as of :class:`ImageRecord`.
    """

    key: str
    label: str
    split: str | None
    source: ImageSource
    question: str = ""


@dataclass(frozen=True)
class Listing:
    """All images of a source, in a stable order, and what is wrong with the source itself."""

    items: tuple[SourceItem, ...]
    problems: tuple[DataProblem, ...] = ()


def map_labels(items: Sequence[SourceItem], class_map: Mapping[str, str]) -> tuple[list[SourceItem], list[DataProblem]]:
    """Apply the class map; a line of it that fits no label of the source is a warning.

    Names are compared in Unicode's composed form, since some systems store folder names decomposed.
    """
    mapping = {_composed(own): name for own, name in class_map.items()}
    found = {_composed(item.label) for item in items}
    mapped = [replace(item, label=_composed(mapping.get(_composed(item.label), item.label))) for item in items]
    unused = [own for own in class_map if _composed(own) not in found]
    text = "but the data have no such class. Correct or remove the line."
    return mapped, [DataProblem("CLASS_MAP_UNUSED", f"class_map names {own!r}, {text}") for own in unused]


def select_known(items: Sequence[SourceItem], class_names: Sequence[str]) -> tuple[list[SourceItem], list[DataProblem]]:
    """Keep the images whose class the experiment knows, spelled as the experiment spells it.

    Raises:
        DataError: none is left.
    """
    spelled = {_composed(name): name for name in class_names}
    known = [replace(item, label=spelled[_composed(item.label)]) for item in items if _composed(item.label) in spelled]
    if items and not known:
        unknown = sorted({item.label for item in items})
        raise DataError(
            code="NO_KNOWN_CLASS",
            message=f"None of the data's classes ({quoted(unknown)}) is a class of the experiment "
            f"({quoted(class_names)}).",
            advice=_map_advice(unknown, class_names),
        )
    problem = left_out(Counter(item.label for item in items), class_names)
    return known, [problem] if problem is not None else []


def left_out(counts: Mapping[str, int], class_names: Sequence[str], images: str = "images") -> DataProblem | None:
    """A warning that names the classes that an experiment does not know, or None if it knows all of them.

    Args:
        counts: images by class, as the site calls it after the class map.
        class_names: the experiment's.
        images: what is counted.
    """
    known = {_composed(name) for name in class_names}
    unknown = {label: count for label, count in sorted(counts.items()) if _composed(label) not in known and count}
    if not unknown:
        return None
    named = listed([f"{label!r} ({count})" for label, count in unknown.items()])
    text = f"{sum(unknown.values())} of {sum(counts.values())} {images} are left out, the experiment does not know"
    return DataProblem("UNKNOWN_CLASS", f"{text} their class: {named}. {_map_advice(list(unknown), class_names)}")


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


def spelled_alike(class_names: Sequence[str]) -> tuple[str, ...]:
    """The first classes that differ in capital letters, blanks, underscores or hyphens alone; empty if none do."""
    for name in class_names:
        same = tuple(other for other in class_names if _letters(other) == _letters(name))
        if len(same) > 1:
            return same
    return ()


def _map_advice(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """The lines of the class map that would make the labels known, with the nearest names as a guess."""
    lines = [f"{_toml(label)} = {_toml(_guess(label, class_names))}" for label in unknown[:MOST_NAMED]]
    same = [label for label in unknown if _same_but_for_spelling(label, class_names)]
    spelled = (
        f"{quoted(same)} {'differs' if len(same) == 1 else 'differ'} from a class of the experiment in capital "
        "letters, blanks or underscores alone. "
        if same
        else ""
    )
    return (
        f"{spelled}If they are the experiment's classes under other names, write in site.toml (checking each name): "
        f"[data] class_map = {{ {', '.join(lines)} }}"
    )


def _guess(label: str, class_names: Sequence[str]) -> str:
    name = _same_but_for_spelling(label, class_names)
    if not name:
        lowered = {name.lower(): name for name in class_names}
        close = difflib.get_close_matches(label.lower(), list(lowered), n=1)
        name = lowered[close[0]] if close else "A CLASS OF THE EXPERIMENT"
    return name


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _same_but_for_spelling(label: str, class_names: Sequence[str]) -> str:
    """The one class that the label is but for capital letters, blanks, underscores and hyphens; empty if none is."""
    same = [name for name in class_names if _letters(name) == _letters(label)]
    return same[0] if len(same) == 1 else ""


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]+", "", _composed(name).casefold())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
