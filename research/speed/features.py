"""What image features cost: the cache, cold and warm, and a site's first day with photographs, beside transformers.

Photographs are JPEG files of 512 x 512; the model is ViT-B/16's image tower with random weights behind a small text
tower, on one thread. ONNX Runtime and OpenVINO take part where they are installed; nothing here needs them.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.data import ImageRecord
from dpfpl_client.data.decode import FileImage, pixel_digest
from dpfpl_client.models.dual_encoder import as_dual_encoder
from dpfpl_client.models.loader import load_backbone
from dpfpl_models import embedded_model_path
from research.speed.contestants import vit_b16
from research.speed.timing import cpu_seconds, take_turns

__all__ = ["measure_cache", "measure_images", "write_photographs", "write_vit_b16"]

CACHED, PHOTOGRAPHS, EDGE = 2000, 6, 512


@dataclass(frozen=True)
class _Noise:
    number: int

    def read(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(self.number).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def measure_cache(say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds for the embedded model's features of two thousand images."""
    say("feature cache")
    backbone = load_backbone("embedded")
    records = [
        ImageRecord(f"train/noise/{number}", "noise", pixel_digest(_Noise(number).read()), "train", _Noise(number))
        for number in range(CACHED)
    ]
    images = [record.open() for record in records]
    forward = cpu_seconds(lambda: list(backbone.image_features(images)))
    decoding = cpu_seconds(lambda: [record.open() for record in records])
    with tempfile.TemporaryDirectory(prefix="dpfpl-") as folder:
        cold = cpu_seconds(lambda: FeatureCache(Path(folder), backbone).features(records))
        warm = cpu_seconds(lambda: FeatureCache(Path(folder), backbone).features(records))
    return {
        "images": CACHED,
        "forward_cpu_seconds": forward,
        "decoding_cpu_seconds": decoding,
        "cold_cpu_seconds": cold,
        "warm_cpu_seconds": warm,
        "cold_over_forward": cold / (forward + decoding),
        "warm_over_cold": warm / cold,
    }


def measure_images(say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds an image of decoding, preparing, tower and all together, ours over transformers', and errors."""
    say("image features of photographs")
    from transformers import CLIPImageProcessorPil, CLIPModel

    with tempfile.TemporaryDirectory(prefix="dpfpl-") as name:
        folder = write_vit_b16(Path(name) / "model")
        paths = write_photographs(Path(name) / "images", PHOTOGRAPHS)
        model = CLIPModel.from_pretrained(folder).eval().requires_grad_(False)
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        backbone = as_dual_encoder(load_backbone(str(folder)))
        records = [_record(path) for path in paths]

        def opened() -> list[Image.Image]:
            return [Image.open(path).convert("RGB") for path in paths]

        def prepared() -> Tensor:
            pixels: Tensor = processor(images=opened(), return_tensors="pt")["pixel_values"]
            return pixels

        def plain(of: Any, pixels: Tensor) -> Tensor:
            with torch.no_grad():
                return functional.normalize(of.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

        def in_bfloat16() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return plain(model, prepared()).float()

        ways: dict[str, Callable[[], Tensor]] = {
            "transformers": lambda: plain(model, prepared()),
            "ours": lambda: FeatureCache(None, backbone).features(records),
            "bfloat16": in_bfloat16,
            **_anchors(model, prepared, Path(name)),
        }
        errors = {key: way() for key, way in ways.items()}
        pixels = prepared()
        timed = take_turns({key: (way, 9) for key, way in ways.items()}, "transformers", 5)
        decoding = cpu_seconds(opened)
        both = cpu_seconds(lambda: [processor(images=[image], return_tensors="pt") for image in opened()])
        preparing = both - cpu_seconds(opened)
        exact = plain(model.double(), pixels.double())
    rows = {
        key: {
            "cpu_seconds_an_image": median(timed[key].seconds) / PHOTOGRAPHS,
            "over_transformers": median(timed[key].ratios),
            "error": float((errors[key].double() - exact).norm(dim=1).max()),
        }
        for key in ways
    }
    each = {"decoding_an_image": decoding / PHOTOGRAPHS, "preparing_an_image": preparing / PHOTOGRAPHS}
    return {"images": PHOTOGRAPHS, "edge": EDGE, "ways": rows, **each}


def _record(path: Path) -> ImageRecord:
    file = FileImage(path)
    return ImageRecord(path.name, "a", pixel_digest(file.read()), "train", file)


def _anchors(model: Any, prepared: Callable[[], Tensor], folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Other runtimes' float32 on one thread, of those that are installed."""
    ways: dict[str, Callable[[], Tensor]] = {}
    tower, example = _Tower(model), torch.zeros(1, 3, 224, 224)
    if importlib.util.find_spec("openvino"):
        import openvino  # type: ignore[import-not-found, unused-ignore]

        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(openvino.convert_model(tower, example_input=example), "CPU", settings)
        ways["openvino"] = lambda: torch.from_numpy(compiled(prepared().numpy())[0].copy())
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        import onnxruntime  # type: ignore[import-not-found, unused-ignore]

        path, options = folder / "tower.onnx", onnxruntime.SessionOptions()
        torch.onnx.export(tower, (example,), str(path), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},))
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
        (given,) = session.get_inputs()
        ways["onnxruntime"] = lambda: torch.from_numpy(session.run(None, {given.name: prepared().numpy()})[0])
    return ways


class _Tower(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self._vision, self._projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self._projection(self._vision(pixel_values=pixels).pooler_output), dim=-1)


def write_vit_b16(folder: Path, text_layers: int = 1) -> Path:
    """A CLIP folder with ViT-B/16's image tower, random, and the embedded model's tokenizer."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    model = vit_b16(text_layers, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for part in (model, tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(folder)
    return folder


def write_photographs(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """JPEG files of smooth noise, 512 x 512, about as large as photographs of that size."""
    folder.mkdir(parents=True)
    generator, paths = np.random.default_rng(seed), []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((EDGE, EDGE), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths
