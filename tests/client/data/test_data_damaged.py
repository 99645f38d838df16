"""Five hundred damaged pictures of every format: an image or a code with advice; no traceback, nothing half read."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from site_images import pool_of

from dpfpl_client.data.decode import UnreadableImageError, decode_picture
from dpfpl_common.errors import DataError

CODES = {
    "CORRUPT_IMAGE",
    "DICOM_COMPRESSED",
    "SEVERAL_FRAMES",
    "SIGNED_VALUES",
    "WIDE_VALUES",
    "WRONG_BITS",
    "UNREADABLE",
}
COUNT = 500


def sources():
    """(name, bytes) of whole files in every format that is read here."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    wide = Image.fromarray(rng.integers(0, 4096, (40, 50)).astype(np.uint16))
    kinds = [
        ("png", colour, {}), ("jpg", colour, {}), ("bmp", colour, {}), ("gif", colour, {}), ("webp", colour, {}),
        ("tif", colour, {}), ("tif", colour, {"compression": "tiff_lzw"}), ("png", wide, {}), ("tif", wide, {}),
        ("tif", colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        ("gif", colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        ("png", colour, {"save_all": True, "append_images": [colour.rotate(90, expand=False)]}),
        ("png", colour.convert("RGBA"), {}), ("jpg", colour.convert("CMYK"), {}), ("png", colour.convert("P"), {}),
    ]  # fmt: skip
    for suffix, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
        yield suffix, buffer.getvalue()
    try:
        import pydicom
    except ImportError:
        return
    files = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("CT_small", "MR_small_RLE", "SC_rgb_small_odd_jpeg", "MR_small_jp2klossless", "examples_palette"):
        yield "dcm", (files / f"{name}.dcm").read_bytes()
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    colour.save(buffer, "HEIF", quality=50)
    yield "heic", buffer.getvalue()


def damaged(whole, rng):
    """Cut off, with bytes changed, with a piece taken out, doubled or put elsewhere, or another file's beginning."""
    content = bytearray(whole)
    match rng.randrange(6):
        case 0:
            return bytes(content[: rng.randrange(len(content))])
        case 1:
            for _ in range(rng.randrange(1, 30)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 2:  # in the header, where sizes and types are
            for _ in range(rng.randrange(1, 6)):
                content[rng.randrange(min(400, len(content)))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        case 3:
            start = rng.randrange(len(content))
            del content[start : start + rng.randrange(1, 200)]
        case 4:
            start = rng.randrange(len(content))
            content[start:start] = content[start : start + rng.randrange(1, 200)]
        case _:
            start = rng.randrange(len(content))
            content[start : start + 64] = bytes(64)
    return bytes(content)


@pytest.fixture(scope="module")
def pictures():
    rng, wholes = random.Random(7), list(sources())
    return [(suffix, damaged(whole, rng)) for suffix, whole in (wholes[n % len(wholes)] for n in range(COUNT))]


@pytest.mark.filterwarnings("ignore")
def test_each_gives_an_image_or_a_code(pictures):
    refused = []
    for number, (suffix, content) in enumerate(pictures):
        try:
            picture = decode_picture(content)
        except UnreadableImageError as error:
            refused.append((number, suffix, error.code in CODES, bool(str(error)), bool(error.advice)))
            continue
        assert picture.image.mode == "RGB"
        assert picture.image.width * picture.image.height == len(picture.image.tobytes()) // 3
        assert picture.frames >= 1
        assert 0 <= picture.used <= 1
    assert [told for told in refused if told[2:] != (True, True, True)] == []
    assert len(refused) > COUNT // 3


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_them_is_read_and_every_one_left_out_is_named(pictures, tmp_path, picture):
    for number, (suffix, content) in enumerate(pictures[:150]):
        folder = tmp_path / ("cat" if number % 2 else "dog")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.{suffix}").write_bytes(content)
    for name in ("cat", "dog"):
        picture(ord(name[0])).save(tmp_path / name / "whole.png")
    pool = pool_of(tmp_path)
    assert len(pool.unreadable) >= 50
    assert {problem.code for problem in pool.problems} <= CODES | {
        "DUPLICATE_IMAGE", "NEAR_COPIES", "RANGE_UNUSED", "DUPLICATE_ACROSS_SPLITS", "CONFLICTING_LABELS",
        "UNSUPPORTED_FILES",
    }  # fmt: skip
    for record in pool.records:
        record.open()  # the same pixels as when they were counted


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 200, b"\0" * 128 + b"DICM", b"\0\0\0\x18ftypheic", b"II*\0", b"x" * 9, b"\x89PNG\r\n\x1a\n",
        b"GIF89a", b"BM", b"\xff\xd8\xff",
    ],
)  # fmt: skip
def test_files_of_nothing(tmp_path, content):
    (tmp_path / "cat").mkdir()
    for suffix in ("png", "tif", "jpg"):
        (tmp_path / "cat" / f"x.{suffix}").write_bytes(content)
    with pytest.raises(DataError) as raised:
        pool_of(tmp_path)
    assert raised.value.code == "NO_IMAGES"
    assert all(f"x.{suffix}" in raised.value.advice for suffix in ("png", "tif", "jpg"))


def test_pillow_is_left_as_strict_as_it_was():
    """A cut file must not be filled up with grey."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
