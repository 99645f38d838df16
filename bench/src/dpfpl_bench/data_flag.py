"""What ``--data`` of the command line means."""

from pathlib import Path

from dpfpl_client.data import DataSettings
from dpfpl_common.errors import ConfigError

__all__ = ["data_settings"]

BUILT_IN = ("digits", "shapes")


def data_settings(data: str, seed: int) -> DataSettings:
    """A built-in set, an image folder, a .csv file or a hub id, told apart by what is there.

    Args:
        data: the flag's value.
        seed: of the split into training and test images, where the source has none.

    Raises:
        ConfigError: it is none of these.
    """
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
            advice="Give an image folder, a .csv file, digits, shapes, or a hub id such as owner/name.",
        )
    return DataSettings(source="huggingface", path=data, split_seed=seed)
