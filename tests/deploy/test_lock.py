"""The lock holds a hash for every pin, and nothing without one."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("lock", ROOT / "deploy/lock.py")
assert spec is not None
assert spec.loader is not None
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)


def entry(name: str, digest: str | None) -> dict[str, object]:
    info = {"archive_info": {"hashes": {"sha256": digest}} if digest else {}}
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": info}


def test_every_pin_has_its_hash() -> None:
    lines = lock.locked({"install": [entry("b", "2" * 64), entry("A", "1" * 64)]})
    assert lines == [f"A==1.0 --hash=sha256:{'1' * 64}", f"b==1.0 --hash=sha256:{'2' * 64}"]


def test_a_file_without_a_hash_ends_it() -> None:
    with pytest.raises(ValueError, match="no SHA-256 of b"):
        lock.locked({"install": [entry("b", None)]})
