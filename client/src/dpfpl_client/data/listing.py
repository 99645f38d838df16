"""What a source says it holds, before any pixel is read."""

from dataclasses import dataclass

from dpfpl_client.data.records import DataProblem, ImageSource

__all__ = ["Listing", "SourceItem"]


@dataclass(frozen=True)
class SourceItem:
    """One image of a source.

    Attributes:
        key: stable id inside the source, for messages at the site.
        label: as the source calls the class.
        split: ``train`` or ``test`` where the source says so, None where it is to be drawn.
        source: the pixels.
        question: what is asked about the image, where the data are questions; the label is then the right answer. Empty
            for a caption, which is such an answer too.
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
