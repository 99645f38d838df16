"""Curves for TensorBoard, without TensorBoard: its event files are length, checksum and a few protobuf fields.

MLflow would bring a web server, a database layer and some fifty packages; TensorBoard's own package a dozen. The format
itself is fixed and small (tensorflow/core/util/event.proto, tensorflow/core/lib/io/record_writer.cc), so it is written
here: ``Event{wall_time: 1, step: 2, file_version: 3, summary: 5 {value: 1 {tag: 1, simple_value: 2}}}``.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpfpl_common.ops.files import write_durably
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.runs.result import mean, privacy_statement

__all__ = ["event_record", "read_records", "write_curves"]

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK = 0xA282EAD8


def write_curves(folder: RunFolder, out: Path) -> Path:
    """Write one event file with all rounds of a run so far, replacing the earlier one, and return its path.

    Curves: seconds, bytes and accepted sites of each round, accuracies that sites let out, epsilon by adversary.
    """
    experiment = folder.experiment()
    rounds = folder.store.rounds()
    start = _wall_time(folder)
    records = [event_record(start, 0, None)]
    elapsed = start
    for entry in rounds:
        elapsed += entry["seconds"] or 0.0
        values = _values(entry) if experiment.privacy.site_sample_rate >= 1 else {}
        for said in privacy_statement(experiment, entry["round"])["epsilons"]:
            if said["epsilon"] != "infinite":
                values[f"epsilon/{said['adversary']}"] = said["epsilon"]
        records.append(event_record(elapsed, entry["round"], values))
    target = out / experiment.name
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"events.out.tfevents.{int(start)}.dpfpl"
    write_durably(path, b"".join(records), 0o644)
    return path


def event_record(wall_time: float, step: int, values: Mapping[str, float] | None) -> bytes:
    """One record: an event with these scalars, or the file's first one, which names the format, for ``None``."""
    event = b"\x09" + struct.pack("<d", wall_time)
    if values is None:
        event += _field(3, b"brain.Event:2")
    else:
        event += b"\x10" + _varint(step)
        summary = b"".join(
            _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items()
        )
        event += _field(5, summary)
    header = struct.pack("<Q", len(event))
    return header + _masked_crc(header) + event + _masked_crc(event)


def read_records(content: bytes) -> Iterable[bytes]:
    """The events of a file, checked; for tests.

    Raises:
        ValueError: a checksum is wrong or the file is cut.
    """
    at = 0
    while at < len(content):
        header = content[at : at + 8]
        (length,) = struct.unpack("<Q", header)
        event = content[at + 12 : at + 12 + length]
        end = at + 12 + length
        if content[at + 8 : at + 12] != _masked_crc(header) or content[end : end + 4] != _masked_crc(event):
            raise ValueError("a record is damaged")
        yield event
        at = end + 4


def _values(entry: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {
        "round/seconds": entry["seconds"],
        "round/bytes_up": entry["bytes_up"],
        "round/bytes_down": entry["bytes_down"],
        "round/sites": len(entry["sites"]),
        "round/dropped": len(entry["dropped"]),
    }
    kinds = sorted({kind for metrics in entry["metrics"].values() for kind in metrics})
    for kind in kinds:
        value = mean(metrics.get(kind) for metrics in entry["metrics"].values())
        if value is not None:
            values[f"accuracy/{kind}"] = value
    return values


def _wall_time(folder: RunFolder) -> float:
    attempts = folder.store.attempts()
    return attempts[0].started if attempts else (folder.path / "experiment.json").stat().st_mtime


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        rows.append(crc)
    return tuple(rows)


_CRC_TABLE = _table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
