"""Every line of docs/results/attacks.md: what a malicious operator tries, and that it gets what stands there."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from adversarial_operator import ATTACKS, play, table

pytestmark = [pytest.mark.processes, pytest.mark.privacy]


@pytest.fixture(scope="module")
def outcomes():
    return play()


def test_a_malicious_operator_gets_what_the_document_says(outcomes):
    assert [outcome for outcome in outcomes if not outcome.ok] == []
    assert len(outcomes) == len(ATTACKS) > 35
    document = (Path(__file__).parents[2] / "docs/results/attacks.md").read_text(encoding="utf-8")
    assert table(outcomes) == document, "make attacks"
