"""Reads a context array that Flower carries as .npy bytes, without trusting any header."""

import re
from collections.abc import Mapping
from typing import Protocol, TypeVar

from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import context_from_bytes, matrix_from_bytes
from dpfpl_common.wire.payloads import Context

__all__ = [
    "CONTEXT",
    "EVALUATE_KEYS",
    "EVIDENCE",
    "GLOBAL_CONTEXT",
    "METRICS",
    "OK",
    "POOL",
    "REFUSED",
    "REPLY",
    "REPLY_KEYS",
    "REQUEST",
    "SUM",
    "SUM_KEYS",
    "SUM_REPLY_KEYS",
    "TRAIN_KEYS",
    "UPDATE",
    "SerialisedArray",
    "context_from_array",
    "context_from_npy",
    "exact_keys",
    "matrix_from_array",
    "typed",
]


# Names of the Flower records that carry the payloads, the same at server and site.
#
# ::
#
#     request   ArrayRecord  CONTEXT  {GLOBAL_CONTEXT} and, with evidence, {POOL}
#               ConfigRecord REQUEST  {protocol_version, experiment, round}, to train {evaluate, collect}, else {chosen}
#     reply     ArrayRecord  CONTEXT  {UPDATE} and, where asked for, {EVIDENCE}       only from training
#               MetricRecord METRICS  {exact accuracies by name, of public data}
#               ConfigRecord REPLY    {protocol_version, site, round, scores, signature,
#                                    status, code, rule, advice}
#     secure    ArrayRecord  CONTEXT  {GLOBAL_CONTEXT, POOL} where the step computes something, else empty
#     sum       ConfigRecord SUM      {protocol_version, experiment, sum, attempt, step, content}
#     its reply ConfigRecord SUM      {protocol_version, site, content, signature}
#     refusal   ConfigRecord REPLY    the same keys, status REFUSED


CONTEXT = "context"
GLOBAL_CONTEXT = "global_context"
UPDATE = "update"
POOL = "pool"
EVIDENCE = "evidence"
METRICS = "metrics"
REQUEST = "request"
SUM = "sum"
REPLY = "reply"

EVALUATE_KEYS = ("protocol_version", "experiment", "round", "chosen")
TRAIN_KEYS = ("protocol_version", "experiment", "round", "evaluate", "collect")
SUM_KEYS = ("protocol_version", "experiment", "sum", "attempt", "step", "content")
SUM_REPLY_KEYS = ("protocol_version", "site", "content", "signature")
REPLY_KEYS = ("protocol_version", "site", "round", "scores", "signature", "status", "code", "rule", "message", "advice")

OK = "ok"
REFUSED = "refused"

T = TypeVar("T")


def exact_keys(record: Mapping[str, object], keys: tuple[str, ...], what: str) -> None:
    """Refuse a record with a key too many or too few.

    Raises:
        PayloadError: UNKNOWN_FIELD or MISSING_FIELD, naming the key.
    """
    for key in record:
        if key not in keys:
            raise PayloadError(code="UNKNOWN_FIELD", message=f"{what} holds the unknown {str(key)[:40]!r}.")
    for key in keys:
        if key not in record:
            raise PayloadError(code="MISSING_FIELD", message=f"{what} lacks {key!r}.")


def typed(value: object, kind: type[T], what: str) -> T:
    """The value, if it is of exactly this type (True is no whole number here).

    Raises:
        PayloadError: WRONG_TYPE, naming what was expected.
    """
    if type(value) is not kind:
        raise PayloadError(code="WRONG_TYPE", message=f"{what} must be of type {kind.__name__}.")
    return value


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


def matrix_from_array(array: SerialisedArray, rows: int, name: str) -> Context:
    """As ``context_from_array`` for a matrix whose number of columns the sender decides."""
    if array.stype != "numpy.ndarray" or array.dtype != "float32":
        raise PayloadError(code="WRONG_DTYPE", message=f"{name} must be a float32 array in .npy format.")
    shape, content = _npy(array.data, name)
    if tuple(array.shape) != shape:
        raise PayloadError(code="WRONG_SHAPE", message=f"{name} has shape {str(array.shape)[:60]}, expected {shape}.")
    return matrix_from_bytes(content, shape, rows, name)


def context_from_npy(data: object, shape: tuple[int, int], name: str) -> Context:
    """The array in ``data``, .npy format 1.0.

    The header is matched against the one form that numpy writes for a plain matrix and is never evaluated; what it
    declares is compared with the expected shape and with the number of bytes present before anything is allocated.

    Returns:
        float32 [num_context, width], finite, writable.
    """
    declared, content = _npy(data, name)
    return context_from_bytes(content, declared, shape, name)


def _npy(data: object, name: str) -> tuple[tuple[int, int], memoryview]:
    """The shape that a .npy header declares, and the values behind it."""
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
    return (int(rows), int(columns)), memoryview(data)[start + length :]
