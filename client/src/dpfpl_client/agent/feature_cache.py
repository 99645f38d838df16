"""Image features of the frozen tower, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from dpfpl_client.data import ImageRecord, SiteData
from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.evaluation import LabelledFeatures
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_common.durable import write_durably

__all__ = ["FeatureCache", "site_features"]

Progress = Callable[[int, int], None]


class FeatureCache:
    """Features by (model fingerprint, image digest, viewpoint); one file a model.

    A damaged or missing file costs time, never correctness: its features are computed again.
    """

    def __init__(self, folder: Path | None, backbone: ClipBackbone) -> None:
        """Use ``folder``; None keeps the cache in memory."""
        self._backbone = backbone
        self._path = folder / f"features-{backbone.fingerprint[:16]}.safetensors" if folder else None
        self._rows: dict[str, Tensor] = self._read()

    def features(self, records: Sequence[ImageRecord], progress: Progress | None = None) -> Tensor:
        """Unit features [len(records), feature_size]; what is missing is computed and kept.

        Args:
            records: images; equal digests are computed once.
            progress: called with (done, total) of the images that had to be computed.
        """
        keys = [f"{record.digest}/{record.viewpoint}" for record in records]
        missing = {key: record for key, record in zip(keys, records, strict=True) if key not in self._rows}
        if missing:
            images = (record.open() for record in missing.values())
            for done, (key, row) in enumerate(
                zip(missing, self._backbone.image_features(images), strict=True), start=1
            ):
                self._rows[key] = row
                if progress is not None:
                    progress(done, len(missing))
            self._write()
        if not keys:
            return torch.zeros((0, self._backbone.feature_size))
        return torch.stack([self._rows[key] for key in keys])

    def _read(self) -> dict[str, Tensor]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = load(self._path.read_bytes())
            if content["checksum"].tobytes() != _checksum(content["keys"], content["features"]):
                return {}
        except (SafetensorError, KeyError, ValueError):
            return {}
        keys = content["keys"].tobytes().decode().split("\n")
        return dict(zip(keys, torch.from_numpy(content["features"].copy()), strict=True))

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = np.frombuffer("\n".join(self._rows).encode(), dtype=np.uint8)
        features = torch.stack(list(self._rows.values())).numpy()
        checksum = np.frombuffer(_checksum(keys, features), dtype=np.uint8)
        write_durably(self._path, save({"keys": keys, "features": features, "checksum": checksum}))


def _checksum(keys: npt.NDArray[np.uint8], features: npt.NDArray[np.float32]) -> bytes:
    return hashlib.sha256(keys.tobytes() + features.tobytes()).digest()


def site_features(
    cache: FeatureCache, data: SiteData, class_names: Iterable[str], progress: Progress | None = None
) -> SiteFeatures:
    """Features and labels of a site's three sets; labels index ``class_names``."""
    names = tuple(class_names)
    index = {name: position for position, name in enumerate(names)}

    def labelled(records: Sequence[ImageRecord]) -> LabelledFeatures:
        labels = torch.tensor([index[record.label] for record in records], dtype=torch.long)
        return LabelledFeatures(cache.features(records, progress), labels)

    return SiteFeatures(labelled(data.train), labelled(data.test), labelled(data.neighbour_test), names)
