import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpfpl_client.data import decode
from dpfpl_client.data.decode import UnreadableImageError, decode_image, pixel_digest


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


def test_sixteen_bit_grey_is_scaled_and_not_cut_off():
    grey = Image.fromarray(np.array([[0, 257 * 100, 65_535]], dtype=np.uint16))
    decoded = decode_image(encoded(grey, "PNG"))
    assert [decoded.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_thirty_two_bit_values_are_refused():
    with pytest.raises(UnreadableImageError, match="32 bits"):
        decode_image(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def test_the_first_of_several_frames_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    decoded = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((0, 0)) == (255, 0, 0)


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


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"not an image", b"GIF89a", b"BM", b"\xff\xd8\xff"])
def test_a_torso_is_unreadable(content):
    with pytest.raises(UnreadableImageError):
        decode_image(content)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damage_gives_an_image_or_our_error_and_nothing_else(kind, cut, flips):
    content = bytearray(encoded(noise(), kind))
    for place, value in flips:
        content[int(place * len(content))] = value
    try:
        image = decode_image(bytes(content[: int(cut * len(content))]))
    except UnreadableImageError:
        return
    assert image.mode == "RGB"
