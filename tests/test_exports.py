"""Every module says what it offers, and what it offers exists and is described."""

import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / name / "src" for name in ("common", "client", "server", "bench")]


def module_names() -> list[str]:
    """All modules of the four distributions, except generated ones and ``__main__``, which runs when imported."""
    names = []
    for source in SOURCES:
        for path in source.rglob("*.py"):
            parts = path.relative_to(source).with_suffix("").parts
            if path.stem != "__main__" and not path.stem.endswith(("_pb2", "_pb2_grpc")):
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


@pytest.mark.parametrize("name", module_names())
def test_module_offers_what_it_says(name: str) -> None:
    module = importlib.import_module(name)

    assert inspect.getdoc(module), f"{name} has no docstring"
    assert isinstance(getattr(module, "__all__", None), list), f"{name} has no explicit __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for exported in module.__all__:
        value = getattr(module, exported)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{exported} has no docstring"


def test_no_module_is_missed() -> None:
    """An empty list of parameters would pass the test above."""
    assert len(module_names()) > 60
