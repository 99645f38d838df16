"""What ``--data`` of the command line means."""

import dataclasses
from pathlib import Path

from dpfpl_bench.field_data import FIELD, FieldData, locate
from dpfpl_client.data import DataSettings, list_classes
from dpfpl_common.errors import ConfigError, DataError

__all__ = ["data_settings", "initial_text", "named_classes"]

BUILT_IN = ("digits", "shapes")


def data_settings(data: str, seed: int, *, offline: bool = True) -> DataSettings:
    """A built-in set, a named set of the field, an image folder, a .csv file or a hub id, told apart by what is there.

    Args:
        data: the flag's value.
        seed: of the split into training and test images, where the source has none.
        offline: a named set must be on this machine; see ``dpfpl_bench.field_data.locate``.

    Raises:
        ConfigError: it is none of these.
    """
    if data in FIELD:
        return _field_settings(FIELD[data], seed, offline=offline)
    path = Path(data).expanduser()
    if data in BUILT_IN:
        return DataSettings(source=data, split_seed=seed)
    if path.is_dir():
        return DataSettings(source="folder", path=str(path), split_seed=seed)
    if path.suffix.lower() == ".csv":
        return DataSettings(source="csv", path=str(path), split_seed=seed)
    if data.startswith(("/", ".", "~")) or data.count("/") != 1:
        raise ConfigError(
            code="NO_DATA",
            message=f"There is no folder and no .csv file {data!r}.",
            advice=f"Give an image folder, a .csv file, digits, shapes, {', '.join(FIELD)}, or a hub id such as "
            "owner/name.",
        )
    return DataSettings(source="huggingface", path=data, split_seed=seed)


def named_classes(data: str, settings: DataSettings) -> tuple[str, ...]:
    """The classes of ``--data``; of a named set those that the comparisons use."""
    found = list_classes(settings)
    if data not in FIELD:
        return found
    used = set(settings.class_map.values())
    return tuple(name for name in found if name in used)


def initial_text(data: str) -> str:
    """What ``--init-text`` is where it is not given: the template's beginning for a named set."""
    return FIELD[data].init_text if data in FIELD else "a photo of a"


def _field_settings(field: FieldData, seed: int, *, offline: bool) -> DataSettings:
    where = locate(field, offline=offline)
    source = "folder" if isinstance(where, Path) else "huggingface"
    raw = DataSettings(source=source, path=str(where), split_seed=seed)
    names = field.class_map(list_classes(raw))
    if len(set(names.values())) != field.classes:
        raise DataError(
            code="WRONG_CLASSES",
            message=f"{where} has {len(set(names.values()))} classes; {field.title} has {field.classes}.",
            advice=f"Unpack the whole of {field.page} there: one folder for each class.",
        )
    return dataclasses.replace(raw, class_map=names)
