"""The scripts of deploy/container, which no distribution contains."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Load ``deploy/<path>.py`` as a module."""

    def load(path: str) -> ModuleType:
        name = f"deploy_{path.replace('/', '_')}"
        spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / f"{path}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def _umask_as_before() -> Iterator[None]:
    """The containers' first processes set one for good; here other tests follow in the same process."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
