"""Decoding: what a picture's pixels are, and files of several pictures, of which never one is dropped silently."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from site_images import pool_of

from dpfpl_client.data import decode
from dpfpl_client.data.decode import PixelRules, UnreadableImageError, decode_image, decode_picture, pixel_digest


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(9, 7)):
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8), mode)


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_a_lossless_re_encoding_has_the_same_digest(kind, options):
    original = noise()
    assert pixel_digest(decode_image(encoded(original, kind, **options))) == pixel_digest(original)


def test_the_digest_sees_one_changed_bit_and_the_size():
    image = noise()
    changed = image.copy()
    red, green, blue = changed.getpixel((3, 3))
    changed.putpixel((3, 3), (red ^ 1, green, blue))
    reshaped = Image.frombytes("RGB", (7, 9), image.tobytes())
    assert len({pixel_digest(image), pixel_digest(changed), pixel_digest(reshaped)}) == 3


def test_exif_orientation_is_applied_so_that_a_straightened_copy_is_the_same_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = decode_image(encoded(noise(), "PNG", exif=exif))
    assert pixel_digest(turned) == pixel_digest(noise().transpose(Image.Transpose.ROTATE_270))


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((0, 0), (10, 20, 30, 0))
    decoded = decode_image(encoded(image, "PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_an_image_above_the_pixel_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 62)
    with pytest.raises(UnreadableImageError, match="63 pixels"):
        decode_image(encoded(noise(), "PNG"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above its limit, and raises above twice its limit
def test_pillows_own_bomb_limit_is_an_error_too(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode_image(encoded(noise(), "PNG"))


def test_only_the_accepted_formats_are_decoded_whatever_the_file_is_called(tmp_path):
    file = tmp_path / "harmless.png"
    noise().save(file, "PPM")
    with pytest.raises(UnreadableImageError, match="known format"):
        decode_image(file)


# Files of several pictures


SAVED = {
    "stack.tif": {},
    "film.gif": {"duration": 10},
    "film.webp": {"duration": 10, "lossless": True},
    "film.png": {"duration": 10},
}


@pytest.fixture
def several(picture):
    """several(path, count, first): write a file of so many pictures."""

    def write(path, count=3, first=900):
        first, *others = [picture(first + number, (20, 16)) for number in range(count)]
        first.save(path, save_all=True, append_images=others, **SAVED.get(path.name, {}))
        return path

    return write


@pytest.fixture
def films(tmp_path, fill, several):
    """Two classes of six images, and four files of several pictures."""
    fill(tmp_path / "cat", 0, 6)
    fill(tmp_path / "dog", 50, 6)
    for number, name in enumerate(SAVED):
        several(tmp_path / ("cat" if number % 2 else "dog") / name, 3, 900 + 10 * number)
    return tmp_path


@pytest.mark.parametrize("name", SAVED)
def test_frames_are_counted_and_the_first_is_taken(several, tmp_path, picture, name):
    found = decode_picture(several(tmp_path / name))
    assert found.frames == 3
    if not name.endswith("gif"):  # whose palette has 256 colours
        assert found.image.tobytes() == picture(900, (20, 16)).tobytes()


@pytest.mark.parametrize("name", SAVED)
def test_a_site_may_refuse_such_files(several, tmp_path, name):
    with pytest.raises(UnreadableImageError, match="several pictures") as raised:
        decode_image(several(tmp_path / name), PixelRules(frames="refuse"))
    assert raised.value.code == "SEVERAL_FRAMES"
    assert 'frames = "first"' in raised.value.advice


@pytest.mark.parametrize("name", SAVED)
def test_a_file_of_one_picture_is_none_of_them(several, tmp_path, name):
    assert decode_picture(several(tmp_path / name, 1), PixelRules(frames="refuse")).frames == 1


def test_the_data_set_says_how_many_and_of_which_kind(films):
    (problem,) = pool_of(films, test_fraction=0).problems
    assert problem.code == "SEVERAL_FRAMES"
    for text in ("4 of 16 files", "1 .gif, 1 .png, 1 .tif, 1 .webp", "12 pictures", "'dog/stack.tif'", '"refuse"'):
        assert text in problem.message


def test_refused_files_are_left_out_and_named(films):
    pool = pool_of(films, frames="refuse")
    assert len(pool.records) == 12
    assert {problem.code for problem in pool.problems} == {"SEVERAL_FRAMES"}
    assert set(pool.unreadable) == {"dog/stack.tif", "cat/film.gif", "dog/film.webp", "cat/film.png"}


def test_a_tiffs_preview_is_no_second_picture(tmp_path, picture):
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "x.tif")) as file:
        for image, kind in ((picture(1, (20, 16)), 0), (picture(1, (10, 8)), 1)):
            image.save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()
    assert decode_picture(tmp_path / "x.tif").frames == 1


def test_a_second_view_in_a_jpeg_is_part_of_its_picture(tmp_path, picture):
    picture(1).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[picture(2)])
    assert decode_picture(tmp_path / "x.jpg", PixelRules(frames="refuse")).frames == 1


def test_a_film_that_is_cut_off_after_its_first_picture_is_still_several(several, tmp_path):
    whole = several(tmp_path / "film.gif").read_bytes()
    cut = whole[: len(whole) - 200]
    assert decode_picture(cut).frames > 1
    with pytest.raises(UnreadableImageError):
        decode_picture(cut, PixelRules(frames="refuse"))


def test_turned_by_exif_as_well_as_one_of_several(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    first = picture(1, (20, 16))
    first.save(tmp_path / "film.png", save_all=True, append_images=[picture(2, (20, 16))], exif=exif)
    found = decode_picture(tmp_path / "film.png")
    assert found.frames == 2
    assert found.image.tobytes() == first.transpose(Image.Transpose.ROTATE_180).tobytes()
