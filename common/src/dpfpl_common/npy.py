"""Reads a context array that Flower carries as .npy bytes, without trusting any header."""

import re
from typing import Protocol

from dpfpl_common.errors import PayloadError
from dpfpl_common.fields import context_from_bytes
from dpfpl_common.payload import Context

__all__ = ["SerialisedArray", "context_from_array", "context_from_npy"]

_MAGIC = b"\x93NUMPY\x01\x00"
_MAX_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9]{1,12}), ([0-9]{1,12})\), \} *\n"
)


class SerialisedArray(Protocol):
    """What Flower's ``Array`` holds; every field is the sender's claim."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def context_from_array(array: SerialisedArray, shape: tuple[int, int], name: str) -> Context:
    """The values of a Flower array, whose own ``numpy()`` would believe the header.

    Returns:
        float32 [num_context, width], finite, writable.
    """
    if array.stype != "numpy.ndarray" or array.dtype != "float32":
        raise PayloadError(code="WRONG_DTYPE", message=f"{name} must be a float32 array in .npy format.")
    if tuple(array.shape) != shape:
        raise PayloadError(code="WRONG_SHAPE", message=f"{name} has shape {str(array.shape)[:60]}, expected {shape}.")
    return context_from_npy(array.data, shape, name)


def context_from_npy(data: object, shape: tuple[int, int], name: str) -> Context:
    """The array in ``data``, .npy format 1.0.

    The header is matched against the one form that numpy writes for a plain matrix and is never evaluated; what it
    declares is compared with the expected shape and with the number of bytes present before anything is allocated.

    Returns:
        float32 [num_context, width], finite, writable.
    """
    if not isinstance(data, bytes):
        raise PayloadError(code="WRONG_TYPE", message=f"{name} must be bytes.")
    start = len(_MAGIC) + 2
    length = int.from_bytes(data[len(_MAGIC) : start], "little")
    if not data.startswith(_MAGIC) or length > _MAX_HEADER:
        raise PayloadError(code="BAD_ARRAY_HEADER", message=f"{name} is not an array in .npy format 1.0.")
    header = _HEADER.fullmatch(data[start : start + length])
    if header is None:
        raise PayloadError(code="BAD_ARRAY_HEADER", message=f"{name} is not a plain two-dimensional array.")
    dtype, fortran_order, rows, columns = header.groups()
    if dtype != b"<f4" or fortran_order != b"False":
        raise PayloadError(code="WRONG_DTYPE", message=f"{name} must be a C-ordered float32 array.")
    return context_from_bytes(memoryview(data)[start + length :], (int(rows), int(columns)), shape, name)
