"""Divides examples into a training part and a held-back part by their content, so that the parts are disjoint for good.

An example is a picture with its label; where the data are questions, a picture with a question (a caption: a picture
with that caption). Its files or lines are its copies. The rules, which look at one example's own copies and at nothing
else:

1. A copy lies on the side that its source declares. Otherwise it is held back when a hash of (seed, digest) falls below
   ``test_fraction``: copies land on the same side, and sites with one seed agree.
2. If all copies agree on label and side, the example counts once, there. If they do not, it counts nowhere: a picture
   under two labels, a question with two answers, a copy in ``train/`` of what lies in ``test/``.

Why nowhere. Let S be the set of (label, side) that the copies of one picture name. It counts if S has exactly one
element. One file more adds at most one element: from none to one (the example appears, in one part), from one to two
(it disappears, from one part), or nothing happens. So one file more or less changes exactly one part by at most one
example and moves no other, which is what lets a release about the training part and one about the held-back part
compose in parallel. Any rule that let one side win would move an example across: two parts would change.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from dpfpl_client.data.records import DataProblem, ImageRecord, SourceItem, problem_per_name

__all__ = ["drawn_split", "split_items"]

_Copy = tuple[SourceItem, str]
"""A file or line of an example, and the side that it lies on."""


def split_items(
    digested: Sequence[tuple[SourceItem, str]],
    test_fraction: float,
    seed: int,
    viewpoint: str,
    *,
    in_words: bool = False,
) -> tuple[list[ImageRecord], list[DataProblem]]:
    """Make the records, ordered by key within train and then test.

    Args:
        digested: the images with their digests.
        test_fraction: the expected part of test among the images without a declared split.
        seed: of the drawn split.
        viewpoint: how the site sees the images; the split does not depend on it.
        in_words: the labels are answers to questions, or captions.
    """
    examples: defaultdict[tuple[str, str, str], list[_Copy]] = defaultdict(list)
    for item, digest in sorted(digested, key=lambda pair: pair[0].key):
        caption = item.label if in_words and not item.question else ""
        side = item.split or drawn_split(digest, test_fraction, seed)
        examples[digest, item.question, caption].append((item, side))
    records: list[ImageRecord] = []
    repeated: dict[str, str] = {}
    contradictory: dict[str, str] = {}
    across: dict[str, str] = {}
    for (digest, *_), copies in examples.items():
        labels, sides = sorted({item.label for item, _ in copies}), {side for _, side in copies}
        first, side = copies[0]
        if len(labels) > 1:  # two spellings of one answer as well: either would stand in the other's place
            named = " and ".join(repr(label) for label in labels)
            contradictory |= {item.key: f"copies of the picture are labelled {named}" for item, _ in copies}
        elif len(sides) > 1:
            across |= {item.key: f"a copy of it lies in {_other(side)}" for item, side in copies}
        else:
            records.append(ImageRecord(first.key, first.label, digest, side, first.source, viewpoint, first.question))
            repeated |= {item.key: f"it is the same picture as {first.key!r}" for item, _ in copies[1:]}
    records.sort(key=lambda record: (record.split != "train", record.key))
    return records, [
        *problem_per_name("DUPLICATE_ACROSS_SPLITS", across, "It is used on neither side; remove one of the copies."),
        *problem_per_name("DUPLICATE_IMAGE", repeated, "It counts once; remove the copy."),
        *problem_per_name("CONFLICTING_LABELS", contradictory, "Keep the copy whose label is right."),
    ]


def drawn_split(digest: str, test_fraction: float, seed: int) -> str:
    """The side of a picture whose source declares none."""
    draw = int.from_bytes(hashlib.sha256(f"dpfpl split {seed} {digest}".encode()).digest()[:8])
    return "test" if draw < test_fraction * 2**64 else "train"


def _other(side: str) -> str:
    return "test" if side == "train" else "train"
