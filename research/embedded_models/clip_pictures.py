"""The pool: every mask that training draws from, rendered once in several processes."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from dpfpl_bench.demo.drawing import COLOURS, SHAPES, TEXTURES, draw_pen_digit, draw_texture_mask, shape_mask
from research.embedded_models.clip_scenes import POSITIONS, Scene

__all__ = ["CHARACTERS", "Pool", "build_pool", "draw_batch", "font_glyphs", "keep_legible", "system_fonts"]

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")


def system_fonts() -> list[Path]:
    """Every TrueType or OpenType file on this machine, in a stable order."""
    found = {path for folder in _FOLDERS for path in Path(folder).rglob("*") if path.suffix.lower() in (".ttf", ".otf")}
    return sorted(found)


def font_glyphs(font: Path, size: int = 32) -> np.ndarray | None:
    """All CHARACTERS of one font: uint8 masks [62, size, size], each filling the square; None if some are missing."""
    try:
        face = ImageFont.truetype(str(font), size * 2)
        masks = [_fitted(face, character, size) for character in CHARACTERS]
    except (OSError, ValueError):
        return None
    if any(mask is None for mask in masks):
        return None
    return np.stack([mask for mask in masks if mask is not None])


def _fitted(face: ImageFont.FreeTypeFont, character: str, size: int) -> np.ndarray | None:
    """One character as a mask [size, size], cropped to its ink and scaled so that the longer side fills the square."""
    left, top, right, bottom = (round(v) for v in face.getbbox(character))
    width, height = right - left, bottom - top
    if not (0 < width < size * 8 and 0 < height < size * 8):
        return None
    ink = Image.new("L", (width, height), 0)
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=face)
    ratio = (size - 2) / max(width, height)
    ink = ink.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.BOX)
    canvas = Image.new("L", (size, size), 0)
    canvas.paste(ink, ((size - ink.width) // 2, (size - ink.height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def keep_legible(fonts: np.ndarray, share: float = 0.85) -> np.ndarray:
    """The fonts that look like the others: masks [fonts, 62, size, size] -> the kept ones, symbol fonts dropped.

    A font's score is the mean correlation of its characters with the average of all fonts.
    """
    flat = fonts.reshape(fonts.shape[0], fonts.shape[1], -1).astype(np.float32)
    flat -= flat.mean(axis=2, keepdims=True)
    flat /= np.linalg.norm(flat, axis=2, keepdims=True) + 1e-6
    typical = np.median(flat, axis=0)  # [62, size * size]
    typical /= np.linalg.norm(typical, axis=1, keepdims=True) + 1e-6
    score = (flat * typical).sum(axis=2).mean(axis=1)  # [fonts]
    kept: np.ndarray = fonts[score >= np.quantile(score, 1 - share)]
    return kept


Group = tuple[str, str, str]


@dataclass(frozen=True)
class Pool:
    """Masks uint8 [n, 32, 32] and, for each group (kind, name, style), the rows that belong to it."""

    masks: np.ndarray
    rows: dict[Group, np.ndarray]
    num_fonts: int


def _pen_digits(digit: int, seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng([seed, digit])
    return np.stack([draw_pen_digit(digit, rng) for _ in range(count)])


def build_pool(seed: int, pen_digits: int, drawings: int) -> Pool:
    """Render `pen_digits` masks per digit, `drawings` per shape and texture, and all fonts."""
    paths = system_fonts()
    if not paths:
        raise ValueError("no font found under /usr/share/fonts: expected at least one .ttf or .otf file")
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as workers:
        pens = list(workers.map(_pen_digits, range(10), [seed] * 10, [pen_digits] * 10))
        fonts = [glyphs for glyphs in workers.map(font_glyphs, paths, chunksize=8) if glyphs is not None]
    groups: dict[Group, np.ndarray] = {("digit", str(d), "handwritten"): pens[d] for d in range(10)}
    legible = keep_legible(np.stack(fonts))
    for column, character in enumerate(CHARACTERS):
        if character.isdigit():
            groups["digit", character, "printed"] = legible[:, column]
        else:
            style = "uppercase" if character.isupper() else "lowercase"
            groups["letter", character.lower(), style] = legible[:, column]
    rng = np.random.default_rng([seed, 10])
    for name in SHAPES:
        groups["shape", name, ""] = np.stack([shape_mask(name, rng) for _ in range(drawings)])
    for name in TEXTURES:
        groups["texture", name, ""] = np.stack([draw_texture_mask(name, rng) for _ in range(drawings)])
    rows, start = {}, 0
    for group, masks in groups.items():
        rows[group] = np.arange(start, start + len(masks))
        start += len(masks)
    return Pool(np.concatenate(list(groups.values())), rows, len(legible))


# From scenes and masks to pictures: moved, bent, coloured, blurred and coarsened, a whole batch at a time.


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
