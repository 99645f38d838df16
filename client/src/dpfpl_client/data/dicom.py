"""Decodes the first picture of a DICOM file to 8 bits, as its own header says it is to be shown.

The steps, each where the file asks for it: modality (rescale slope and intercept, or the modality LUT), then the first
VOI window (LINEAR, LINEAR_EXACT or SIGMOID), else the VOI LUT, else the smallest and largest value that the header
names, else for a CT -1024 to 3071 (the Hounsfield numbers that 12 bits hold), else the range of the stored bits; then
MONOCHROME1 is inverted. A file of 16 stored bits that says none of it follows ``[data] bits``, as other files of 16
bits do. The rule looks at one file alone.

A header names a patient. Only the elements that the steps need are read, and nothing of any of them is kept, logged or
sent, in messages neither: what pydicom would warn about or log is silenced, and its exceptions' texts are dropped.
"""

import logging
import math
import threading
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dpfpl_client.data.decode import Picture
from dpfpl_client.data.value_range import Range, scale

__all__ = ["COMPRESSED", "decode_dicom"]

_TAGS = [
    "Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue",
    "LargestImagePixelValue", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip

_PREAMBLE = 132
_WIDEST_BITS = 16
_HOUNSFIELD = (-1024.0, 3071.0)
COMPRESSED = "it is damaged or compressed in a way that is not read here"
_NO_PICTURE = "it is a DICOM file without a picture"
_UNKNOWN_RANGE = "its values have more than 16 bits, and it does not say which are black and white"

# pydicom quotes what it reads.
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False
_QUIET = threading.Lock()
"""Warnings are switched off for all threads at once, so one file is decoded at a time."""


def decode_dicom(source: Path | bytes, bits: int, max_pixels: int) -> Picture | str:
    """The first picture, or why there is none, in words that say nothing of the header.

    Args:
        source: the file.
        bits: as many of an unsigned file of 16 stored bits are used, where the file does not say what is shown.
        max_pixels: of one picture.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                return _decode(file, bits, max_pixels)
        except PermissionError:
            raise
        except NotImplementedError:
            return COMPRESSED
        except Exception as error:  # noqa: BLE001  (no list is complete, and what got past one would quote the header)
            return f"it cannot be decoded as DICOM ({type(error).__name__})"


def _decode(file: BinaryIO, bits: int, max_pixels: int) -> Picture | str:
    file.seek(_PREAMBLE)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return "it is compressed as a whole; save it uncompressed"  # how large it gets is not known before
    file.seek(0)
    header = pydicom.dcmread(file, specific_tags=list(_TAGS))
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return _NO_PICTURE
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > max_pixels or rows * columns == 0:
        return f"it has {'no' if rows * columns == 0 else f'more than {max_pixels:,}'} pixels"
    if not get_decoder(header.file_meta.TransferSyntaxUID).is_available:
        return COMPRESSED
    if "HighBit" in header and int(header.HighBit) != int(header.BitsStored) - 1:
        return "its values are not stored in the low bits, as files before 2000 may have them; convert it"
    frames = 2 if int(header.get("NumberOfFrames") or 1) > 1 else 1  # how many is the header's business
    try:
        values = pixel_array(header, index=0)
    except RuntimeError:  # what every decoder's exception becomes
        return COMPRESSED
    colours = int(header.get("SamplesPerPixel") or 1)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(values, header)
        return Picture(_rgb(scale(coloured, 0, np.iinfo(coloured.dtype).max)), frames)
    if colours == 3:
        return Picture(_rgb(scale(values, 0, 2 ** int(header.BitsStored) - 1)), frames)
    if colours != 1:
        return f"it has {colours} channels, expected 1 or 3"
    return _grey(header, values, frames, bits)


def _rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    """From [height, width] or [height, width, 3]."""
    return Image.fromarray(pixels).convert("RGB")


def _grey(header: Any, stored: NDArray[Any], frames: int, bits: int) -> Picture | str:
    modality = _rescaled(header)
    values = modality(stored).astype(np.float64)
    shown = _shown(header, values, modality, bits)
    if isinstance(shown, str):
        return shown
    grey, black, white = shown
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    inside = np.clip([values.min(), values.max()], black, white)
    used = float(inside[1] - inside[0]) / (white - black)
    return Picture(_rgb(grey), frames, used, max(0, int(stored.max())))


def _shown(
    header: Any, values: NDArray[np.float64], modality: Callable[[NDArray[Any]], NDArray[Any]], bits: int
) -> tuple[NDArray[np.uint8], float, float] | str:
    """The values as grey, and which of them are black and white."""
    voi = _group(header, "FrameVOILUTSequence", "WindowCenter")
    centre, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        function = str(voi.get("VOILUTFunction") or "LINEAR")
        black, white = _window(centre, width, exact=function != "LINEAR")
        if function == "SIGMOID":
            return scale(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))), 0, 1), black, white
        return scale(values, black, white), black, white
    if voi.get("VOILUTSequence"):
        table = voi.VOILUTSequence[0].LUTDescriptor
        looked_up = apply_voi(values.astype(np.int64), voi)
        first = float(table[1])
        return scale(looked_up, 0, 2 ** int(table[2]) - 1), first, first + max(1, (int(table[0]) or 65536) - 1)
    if header.get("Modality") == "CT" and _first(header, "SmallestImagePixelValue") is None:
        return scale(values, *_HOUNSFIELD), *_HOUNSFIELD
    stored = _stored_range(header, bits)
    if isinstance(stored, str):
        return stored
    ends = modality(np.asarray(stored))
    black, white = float(ends.min()), float(ends.max())
    return (scale(values, black, white), black, white) if black < white else "its range of values is empty"


def _window(centre: float, width: float, *, exact: bool) -> Range:
    """The first value that is black and the first that is white (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if exact:
        return centre - width / 2, centre + width / 2
    half = max(width - 1, 1e-6) / 2
    return centre - 0.5 - half, centre - 0.5 + half


def _stored_range(header: Any, bits: int) -> tuple[int, int] | str:
    """The values before the modality step that are shown black and white, where the header has no window."""
    smallest, largest = _first(header, "SmallestImagePixelValue"), _first(header, "LargestImagePixelValue")
    if smallest is not None and largest is not None and smallest < largest:
        return int(smallest), int(largest)
    depth = int(header.get("BitsStored") or 0)
    if not 0 < depth <= _WIDEST_BITS or "PixelData" not in header:
        return _UNKNOWN_RANGE
    depth = min(depth, bits) if depth == _WIDEST_BITS else depth
    return (-(2 ** (depth - 1)), 2 ** (depth - 1) - 1) if header.get("PixelRepresentation") else (0, 2**depth - 1)


def _rescaled(header: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The modality step as a function of stored values."""
    rules = _group(header, "PixelValueTransformationSequence", "RescaleSlope")
    if header.get("ModalityLUTSequence"):
        return lambda stored: apply_modality_lut(stored, header)
    slope, intercept = _first(rules, "RescaleSlope"), _first(rules, "RescaleIntercept")
    if slope in (None, 0.0):
        return lambda stored: stored
    return lambda stored: stored * slope + (intercept or 0.0)


def _group(header: Any, group: str, name: str) -> Any:
    """Where the first picture's element stands: at the top, or in the functional groups of an enhanced file."""
    if name in header:
        return header
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        items = header.get(sequence)
        if items and items[0].get(group):
            return items[0][group][0]
    return header


def _first(header: Any, name: str) -> float | None:
    """The first number of an element; None where there is none."""
    value = header.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, list | tuple | pydicom.multival.MultiValue):
        if not value:
            return None
        value = value[0]
    number = float(value)
    return number if math.isfinite(number) else None
