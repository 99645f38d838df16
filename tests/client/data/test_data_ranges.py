"""Files with more than 8 bits a channel: which values are black and white, from the file or a setting alone."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from site_images import codes, only, pool_of

from dpfpl_client.data import DataSettings, read_pool, value_range
from dpfpl_client.data.decode import PixelRules, UnreadableImageError, decode_image

BITS_PER_SAMPLE, DESCRIPTION, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 270, 281, 339


def values(bits, number=0, size=(12, 10)):
    """Numbers of so many bits, with the smallest and the largest among them."""
    found = np.random.default_rng(number).integers(0, 2**bits, size[::-1]).astype(np.uint16)
    found[0, :2] = 0, 2**bits - 1
    return found


def eight_bits(found, white):
    return np.rint(found.astype(float) * 255 / white).astype(np.uint8)


def grey(image):
    return np.asarray(image)[..., 0]


def with_chunk(file, kind, content):
    """Put a chunk into a PNG, before its pixels."""
    whole = file.read_bytes()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    file.write_bytes(whole[:33] + chunk + whole[33:])
    return file


def png(path, found, significant=None):
    Image.fromarray(found).save(path)
    return path if significant is None else with_chunk(path, b"sBIT", bytes([significant]))


def tiff(path, found, **tags):
    Image.fromarray(found).save(path, tiffinfo={globals()[name]: value for name, value in tags.items()})
    return path


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_png_says_by_sbit_how_many_bits_its_numbers_have(tmp_path, bits):
    found = values(bits)
    assert np.array_equal(grey(decode_image(png(tmp_path / "x.png", found, bits))), eight_bits(found, 2**bits - 1))


@pytest.mark.parametrize("repeat", [False, True], ids=["shifted", "high bits repeated"])
def test_numbers_that_sbit_spreads_over_16_bits_as_the_standard_wants_are_left_as_they_are(tmp_path, repeat):
    found = values(12)
    found[found > 200] = 200  # a dark picture: all values end up below 4096
    spread = (found << 4) | (found >> 8 if repeat else 0)
    assert np.array_equal(grey(decode_image(png(tmp_path / "x.png", spread, 12))), eight_bits(spread, 65_535))


def test_a_chunk_before_sbit_and_one_that_lies_about_its_length_do_no_harm(tmp_path):
    found = values(12)
    file = with_chunk(png(tmp_path / "x.png", found, 12), b"gAMA", struct.pack(">I", 45_455))
    assert np.array_equal(grey(decode_image(file)), eight_bits(found, 4095))
    broken = bytearray(file.read_bytes())
    broken[33:37] = b"\xff\xff\xff\xff"
    with pytest.raises(UnreadableImageError):
        decode_image(bytes(broken))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_tiff_says_by_max_sample_value_what_is_white(tmp_path, bits):
    file = tiff(tmp_path / "x.tif", values(bits), MAX_SAMPLE_VALUE=2**bits - 1)
    assert np.array_equal(grey(decode_image(file)), eight_bits(values(bits), 2**bits - 1))


def test_a_max_sample_value_that_a_value_exceeds_is_wrong_and_not_used(tmp_path):
    file = tiff(tmp_path / "x.tif", values(14), MAX_SAMPLE_VALUE=4095)
    assert np.array_equal(grey(decode_image(file)), eight_bits(values(14), 65_535))


def test_the_display_range_of_imagej_is_used(tmp_path):
    found = values(12)
    text = "ImageJ=1.54f\nimages=1\nmin=100.0\nmax=2000.0\n"
    file = tiff(tmp_path / "x.tif", found, DESCRIPTION=text, MAX_SAMPLE_VALUE=4095)
    expected = np.rint(np.clip((found.astype(float) - 100) / 1900, 0, 1) * 255)
    assert np.array_equal(grey(decode_image(file)), expected)


@pytest.mark.parametrize(
    "text", ["min=0\nmax=99\n", "ImageJ=1\nmin=9\nmax=9\n", "ImageJ=1\nmin=nan\nmax=9\n", "ImageJ="]
)
def test_another_programs_words_and_an_empty_range_are_no_display_range(tmp_path, text):
    assert np.array_equal(grey(decode_image(tiff(tmp_path / "x.tif", values(16), DESCRIPTION=text))),
                          eight_bits(values(16), 65_535))  # fmt: skip


def raw_tiff(strips, width, height, bits, photometric=1, samples=1, byte_order="<", more=()):
    """A TIFF as Pillow does not write it: strips of bytes, each of so many bits a sample, and further tags."""
    form = {3: "H", 4: "I"}
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
            277: (3, [samples]), 278: (4, [height]), 279: (4, [*map(len, strips)]), **dict(more)}  # fmt: skip
    places = [8 + sum(map(len, strips[:n])) for n in range(len(strips))]
    tags[273] = (4, places)
    directory = 8 + sum(map(len, strips))
    entries, behind, end = b"", b"", directory + 2 + 12 * len(tags) + 4
    for tag, (kind, found) in sorted(tags.items()):
        content = struct.pack(f"{byte_order}{len(found)}{form[kind]}", *found)
        if len(content) > 4:
            behind, content = behind + content, struct.pack(f"{byte_order}I", end + len(behind))
        entries += struct.pack(f"{byte_order}HHI", tag, kind, len(found)) + content.ljust(4, b"\0")
    head = struct.pack(f"{byte_order}2sHI", b"II" if byte_order == "<" else b"MM", 42, directory)
    return head + b"".join(strips) + struct.pack(f"{byte_order}H", len(tags)) + entries + bytes(4) + behind


def packed_tiff(found):
    """12 bits a sample."""
    height, width = found.shape
    pairs = found.reshape(-1, 2).astype(np.uint32)
    bits = ((pairs[:, 0] << 12) | pairs[:, 1])[:, None] >> np.array([16, 8, 0]) & 255
    return raw_tiff([bits.astype(np.uint8).tobytes()], width, height, 12)


def test_a_tiff_that_packs_12_bits_has_12_bits():
    assert np.array_equal(grey(decode_image(packed_tiff(values(12)))), eight_bits(values(12), 4095))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_that_says_nothing_follows_the_setting(tmp_path, suffix):
    Image.fromarray(values(12)).save(tmp_path / f"x.{suffix}")
    decoded = decode_image(tmp_path / f"x.{suffix}", PixelRules(bits=12))
    assert np.array_equal(grey(decoded), eight_bits(values(12), 4095))
    assert np.array_equal(grey(decode_image(tmp_path / f"x.{suffix}")), eight_bits(values(12), 65_535))


def test_what_the_file_says_comes_before_the_setting(tmp_path):
    file = tiff(tmp_path / "x.tif", values(12), MAX_SAMPLE_VALUE=4095)
    assert np.array_equal(grey(decode_image(file, PixelRules(bits=14))), eight_bits(values(12), 4095))


def test_values_above_the_setting_are_refused_and_not_cut_off(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"values up to 16383.*ends at 4095") as raised:
        decode_image(png(tmp_path / "x.png", values(14)), PixelRules(bits=12))
    assert raised.value.code == "WRONG_BITS"
    assert "device" in raised.value.advice


@pytest.mark.parametrize("white", [4095, None])
def test_a_tiff_of_16_bits_in_which_0_is_white_is_no_negative(white):
    found = values(12 if white else 16)
    more = [(MAX_SAMPLE_VALUE, (3, [white]))] if white else []
    decoded = grey(decode_image(raw_tiff([found.tobytes()], 12, 10, 16, photometric=0, more=more)))
    assert np.array_equal(decoded, 255 - eight_bits(found, white or 65_535))


@pytest.mark.parametrize("photometric", [0, 1])
def test_signed_bytes_are_not_read_as_unsigned_ones(photometric):
    content = raw_tiff([np.zeros((4, 6), np.int8).tobytes()], 6, 4, 8, photometric, more=[(SAMPLE_FORMAT, (3, [2]))])
    with pytest.raises(UnreadableImageError) as raised:
        decode_image(content)
    assert raised.value.code in ("SIGNED_VALUES", "CORRUPT_IMAGE")  # Pillow opens one of the two


@pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 8), (np.uint16, 16)])
def test_planes_of_colours_are_read_rightly_or_refused(kind, bits):
    found = np.random.default_rng(0).integers(0, 2**bits, (4, 6, 3)).astype(kind)
    planes = [found[..., n].tobytes() for n in range(3)]
    content = raw_tiff(planes, 6, 4, bits, 2, 3, more=[(284, (3, [2]))])
    if bits == 8:
        assert np.array_equal(np.asarray(decode_image(content)), found)
        return
    with pytest.raises(UnreadableImageError, match="separate planes"):
        decode_image(content)


def test_signed_16_bit_values_are_called_by_their_name(tmp_path):
    with pytest.raises(UnreadableImageError, match="signed numbers of 16 bits") as raised:
        decode_image(tiff(tmp_path / "x.tif", values(12), SAMPLE_FORMAT=2))
    assert raised.value.code == "SIGNED_VALUES"
    assert "unsigned" in raised.value.advice


def test_signed_values_with_a_display_range_are_shown(tmp_path):
    signed = np.array([[-1000, 0, 1000]], dtype=np.int16).view(np.uint16)
    file = tiff(tmp_path / "x.tif", signed, SAMPLE_FORMAT=2, DESCRIPTION="ImageJ=1\nmin=-1000\nmax=1000\n")
    assert grey(decode_image(file)).tolist() == [[0, 128, 255]]


def test_fractions_of_32_bits_are_called_by_their_name(tmp_path):
    with pytest.raises(UnreadableImageError, match="fractions of 32 bits"):
        decode_image(tiff(tmp_path / "x.tif", np.ones((2, 2), np.float32)))


def wide_colours(path, found):
    """A PNG of 16-bit colours [height, width, 3], which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in found)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", found.shape[1], found.shape[0], 16, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    return path


def test_16_bit_colours_keep_their_upper_bits(tmp_path):
    found = np.random.default_rng(0).integers(0, 65_536, (4, 5, 3))
    assert np.array_equal(np.asarray(decode_image(wide_colours(tmp_path / "x.png", found))), found >> 8)


def test_16_bit_colours_of_12_bits_are_refused_and_not_nearly_black(tmp_path):
    file = wide_colours(tmp_path / "x.png", np.random.default_rng(0).integers(0, 4096, (4, 5, 3)))
    with pytest.raises(UnreadableImageError, match="12 of 16 bits"):
        decode_image(file, PixelRules(bits=12))
    with pytest.raises(UnreadableImageError, match="12 of 16 bits"):
        decode_image(with_chunk(file, b"sBIT", bytes([12, 12, 12])))


@pytest.fixture
def scans(tmp_path):
    """scans(bits): twelve files of 16 bits that use so many of them, in two classes."""

    def make(bits, **tags):
        for label, first in (("ill", 0), ("well", 50)):
            (tmp_path / "scans" / label).mkdir(parents=True)
            for number in range(first, first + 6):
                tiff(tmp_path / "scans" / label / f"{number}.tif", values(bits, number), **tags)
        return tmp_path / "scans"

    return make


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_range_used_by_less_than_a_quarter_is_a_warning_that_names_the_setting(scans, bits):
    text = only(pool_of(scans(bits)), "RANGE_UNUSED")
    assert "12 of 12 images" in text
    assert str(2**bits - 1) in text
    assert "[data] bits = 12" in text


@pytest.mark.parametrize(("bits", "options"), [(15, {}), (16, {}), (12, {"bits": 12}), (10, {"bits": 11})])
def test_a_range_that_is_used_is_no_warning(scans, bits, options):
    assert "RANGE_UNUSED" not in codes(pool_of(scans(bits), **options))


def test_a_declared_range_is_what_counts_for_the_warning(scans):
    assert "RANGE_UNUSED" not in codes(pool_of(scans(12, MAX_SAMPLE_VALUE=4095)))


def test_one_files_pixels_do_not_depend_on_another_file(scans, tmp_path):
    """The privacy of one example: a brighter neighbour must not change how this one is scaled."""
    folder = scans(12)
    before = {record.key: record.digest for record in pool_of(folder).records}
    Image.fromarray(values(16, 99)).save(folder / "ill" / "bright.tif")
    after = {record.key: record.digest for record in pool_of(folder).records}
    assert after.keys() - before.keys() == {"ill/bright.tif"}
    assert before.items() <= after.items()


def test_another_setting_makes_other_pictures_also_where_digests_are_remembered(scans, tmp_path):
    folder, index = scans(12), tmp_path / "images.json"
    first = read_pool(DataSettings("folder", str(folder)), None, index)
    second = read_pool(DataSettings("folder", str(folder), bits=12), None, index)
    assert not {record.digest for record in first.records} & {record.digest for record in second.records}
    assert all(record.open() for record in second.records)


def test_strips_give_what_the_whole_gives(monkeypatch):
    values = np.random.default_rng(3).integers(0, 2**16, (37, 11)).astype("<u2")
    whole = value_range.scale(values, 5.0, 60_000.0)
    monkeypatch.setattr(value_range, "STRIP_VALUES", 25)  # two rows, and one row at the end
    assert np.array_equal(value_range.scale(values, 5.0, 60_000.0), whole)
    assert whole.min() == 0
    assert whole.max() == 255
