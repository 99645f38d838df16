"""From scenes and masks to pictures: moved, bent, coloured, blurred and coarsened, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from .drawing import COLOURS
from .pool import Pool
from .scenes import POSITIONS, Scene

__all__ = ["draw_batch"]

_SCALES = {"small": (0.32, 0.5), "medium": (0.5, 0.75), "large": (0.75, 1.08), "": (0.75, 1.08)}


def _placements(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Scale and centre (x, y), each in -1 to 1, of every thing in the scene."""
    if scene.count != "1":
        cells = rng.permutation(4)[: int(scene.count)]
        shift = rng.normal(0, 0.06, size=(4, 2))
        return [
            (
                float(rng.uniform(0.32, 0.45)),
                (int(c) % 2 - 0.5) + float(shift[c, 0]),
                (int(c) // 2 - 0.5) + float(shift[c, 1]),
            )
            for c in cells
        ]
    scale = float(rng.uniform(*_SCALES[scene.size]))
    if scene.position:
        cell = POSITIONS.index(scene.position)
        x, y = (cell % 3 - 1) * 0.52, (cell // 3 - 1) * 0.52
        return [(scale, x + float(rng.normal(0, 0.05)), y + float(rng.normal(0, 0.05)))]
    room = max(0.06, (1 - scale) * 0.5)
    return [(scale, float(rng.uniform(-room, room)), float(rng.uniform(-room, room)))]


def _inverse_affine(
    scene: Scene, place: tuple[float, float, float], rng: np.random.Generator, ease: float
) -> np.ndarray:
    """The map [2, 3] from a place in the picture to a place in the mask, as grid_sample wants it."""
    if scene.kind == "texture":
        return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    scale, x, y = place
    wild = 1 - 0.8 * ease
    x, y = (x * wild, y * wild) if scene.size == "large" else (x, y)
    angle, shear = rng.normal(0, 0.16 * wild), rng.normal(0, 0.14 * wild)
    stretch = np.exp(rng.normal(0, 0.14 * wild))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([scale * stretch, scale / stretch])
    inverse = np.linalg.inv(forward)
    return np.concatenate([inverse, -inverse @ np.array([[x], [y]])], axis=1)


def _smooth_noise(rng: np.random.Generator, batch: int, channels: int, size: int) -> torch.Tensor:
    """Slowly varying noise [batch, channels, size, size]."""
    coarse = torch.from_numpy(rng.standard_normal((batch, channels, 4, 4), dtype=np.float32))
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def _ink(scenes: Sequence[Scene], pool: Pool, rng: np.random.Generator, ease: float) -> torch.Tensor:
    """How much ink lies on each pixel: [batch, 1, 32, 32] in 0 to 1."""
    rows, owners, maps = [], [], []
    for owner, scene in enumerate(scenes):
        style = scene.style
        candidates = pool.rows[scene.kind, scene.name, style]
        row = int(candidates[rng.integers(len(candidates))])
        for place in _placements(scene, rng):
            rows.append(row)
            owners.append(owner)
            maps.append(_inverse_affine(scene, place, rng, ease))
    masks = torch.from_numpy(pool.masks[rows]).float()[:, None] / 255  # [things, 1, 32, 32]
    size = masks.shape[-1]
    change = torch.from_numpy(rng.uniform(-0.5, 0.9, (len(rows), 1, 1, 1)).astype(np.float32))
    thicker = functional.max_pool2d(masks, 3, 1, 1)
    thinner = -functional.max_pool2d(-masks, 3, 1, 1)
    masks = masks + change.clamp(min=0) * (thicker - masks) - change.clamp(max=0) * (thinner - masks)
    theta = torch.from_numpy(np.stack(maps)).float()
    grid = functional.affine_grid(theta, [len(rows), 1, size, size], align_corners=False)
    bend = _smooth_noise(rng, len(rows), 2, size).permute(0, 2, 3, 1)
    amount = torch.from_numpy(rng.uniform(0, 0.08 * (1 - ease), (len(rows), 1, 1, 1)).astype(np.float32))
    moved = functional.grid_sample(masks, grid + bend * amount, mode="bilinear", align_corners=False)
    first = np.searchsorted(owners, np.arange(len(scenes)))  # things of one scene lie side by side
    return torch.from_numpy(np.maximum.reduceat(moved.numpy(), first, axis=0))


def _coarsen(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Low-resolution pictures enlarged again: [n, 3, 32, 32] to the same."""
    pixels = int(rng.choice([8, 8, 8, 10, 12, 16]))
    mode = str(rng.choice(["nearest", "bilinear", "bicubic", "bicubic"]))
    small = functional.interpolate(images, size=(pixels, pixels), mode="area")
    if mode == "nearest":
        return functional.interpolate(small, size=images.shape[-2:], mode=mode)
    return functional.interpolate(small, size=images.shape[-2:], mode=mode, align_corners=False)


def _blur(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A Gaussian blur of one random width: [n, 3, 32, 32] to the same."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / float(rng.uniform(0.8, 1.6))) ** 2)
    taps = taps / taps.sum()
    channels = images.shape[1]
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    along = functional.conv2d(padded, taps.view(1, 1, 1, 7).repeat(channels, 1, 1, 1), groups=channels)
    return functional.conv2d(along, taps.view(1, 1, 7, 1).repeat(channels, 1, 1, 1), groups=channels)


def draw_batch(scenes: Sequence[Scene], pool: Pool, rng: np.random.Generator, ease: float = 0.0) -> torch.Tensor:
    """Pictures float32 [batch, 3, 32, 32] in 0 to 1, one for each scene; `ease` in 0 to 1 bends things less."""
    ink = _ink(scenes, pool, rng, ease)
    batch, size = ink.shape[0], ink.shape[-1]
    pressure = (0.25 * _smooth_noise(rng, batch, 1, size).abs()).clamp(max=0.5)
    fades = torch.from_numpy((rng.random((batch, 1, 1, 1)) < 0.5).astype(np.float32))
    ink = ink * (1 - fades * pressure)

    def colours(names: list[str]) -> torch.Tensor:
        base = np.asarray([COLOURS[name] for name in names], dtype=np.float32)
        return torch.from_numpy((base + rng.normal(0, 12, base.shape).astype(np.float32)) / 255)[:, :, None, None]

    front, back = colours([s.colour for s in scenes]), colours([s.background for s in scenes])
    images = (ink * front + (1 - ink) * back).clamp(0, 1)
    quality = np.array([scene.quality for scene in scenes])
    pixelated = np.flatnonzero(quality == "pixelated")
    for part in np.array_split(pixelated, 6):
        if len(part):
            images[part] = _coarsen(images[part], rng)
    blurry = np.flatnonzero(quality == "blurry")
    if len(blurry):
        images[blurry] = _blur(images[blurry], rng)
    level = np.where(quality == "noisy", rng.uniform(0.05, 0.16, batch), rng.uniform(0, 0.03, batch))
    noise = rng.standard_normal(images.shape, dtype=np.float32) * level.astype(np.float32)[:, None, None, None]
    contrast = rng.uniform(0.7, 1.05, (batch, 1, 1, 1)).astype(np.float32)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - middle) * torch.from_numpy(contrast) + middle + torch.from_numpy(noise)).clamp(0, 1)
