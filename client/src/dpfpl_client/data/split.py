"""Divides images into train and test by their content, so that no picture is ever on both sides.

The rules, in order:

1. An image keeps the split that its source declares. Otherwise it goes to test when a hash of (seed, digest) falls
   below ``test_fraction``: copies land on the same side, adding images moves no other, and sites with one seed agree.
2. Of several copies of one picture in a split, one is kept: a picture stored twice would otherwise weigh twice in
   training, where the privacy of "one example" covers it once. If the copies carry different labels, none is kept.
   Where the data are questions, only copies that are asked the same question are copies; captions, that say the same.
3. A test image whose picture occurs in train is dropped.

Adding or removing one training example changes what is kept by at most one example, and test never influences train.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from dpfpl_client.data.records import DataProblem, ImageRecord, SourceItem, problem_per_name

__all__ = ["drawn_split", "split_items"]

_Digested = tuple[SourceItem, str]


def split_items(
    digested: Sequence[_Digested], test_fraction: float, seed: int, viewpoint: str, *, in_words: bool = False
) -> tuple[list[ImageRecord], list[DataProblem]]:
    """Make the records, ordered by key within train and then test.

    Args:
        digested: the images with their digests.
        test_fraction: the expected part of test among the images without a declared split.
        seed: of the drawn split.
        viewpoint: how the site sees the images; the split does not depend on it.
        in_words: the labels are answers to questions, or captions.
    """
    sides: dict[str, list[_Digested]] = {"train": [], "test": []}
    for item, digest in digested:
        sides[item.split or drawn_split(digest, test_fraction, seed)].append((item, digest))
    in_train = {digest for _, digest in sides["train"]}
    leaks = {item.key: "the same picture is a training image" for item, digest in sides["test"] if digest in in_train}
    sides["test"] = [(item, digest) for item, digest in sides["test"] if digest not in in_train]
    problems = problem_per_name(
        "DUPLICATE_ACROSS_SPLITS", leaks, "A test on training images says nothing; remove the copy."
    )
    records: list[ImageRecord] = []
    for split, side in sides.items():
        kept, found = _without_copies(side, in_words=in_words)
        problems += found
        records += [
            ImageRecord(item.key, item.label, digest, split, item.source, viewpoint, item.question)
            for item, digest in kept
        ]
    return records, problems


def drawn_split(digest: str, test_fraction: float, seed: int) -> str:
    """The side of a picture whose source declares none."""
    draw = int.from_bytes(hashlib.sha256(f"dpfpl split {seed} {digest}".encode()).digest()[:8])
    return "test" if draw < test_fraction * 2**64 else "train"


def _without_copies(side: Sequence[_Digested], *, in_words: bool) -> tuple[list[_Digested], list[DataProblem]]:
    copies: defaultdict[tuple[str, str, str], list[SourceItem]] = defaultdict(list)
    for item, digest in sorted(side, key=lambda pair: pair[0].key):
        caption = item.label if in_words and not item.question else ""
        copies[digest, item.question, caption].append(item)
    kept: list[_Digested] = []
    repeated: dict[str, str] = {}
    contradictory: dict[str, str] = {}
    for (digest, *_), (first, *others) in copies.items():
        labels = sorted({first.label, *(item.label for item in others)})
        if len(labels) > 1:  # two spellings of one answer as well: either would stand in the other's place
            named = " and ".join(repr(label) for label in labels)
            contradictory |= {item.key: f"copies of the picture are labelled {named}" for item in (first, *others)}
        else:
            kept.append((first, digest))
            repeated |= {item.key: f"it is the same picture as {first.key!r}" for item in others}
    problems = problem_per_name("DUPLICATE_IMAGE", repeated, "It counts once; remove the copy.")
    problems += problem_per_name("CONFLICTING_LABELS", contradictory, "Keep the copy whose label is right.")
    return kept, problems
