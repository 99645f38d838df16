"""DICOM and HEIC: shown as the file says, and nothing of a header ever kept, logged or sent.

The files are those that pydicom brings along, and small ones made here.
"""

import io
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)
from site_images import codes, only, pool_of

from dpfpl_client.data import DataSettings, decode, load_site_data, read_pool
from dpfpl_client.data.decode import PixelRules, UnreadableImageError, decode_image, decode_picture
from dpfpl_common.errors import DataError

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NAME = "Secretly^Patient"


def made(pixels, syntax=ExplicitVRLittleEndian, **elements):
    """The bytes of a DICOM file with these pixels [height, width] or [frames, height, width], and elements."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.PatientName, data.PatientID, data.StudyDescription = NAME, "ID-4711", "Secret study"
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(content, **rules):
    return np.asarray(decode_image(content, PixelRules(**rules)))[..., 0]


def ramp(kind=np.uint16, step=1, first=0):
    return (first + step * np.arange(64)).astype(kind).reshape(8, 8)


def shown(values, black, white):
    return np.rint(np.clip((values.astype(float) - black) / (white - black), 0, 1) * 255)


def test_the_first_window_is_what_is_shown():
    content = made(ramp(step=60), BitsStored=12, WindowCenter=[1000, 3000], WindowWidth=[501, 100])
    assert np.array_equal(grey(content), shown(ramp(step=60), 749.5, 1249.5))


def test_rescale_comes_before_the_window():
    stored = ramp(step=60)
    content = made(stored, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=401)
    assert np.array_equal(grey(content), shown(2.0 * stored - 1024, -160.5, 239.5))


def test_an_exact_window_and_a_sigmoid():
    stored = ramp(step=60)
    exact = made(stored, WindowCenter=1000, WindowWidth=500, VOILUTFunction="LINEAR_EXACT")
    assert np.array_equal(grey(exact), shown(stored, 750, 1250))
    sigmoid = made(stored, WindowCenter=1000, WindowWidth=500, VOILUTFunction="SIGMOID")
    assert np.array_equal(grey(sigmoid), np.rint(255 / (1 + np.exp(-4 * (stored - 1000.0) / 500))))


def test_monochrome1_is_turned_round():
    content = made(ramp(step=60), BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(content), 255 - shown(ramp(step=60), 0, 4095))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_without_a_window_the_stored_bits_are_the_range(bits):
    assert np.array_equal(grey(made(ramp(step=15), BitsStored=bits)), shown(ramp(step=15), 0, 2**bits - 1))
    signed = ramp(np.int16, 12, -400)
    expected = shown(signed, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert np.array_equal(grey(made(signed, BitsStored=bits)), expected)


def test_the_smallest_and_largest_value_of_the_header_are_a_range():
    content = made(ramp(step=60), SmallestImagePixelValue=60, LargestImagePixelValue=2000)
    assert np.array_equal(grey(content), shown(ramp(step=60), 60, 2000))


def test_a_ct_without_a_window_shows_the_hounsfield_numbers_of_12_bits():
    stored = ramp(np.int16, 60)
    content = made(stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(grey(content), shown(stored - 1024.0, -1024, 3071))


def test_sixteen_stored_bits_that_say_nothing_follow_the_setting():
    assert np.array_equal(grey(made(ramp(step=60)), bits=12), shown(ramp(step=60), 0, 4095))
    assert np.array_equal(grey(made(ramp(step=60))), shown(ramp(step=60), 0, 65_535))


def test_several_frames_follow_the_rule_of_other_files():
    content = made(np.stack([ramp(step=60), ramp(step=9)]), BitsStored=12)
    assert decode_picture(content).frames > 1
    assert np.array_equal(grey(content), shown(ramp(step=60), 0, 4095))
    with pytest.raises(UnreadableImageError) as raised:
        decode_image(content, PixelRules(frames="refuse"))
    assert raised.value.code == "SEVERAL_FRAMES"


def test_the_first_frame_of_an_enhanced_file_has_the_window_of_its_functional_groups():
    window, group, transform = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 501
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, 100, "US"
    group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [transform]
    content = made(np.stack([ramp(step=60), ramp()]), SharedFunctionalGroupsSequence=[group])
    assert np.array_equal(grey(content), shown(ramp(step=60) + 100.0, 749.5, 1249.5))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("CT_small.dcm", (128, 128)),
        ("MR_small.dcm", (64, 64)),
        ("MR_small_RLE.dcm", (64, 64)),
        ("MR_small_bigendian.dcm", (64, 64)),
        ("MR_small_jp2klossless.dcm", (64, 64)),
        ("SC_rgb_jpeg.dcm", (256, 256)),
        ("SC_rgb_rle_16bit.dcm", (100, 100)),
        ("examples_palette.dcm", (800, 350)),
        ("examples_ybr_color.dcm", (320, 240)),
        ("liver_1frame.dcm", (512, 512)),
    ],
)
def test_files_of_other_programs(name, size):
    image = decode_image(FILES / name)
    assert (image.mode, image.size) == ("RGB", size)
    assert np.asarray(image).max() > 100
    assert decode_image((FILES / name).read_bytes()).tobytes() == image.tobytes()


def test_one_picture_in_four_encodings_is_one_picture():
    names = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless")
    assert len({decode.pixel_digest(decode_image(FILES / f"{name}.dcm")) for name in names}) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "compressed in a way"),
        ("JPEG-lossy.dcm", "damaged or compressed in a way"),
        ("image_dfl.dcm", "compressed as a whole"),
        ("rtplan.dcm", "without a picture"),
        ("rtdose_1frame.dcm", "more than 16 bits"),
        ("MR_truncated.dcm", "cannot be decoded"),
    ],
)
def test_what_cannot_be_shown_says_why(name, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(FILES / name)


def test_a_file_that_unpacks_to_gigabytes_is_refused_before_it_does():
    with pytest.raises(UnreadableImageError, match="compressed as a whole"):
        decode_image(made(np.zeros((8, 8), np.uint16), DeflatedExplicitVRLittleEndian))


def test_too_many_pixels_are_refused_before_they_are_read():
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode_image(made(ramp(), Rows=60_000, Columns=60_000))


@pytest.fixture
def clinic(tmp_path):
    """Two classes of DICOM files: with and without an extension, and a list of them as media have."""
    for label, first in (("ill", 0), ("well", 50)):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(first, first + 6):
            pixels = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
            name = f"IM{number:06}" if number % 2 else f"{number}.dcm"
            (tmp_path / "scans" / label / name).write_bytes(made(pixels, BitsStored=12))
    (tmp_path / "scans" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "scans" / "ill" / "1.2.840.113").write_bytes(
        made(np.full((9, 9), 77, np.uint16), BitsStored=12, WindowCenter=80, WindowWidth=100)
    )
    (tmp_path / "scans" / "ill" / "README").write_text("no image")
    return tmp_path / "scans"


def test_a_folder_of_dicom_files_is_a_data_set(clinic):
    data = load_site_data(DataSettings("folder", str(clinic)), ["ill", "well"])
    assert len(data.train) + len(data.test) == 13
    assert set(codes(data)) == {"UNSUPPORTED_FILES", "RANGE_UNUSED"}
    assert "1 without extension" in only(data, "UNSUPPORTED_FILES")


def test_nothing_of_a_header_is_kept_logged_or_told(clinic, tmp_path, capfd, caplog, monkeypatch):
    """Headers name patients: not in the index, the records, the problems, the log or what pydicom would warn about."""
    monkeypatch.setattr(logging.lastResort, "level", logging.DEBUG)
    bad = bytearray(made(ramp(), WindowCenter=1, WindowWidth=2, AccessionNumber="SECNO"))
    (clinic / "ill" / "cut.dcm").write_bytes(bytes(bad)[:-40])
    (clinic / "ill" / "badvalue.dcm").write_bytes(bytes(bad).replace(b"1.0 ", b"XSEC", 1))
    (clinic / "ill" / "baduid.dcm").write_bytes(bytes(bad).replace(b"1.2.3.4", b"SECRETU"))
    (clinic / "ill" / "numbers.dcm").write_bytes(bytes(bad).replace(b"2.0 ", b"SECR"))
    for name in ("badVR.dcm", "reportsi.dcm", "UN_sequence.dcm"):
        (clinic / "ill" / name).write_bytes((FILES / name).read_bytes())
    index = tmp_path / "images.json"
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        pool = read_pool(DataSettings("folder", str(clinic)), None, index)
        images = [record.open() for record in pool.records]
    out, err = capfd.readouterr()
    told = [out, err, caplog.text, index.read_text(), repr(pool), *(str(w.message) for w in warned)]
    told += [repr(image.info) + repr(getattr(image, "text", "")) for image in images]
    told = [re.sub(r"[0-9]{15,}|[0-9a-f]{64}", "", text) for text in told]  # times and digests hold any four digits
    for secret in ("Secret", "SEC", "ID-4711", "4711", NAME, "1.2.3.4"):
        assert not [text for text in told if secret in text]
    assert not warned


def test_an_error_does_not_carry_the_header_along(clinic):
    """Also not in the exception's chain, which a traceback would print."""
    content = made(ramp(), WindowCenter=1, WindowWidth=2).replace(b"1.0 ", b"@SEC")
    with pytest.raises(UnreadableImageError) as raised:
        decode_image(content)
    assert "SEC" not in repr(raised.value) + str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.fixture
def without(monkeypatch):
    """without(package): as if it were not installed."""
    original = decode.importlib.util.find_spec

    def hide(package):
        monkeypatch.setattr(
            decode.importlib.util, "find_spec", lambda name: None if name == package else original(name)
        )

    return hide


def test_without_pydicom_the_files_are_counted_and_the_extra_is_named(clinic, without, fill):
    without("pydicom")
    fill(clinic / "ill", 200, 8)
    message = only(pool_of(clinic), "DICOM_MISSING")
    assert "6 files" in message
    assert "dpfpl-client[dicom]" in message
    with pytest.raises(UnreadableImageError) as raised:
        decode_image(made(ramp()))
    assert (raised.value.code, "dpfpl-client[dicom]" in raised.value.advice) == ("DICOM_MISSING", True)


def test_a_data_set_of_dicom_alone_without_pydicom_says_what_to_install(clinic, without):
    without("pydicom")
    with pytest.raises(DataError, match=r"dpfpl-client\[dicom\]"):
        pool_of(clinic)


def test_the_decoder_is_not_loaded_for_other_files(tmp_path, picture):
    import subprocess

    picture(1).save(tmp_path / "x.png")
    script = (
        "import sys; from pathlib import Path; from dpfpl_client.data.decode import decode_image; "
        "decode_image(Path(sys.argv[1])); sys.exit(bool({'pydicom', 'pillow_heif'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "x.png"], check=False).returncode == 0


# HEIC


@pytest.fixture
def heic():
    """heic(image, ...): the bytes of a HEIC file; skipped where the encoder is missing."""
    pillow_heif = pytest.importorskip("pillow_heif")

    def encode(image, **options):
        pillow_heif.register_heif_opener()
        buffer = io.BytesIO()
        image.save(buffer, "HEIF", quality=-1, **options)
        return buffer.getvalue()

    return encode


def test_a_heic_photo_is_read_upright(heic, picture):
    wide = picture(1, (8, 6)).resize((64, 48))  # smooth: colours are stored at half the size
    decoded = decode_image(heic(wide))
    assert decoded.size == (64, 48)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(wide)).mean() < 10
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(decode_image(heic(wide, exif=exif.tobytes())))
    expected = np.asarray(wide.transpose(Image.Transpose.ROTATE_270))
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(int) - expected).mean() < 10


def test_several_pictures_in_a_heic_file_follow_the_rule(heic, picture):
    content = heic(picture(1, (64, 48)), save_all=True, append_images=[picture(2, (64, 48))])
    assert decode_picture(content).frames == 2
    with pytest.raises(UnreadableImageError):
        decode_image(content, PixelRules(frames="refuse"))


def test_heic_photos_are_images_of_a_folder_where_the_extra_is_installed(heic, tmp_path, picture, fill, without):
    fill(tmp_path / "cat", 0, 6)
    for number in range(50, 56):
        (tmp_path / "dog").mkdir(exist_ok=True)
        (tmp_path / "dog" / f"IMG_{number}.HEIC").write_bytes(heic(picture(number, (64, 48))))
    assert len(pool_of(tmp_path).records) == 12
    without("pillow_heif")
    message = only(pool_of(tmp_path), "HEIC_MISSING")
    assert "6 files" in message
    assert "dpfpl-client[heic]" in message


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLosslessSV1, HTJ2KLossless])
def test_a_compressed_file_that_no_decoder_reads_says_what_to_install(syntax):
    data = pydicom.dcmread(io.BytesIO(made(ramp())))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    data.save_as(buffer)
    with pytest.raises(UnreadableImageError, match="compressed in a way") as raised:
        decode_image(buffer.getvalue())
    assert raised.value.code == "DICOM_COMPRESSED"
    assert "python-gdcm" in raised.value.advice


def test_values_in_the_high_bits_are_refused_and_not_nearly_black():
    data = pydicom.dcmread(io.BytesIO(made(ramp(step=16), BitsStored=12)))
    data.HighBit = 15
    buffer = io.BytesIO()
    data.save_as(buffer)
    with pytest.raises(UnreadableImageError, match="low bits"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize(("window", "slope"), [((512, 1024), 1.0), ((128, 256), 0.25)])
def test_each_frame_of_an_enhanced_file_has_its_own_window_and_slope(window, slope):
    def frame(centre, width, factor):
        shown, rescaled, item = Dataset(), Dataset(), Dataset()
        shown.WindowCenter, shown.WindowWidth = centre, width
        rescaled.RescaleSlope, rescaled.RescaleIntercept = factor, 0
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [shown], [rescaled]
        return item

    frames = [frame(*window, slope), frame(7, 3, 9.0)]
    content = made(np.stack([ramp(step=16), ramp()]), BitsStored=12, PerFrameFunctionalGroupsSequence=frames)
    black = window[0] - 0.5 - (window[1] - 1) / 2
    assert np.array_equal(grey(content), shown(ramp(step=16) * slope, black, black + window[1] - 1))
