"""Every line of docs/results/attacks.md: what a malicious operator tries, and that it gets what stands there."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.privacy]

ROOT = Path(__file__).parents[2]


def test_a_malicious_operator_gets_what_the_document_says(tmp_path):
    """Played as ``make attacks`` does; exit code 1 says that an attack got what it must not."""
    program = [sys.executable, ROOT / "tests/attacks/adversarial_operator.py", "--out", tmp_path / "attacks.md"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "attacks.md").read_text() == (ROOT / "docs/results/attacks.md").read_text(), "make attacks"
