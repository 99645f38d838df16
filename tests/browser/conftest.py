"""Browser tests: where Chromium is found, one browser for all of them; elsewhere they are skipped with that reason."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
sys.path.insert(0, str(Path(__file__).parent))

from chromium import CHROMIUM, chromium, small_png

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 200_000


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium fonts-noto-cjk)")
    with chromium() as running:
        yield running


@pytest.fixture
def picture():
    """Keeps a picture for docs/images/ when ``make screenshots`` asks for it; checks that it is not blank."""

    def keep(tab, name):
        content = small_png(tab.screenshot())
        assert len(content) > 5_000, f"{name} is blank"
        assert len(content) < LARGEST, f"{name} has {len(content)} bytes"
        if os.environ.get("DPFPL_SCREENSHOTS"):
            folder = ROOT / "docs" / "images"
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(content)

    return keep


@pytest.fixture(scope="session")
def demo_result():
    """What a run of ``make demo`` left, kept in docs/demo/ for these pictures."""
    return json.loads((ROOT / "docs" / "demo" / "result.json").read_text())
