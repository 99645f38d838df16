"""Fails when Flower changes what we patch: then read the change, look whether the patch still fits, note the digest."""

import hashlib
import importlib
import inspect
from pathlib import Path

import pytest

from dpfpl_client.node import flower_patches as at_a_site
from dpfpl_server import flower_patches as at_the_server

UPSTREAM = Path(__file__).parents[2] / "docs/reference/upstream.md"
PATCHES = [
    pytest.param(module, patch, id=patch.name) for module in (at_a_site, at_the_server) for patch in module.PATCHES
]


def source_digest(target: str) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of a target's source."""
    module, _, name = target.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("module", "patch"), PATCHES)
def test_flowers_code_is_what_the_patch_was_written_for(module, patch):
    assert patch.targets
    assert {target: source_digest(target) for target in patch.targets} == patch.targets


@pytest.mark.parametrize(("module", "patch"), PATCHES)
def test_a_patch_has_a_function_a_reason_and_a_text_for_flower(module, patch):
    assert inspect.isfunction(getattr(module, patch.name))
    assert len(patch.reason) > 40
    assert f"\n## {patch.upstream}\n" in UPSTREAM.read_text(encoding="utf-8")
