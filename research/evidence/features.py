"""Image and text features of the studied sets, computed once and cached as .npz; the photo set is given by folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.data.builtin import list_shapes
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.config import build

__all__ = ["StudySet", "built_in", "photos"]

Floats = npt.NDArray[np.float64]
INIT_TEXT, NUM_CONTEXT = "a photo of a", 4


@dataclass(frozen=True)
class StudySet:
    """Attributes: unit features [n, e] and labels [n] for training and testing, unit texts [C, e], logit scale."""

    name: str
    features: Floats
    labels: npt.NDArray[np.int64]
    test_features: Floats
    test_labels: npt.NDArray[np.int64]
    texts: Floats
    scale: float


def built_in(name: str, cache: Path) -> list[StudySet]:
    """``digits``, ``shapes``, or ``shapes-more`` with twice as many drawings, under the embedded model."""
    data = _more_shapes(cache / name) if name == "shapes-more" else build(DataSettings, {"source": name}, "")
    return _sets("embedded", data, cache / f"{name}.npz", {name: lambda names: names})


def _more_shapes(folder: Path, per_class: int = 300) -> DataSettings:
    for item in list_shapes(per_class).items:
        path = folder / f"{item.key.partition('/')[2]}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            item.source.read().save(path)
    return DataSettings("folder", str(folder))


def photos(model: str, folder: str, cache: Path) -> list[StudySet]:
    """A folder of photos three times: as its classes are named, half of them renamed to codes, and all of them."""
    name = Path(folder).name
    views = {name: lambda names: names, f"{name}-half": _half_renamed, f"{name}-renamed": _renamed}
    return _sets(model, DataSettings("folder", folder), cache / f"{name}.npz", views)


def _renamed(names: Sequence[str]) -> Sequence[str]:
    return [f"class-{number:02d}" for number in range(1, len(names) + 1)]


def _half_renamed(names: Sequence[str]) -> Sequence[str]:
    codes, chosen = _renamed(names), np.random.default_rng(5).permutation(len(names))[: len(names) // 2]
    return [codes[number] if number in chosen else name for number, name in enumerate(names)]


def _sets(model: str, data: DataSettings, cache: Path, views: dict) -> list[StudySet]:  # type: ignore[type-arg]
    if not cache.exists():
        _compute(model, data, cache, views)
    with np.load(cache) as kept:
        arrays = dict(kept)
    common = (_unit(arrays["features"]), arrays["labels"], _unit(arrays["test_features"]), arrays["test_labels"])
    return [StudySet(name, *common, _unit(arrays[f"texts {name}"]), float(arrays["scale"])) for name in views]


def _compute(model: str, data: DataSettings, cache: Path, views: dict) -> None:  # type: ignore[type-arg]
    backbone = load_backbone(model)
    assert isinstance(backbone, DualEncoder)
    classes = list_classes(data)
    (site,) = partition_sites(read_pool(data, classes).records, classes, "none", 1, 0)
    features = site_features(FeatureCache(None, backbone), site, classes)
    initial = backbone.text_embeddings(INIT_TEXT, NUM_CONTEXT)
    texts: dict[str, Any] = {}
    for name, view in views.items():
        with torch.no_grad():
            scorer = ClassScorer(backbone, backbone.class_tokens(tuple(view(classes)), NUM_CONTEXT))
            texts[f"texts {name}"] = scorer.class_features(initial).numpy()
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        cache,
        features=features.train.features.numpy(),
        labels=features.train.labels.numpy(),
        test_features=features.test.features.numpy(),
        test_labels=features.test.labels.numpy(),
        scale=np.array(backbone.logit_scale),
        **texts,
    )


def _unit(rows: npt.NDArray[np.float32]) -> Floats:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
