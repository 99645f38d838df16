"""The page for auditors says what is so: its rows, its tests, its tables; and both READMEs make the same promises."""

import re
from pathlib import Path

import pytest

from dpfpl_client.use.exporting.export import OPTIONAL_FILES
from dpfpl_common.privacy.accounting import (
    PrivacyEvent,
    calibrate_noise_multiplier,
    group_epsilon,
    true_positive_rate,
)
from dpfpl_common.wire import agent_pb2

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/explanation/what-leaves.md").read_text(encoding="utf-8")
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
JAPANESE = (ROOT / "README.ja.md").read_text(encoding="utf-8")


def rows(name):
    block = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()[2:]]


def view():
    table = PAGE.split("## The view, field by field")[1].split("Rows NI1")[0]
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def test_every_field_of_every_message_that_leaves_has_a_row():
    listed = " ".join(line.split("|")[1] for line in view())
    for message in (agent_pb2.SiteReply, agent_pb2.Refusal, agent_pb2.SumReply):
        for field in message.DESCRIPTOR.fields:
            assert f"`{field.name}`" in listed or f"`{message.DESCRIPTOR.name}.{field.name}`" in listed, field.name


def test_every_file_of_an_export_has_a_row():
    listed = " ".join(line.split("|")[1] for line in view())
    for file in ("README.md", "prompt.json", "prompt.safetensors", "base_model/model.safetensors", *OPTIONAL_FILES):
        folder, _, _ = file.rpartition("/")
        assert (f"`{folder}/`" if folder else f"`{file}`") in listed, file


def test_every_row_names_tests_that_exist():
    tests = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for line in view():
        named = re.findall(r"(?:NI|SE)\d+", line.split("|")[4])
        assert named, line
        for row in named:
            assert re.search(rf"def test_{row}_", tests, re.IGNORECASE), row


def test_all_fourteen_rows_have_a_test():
    tests = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [n for n in range(1, 15) if not re.search(rf"def test_ni{n}_", tests, re.IGNORECASE)]
    assert not missing


@pytest.mark.privacy
def test_ni13_the_tables_are_computed():
    for epsilon, *shown in rows("groups"):
        z = calibrate_noise_multiplier(float(epsilon), 1e-5, 1.0, 1)
        event = [PrivacyEvent("x", "one_shot", z, 1.0, 1)]
        assert shown == [f"{group_epsilon(event, 1e-5, size):.1f}" for size in (2, 5, 10)]
    for epsilon, *shown in rows("recognition"):
        rates = [true_positive_rate(float(epsilon), 1e-5, wrong) for wrong in (1e-3, 1e-2, 1e-1)]
        assert shown == [f"{rate:.1%}".replace("%", " %") for rate in rates]


@pytest.mark.parametrize(
    ("english", "japanese"),
    [
        ("all three are held to the same epsilon", "三者に対する ε はいずれも同じ"),
        ("19 for two images and 209 for ten", "2 枚で 19、10 枚で 209"),
        ("cost the epsilon of one of them", "どちらか一方の分だけ"),
        ('metrics = "noised"', 'metrics = "noised"'),
        ("real sites make their own", "拠点が自ら鍵を作ります"),
    ],
)
def test_both_readmes_make_the_same_promises(english, japanese):
    assert english in " ".join(ENGLISH.split())
    assert japanese in JAPANESE
    for text, wrong in (
        (ENGLISH, "protected ten times less"),
        (JAPANESE, "運営者に対する ε は目標値より大きくなります**。\n"),
    ):
        assert wrong not in text
