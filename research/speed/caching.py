"""Image features from a cold and a warm cache against the image tower's own forward pass."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import ImageRecord
from dpfpl_client.data.decode import pixel_digest
from dpfpl_client.models.loader import load_backbone

__all__ = ["measure_cache"]


@dataclass(frozen=True)
class _Noise:
    number: int

    def read(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(self.number).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def measure_cache(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds for the embedded model's features of a few hundred or thousand images."""
    say("feature cache")
    count = 500 if quick else 2000
    backbone = load_backbone("embedded")
    records = [
        ImageRecord(f"train/noise/{number}", "noise", pixel_digest(_Noise(number).read()), "train", _Noise(number))
        for number in range(count)
    ]
    images = [record.open() for record in records]
    forward = _cpu_seconds(lambda: list(backbone.image_features(images)))
    decoding = _cpu_seconds(lambda: [record.open() for record in records])
    with tempfile.TemporaryDirectory(prefix="dpfpl-") as folder:
        cold = _cpu_seconds(lambda: FeatureCache(Path(folder), backbone).features(records))
        warm = _cpu_seconds(lambda: FeatureCache(Path(folder), backbone).features(records))
    return {
        "images": count,
        "forward_cpu_seconds": forward,
        "decoding_cpu_seconds": decoding,
        "cold_cpu_seconds": cold,
        "warm_cpu_seconds": warm,
        "cold_over_forward": cold / (forward + decoding),
        "warm_over_cold": warm / cold,
    }


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
