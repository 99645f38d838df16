"""Fails when Flower changes what we patch: then read the change, look whether the patch still fits, note the digest."""

import inspect
from pathlib import Path

import pytest

from dpfpl_common.ops.patches import Patch, changed_targets
from dpfpl_server import flower_patches

UPSTREAM = Path(__file__).parents[2] / "docs/reference/upstream.md"


@pytest.mark.parametrize("patch", flower_patches.PATCHES, ids=lambda patch: patch.name)
def test_flowers_code_is_what_the_patch_was_written_for(patch: Patch) -> None:
    assert patch.targets
    assert changed_targets(patch) == []


@pytest.mark.parametrize("patch", flower_patches.PATCHES, ids=lambda patch: patch.name)
def test_a_patch_has_a_function_a_reason_and_a_text_for_flower(patch: Patch) -> None:
    assert inspect.isfunction(getattr(flower_patches, patch.name))
    assert len(patch.reason) > 40
    assert f"\n## {patch.upstream}\n" in UPSTREAM.read_text(encoding="utf-8")
