"""The frozen image tower of a dual encoder: fast products, and features that no neighbour changes by a bit.

Which kernel a library chooses, and where it cuts a sum, depends on the shape of what it is given. A tower that takes as
many pictures as there are would therefore make the last bits of one picture's features depend on how many others came
along. Here every pass has the same shape: one picture where the tower is large, else a fixed number, made up with
copies of the last one, after a trial showed that the place in a pass does not matter either. Of many pictures a large
tower takes four at once, after a trial showed that all four get the bits that each gets alone.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dpfpl_client.models.text_tower.layers import onednn_product, prefers_onednn

__all__ = ["BATCH_PIXELS", "TOLERANCE", "ImageTower", "batches"]

TOLERANCE: Final = 2e-6
"""Largest distance of a unit feature to the exact one, and so half of the largest between two sites' processors."""

SMALL: Final = 10_000_000
"""Parameters of a tower below which starting a product costs more than the product of one picture."""

SIDE_BY_SIDE: Final = 16
"""Pictures of every pass through a small tower."""

TOGETHER: Final = 4
"""Pictures of a pass through a large tower, where that is the same function to the bit: its weights are read once."""

MANY: Final = 32
"""Pictures from which on a trial of this pays."""

ON_A_GPU: Final = 64
"""Pictures of every pass elsewhere than on the processor, which one picture would leave idle."""

ROWS: Final = 256
"""Rows for which weights are laid out: about the patches of one picture."""

SWAPPED: Final = ("vision_model", "visual_projection")
"""Parts of a dual encoder that see pictures."""

FOREIGN: Final = ("vision-text-dual-encoder",)
"""Models with any image tower: what else it does with a layer's weights is not known."""

ACTIVATIONS: Final = {"QuickGELUActivation": ("swish", 1.702), "GELUActivation": ("gelu", 1.0)}
"""What oneDNN calls them, and the factor f with ``activation(a) = its(f a) / f``."""


BATCH_PIXELS: Final = 48 * 2**20
"""Most pixels of a batch, 144 MB decoded: thousands of thumbnails, or four photographs of twelve megapixels."""


class ImageTower:
    """A model's ``get_image_features``, as unit rows.

    Trials find the number of pictures of a pass, from the model and the machine alone: no site's picture is looked at.
    They hold for as many threads as there were then.

    Args:
        model: a loaded dual encoder. On the processor, in float32, its linear layers that see pictures are replaced
            before the first picture, if ``prefers_onednn`` says so; their weights are then in oneDNN's layout and
            no longer in the model's.
        prepared: pictures to what the model takes, the pictures along the first dimension.
        device: where the model is.
    """

    def __init__(self, model: Any, prepared: Callable[[Sequence[Image.Image]], Any], device: torch.device) -> None:
        self._model, self._prepared, self._device = model, prepared, device
        self._shape = 0  # pictures of a pass, made up with copies; not known before the first picture
        self._together: int | None = None  # pictures of a pass where so many are left; not known before the first MANY
        self._seen = 0
        self._lock = threading.Lock()  # nobody computes with a tower whose layers are being replaced

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Iterator[Tensor]:
        """One unit row [feature_size] an image, on the processor: the same bits whatever the other images are."""
        with self._lock:
            if images and not self._shape:
                _swap_products(self._model, self._device)
                self._shape = self._find_shape()
        self._seen += len(images)
        if self._together is None and self._seen >= MANY:
            self._together = TOGETHER if self._shape == 1 and self._same_bits(TOGETHER, alone=True) else self._shape
        start = 0
        while start < len(images):
            many = self._together or self._shape
            number = many if len(images) - start >= many else self._shape
            part = [self._prepared([image]) for image in images[start : start + number]]
            yield from self._pass(part + part[-1:] * (number - len(part)))[: len(part)]
            start += number

    def _pass(self, pictures: Sequence[Any]) -> Tensor:
        whole = {key: torch.cat([each[key] for each in pictures]).to(self._device) for key in pictures[0]}
        found = self._model.get_image_features(**whole)
        return functional.normalize(getattr(found, "pooler_output", found), dim=-1).cpu().clone()

    def _find_shape(self) -> int:
        parts = [getattr(self._model, name, None) for name in SWAPPED]
        size = sum(weight.numel() for part in parts if part is not None for weight in part.parameters())
        number = ON_A_GPU if self._device.type != "cpu" else SIDE_BY_SIDE if size < SMALL else 1
        return number if number == 1 or self._same_bits(number) else 1

    def _same_bits(self, number: int, *, alone: bool = False) -> bool:
        """Whether a picture of noise has the same features in every place of a pass, and if it is ``alone``."""
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        picture = self._prepared([Image.fromarray(noise)])
        rows = self._pass([picture] * number)
        expected = self._pass([picture])[0] if alone else rows[0]
        return all(torch.equal(row, expected) for row in rows)


def batches(images: Iterable[Image.Image], most: int) -> Iterator[list[Image.Image]]:
    """Lists of at most ``most`` images and ``BATCH_PIXELS`` pixels, in the images' order; a larger image goes alone.

    The images are taken one by one. A batch is emptied when the next one is asked for. Otherwise a caller that keeps
    its list would hold two batches of decoded images, beside the one image that did not fit any more.
    """
    batch: list[Image.Image] = []
    pixels = 0
    for image in images:
        size = image.width * image.height
        if batch and (len(batch) == most or pixels + size > BATCH_PIXELS):
            yield batch
            batch.clear()
            pixels = 0
        batch.append(image)
        pixels += size
        del image  # the batch alone holds it, also while the next one is decoded
    if batch:
        yield batch


def _swap_products(model: Any, device: torch.device) -> None:
    """Replace the linear layers that see pictures by products that a trial found as exact."""
    if model.config.model_type in FOREIGN or device.type != "cpu" or not prefers_onednn(torch.float32):
        return
    parts = [getattr(model, name, None) for name in SWAPPED]
    holders = [model, *(module for part in parts if part is not None for module in part.modules())]
    trusted: dict[tuple[object, ...], bool] = {}
    for module in holders:
        if (found := _with_activation(module)) is not None:
            up, down, kind = found
            if kind not in trusted:
                trusted[kind] = _agree(module, nn.Sequential(up, down), module.fc1.in_features)
            if trusted[kind]:
                module.fc1, module.activation_fn, module.fc2 = up, nn.Identity().eval(), down
        for name, child in module.named_children():
            if not _is_linear(child) or (module is model and name not in SWAPPED):
                continue
            packed = _Packed(child.weight, child.bias)
            if child.weight.shape not in trusted:
                trusted[child.weight.shape] = _agree(child, packed, child.in_features)
            if trusted[child.weight.shape]:
                setattr(module, name, packed)


def _with_activation(module: Any) -> tuple["_Packed", "_Packed", tuple[object, ...]] | None:
    """Both products of CLIP's perceptron ``fc2(activation_fn(fc1(x)))``, the activation in the first; None of others.

    The third is what tells its kind from another's.
    """
    up, down = getattr(module, "fc1", None), getattr(module, "fc2", None)
    after, factor = ACTIVATIONS.get(type(getattr(module, "activation_fn", None)).__name__, ("", 1.0))
    if not after or not _is_linear(up) or not _is_linear(down) or up.bias is None:
        return None
    first, second = _Packed(up.weight * factor, up.bias * factor, after), _Packed(down.weight / factor, down.bias)
    return first, second, (after, up.weight.shape, down.weight.shape)


def _is_linear(module: object) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.weight.dtype == torch.float32


def _agree(usual: nn.Module, other: nn.Module, inputs: int) -> bool:
    """Whether two ways to compute are one function up to float32's rounding, on random rows."""
    x = torch.randn((ROWS, inputs), generator=torch.Generator().manual_seed(0))
    expected = usual(x)
    return bool((other(x) - expected).norm() <= TOLERANCE * expected.norm())


class _Packed(nn.Module):
    """A frozen linear layer through oneDNN, with an activation behind it.

    ``weight`` keeps shape and type for those who ask a layer for them. It has no values: who computes with it fails.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, after: str = "none") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._product = onednn_product(weight.detach(), ROWS, after)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self._product(x.reshape(-1, x.shape[-1]), self.bias).view(*x.shape[:-1], -1)
