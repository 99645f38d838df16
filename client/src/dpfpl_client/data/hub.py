"""Lists a data set of the Hugging Face hub, or a local folder in its format, through the ``datasets`` package."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dpfpl_client.data.decode import DEFAULT_RULES, Picture, PixelRules, UnreadableImageError, decode_picture
from dpfpl_client.data.folder_names import role_of
from dpfpl_client.data.records import DataProblem, Listing, SourceItem, problem_per_name
from dpfpl_common.errors import DataError

__all__ = ["choose_splits", "list_hub"]


@dataclass(frozen=True, eq=False)
class HubImage:
    """One row's image; its encoded bytes stay in the memory-mapped table until they are read."""

    table: Any
    column: str
    row: int
    rules: PixelRules

    def read(self) -> Image.Image:
        """Decode the row's image to RGB, with our decoder and its limits."""
        return self.examine().image

    def examine(self) -> Picture:
        """Decode the row's image, and say what is worth knowing about it."""
        try:
            cell = self.table[self.row][self.column]
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"the row cannot be read ({error})") from None
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise UnreadableImageError("the row has no image")
        return decode_picture(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]), self.rules)


def list_hub(identifier: str, rules: PixelRules = DEFAULT_RULES) -> Listing:
    """List the rows of the splits that :func:`choose_splits` names.

    Args:
        identifier: ``owner/name``, or ``owner/name:configuration``.

    Raises:
        DataError: the package is missing, the hub cannot be reached, or the data set has no image or label column.
    """
    datasets = _import_datasets()
    tables = _load(datasets, identifier)
    parts, unread = choose_splits([str(name) for name in tables])
    items: list[SourceItem] = []
    unlabelled: dict[str, str] = {}
    for name, split in parts:
        table = tables[name]
        image, label = _columns(datasets, identifier, table.features)
        table = table.cast_column(image, datasets.Image(decode=False))
        names = getattr(table.features[label], "names", None)
        for row, value in enumerate(table[label]):
            key = f"{name}/{row}"
            class_name = _class_name(value, names)
            if class_name is None:
                unlabelled[key] = "it has no label"
            else:
                items.append(SourceItem(key, class_name, split, HubImage(table, image, row, rules)))
    problems = problem_per_name("BAD_ROW", unlabelled, "Only labelled rows can be used.")
    return Listing(tuple(items), (*problems, *unread))


def choose_splits(names: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[DataProblem]]:
    """Which tables are read as ``train`` and ``test`` (None: to be drawn), and a warning for those that are not read.

    Without a test table, validation is the test table; without both, the training table or the first one is split.
    """
    by_role = {role: next((name for name in names if role_of(name) == role), None) for role in ("train", "test", "val")}
    train, test = by_role["train"], by_role["test"] or by_role["val"]
    parts: list[tuple[str, str | None]] = [(train or names[0], None)]
    if train is not None and test is not None:
        parts = [(train, "train"), (test, "test")]
    unread = sorted(set(names) - {name for name, _ in parts})
    if not unread:
        return parts, []
    named, read = ", ".join(map(repr, unread)), " and ".join(repr(name) for name, _ in parts)
    return parts, [DataProblem("IGNORED_SPLITS", f"Of the data set {read} is read, not {named}.")]


def _class_name(value: Any, names: list[str] | None) -> str | None:
    if value is None or (names is not None and not 0 <= value < len(names)):  # the hub writes -1 for "no label"
        return None
    return str(value) if names is None else names[value]


def _import_datasets() -> Any:
    # Nothing that a site reads is to be reported to the hub; the package looks at this when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise DataError(
            code="HUGGINGFACE_MISSING",
            message="The source 'huggingface' needs the package 'datasets', which is not installed.",
            advice="Run: pip install 'dpfpl-client[huggingface]'.",
        ) from None
    return datasets


def _load(datasets: Any, identifier: str) -> Any:
    name, _, configuration = identifier.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None)
    except FileNotFoundError as error:  # includes DatasetNotFoundError
        raise DataError(
            code="HUGGINGFACE_NOT_FOUND",
            message=f"The Hugging Face data set {identifier!r} does not exist or is not public ({error}).",
            advice="Check [data] path; a private data set needs `hf auth login` at this site.",
        ) from None
    except (ConnectionError, OSError) as error:
        raise DataError(
            code="HUGGINGFACE_UNREACHABLE",
            message=f"The Hugging Face hub cannot be reached for {identifier!r} ({error}).",
            advice='Connect to the network once to download it, or use source = "folder" with local images.',
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            code="HUGGINGFACE_UNUSABLE",
            message=f"The Hugging Face data set {identifier!r} cannot be loaded ({error}).",
            advice="Name a configuration as owner/name:configuration if it has several; code is never run.",
        ) from None


def _columns(datasets: Any, identifier: str, features: Any) -> tuple[str, str]:
    """The image column, and the label column: a class label, else a plain column called label, class or fine_label."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "class", "fine_label") if name in features]
    if not images or not labels:
        raise DataError(
            code="HUGGINGFACE_COLUMNS",
            message=f"The Hugging Face data set {identifier!r} has no {'label' if images else 'image'} column "
            f"(its columns: {', '.join(features)}).",
            advice="Use a data set for image classification.",
        )
    return images[0], labels[0]
