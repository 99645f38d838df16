"""NI4: one example more changes exactly one part of the data, training or held-back, by at most one."""

import csv
import itertools
import json
import os
import subprocess
import sys
import types
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpfpl_client.data import DataSettings, hub, read_pool
from dpfpl_common.errors import DataError

pytestmark = pytest.mark.privacy

PICTURES = 5
LABELS = ("cat", "dog", "Dog")
NEIGHBOURS = settings(
    max_examples=int(os.environ.get("DPFPL_NEIGHBOURS", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# One file or line: picture, encoding (a re-encoded copy has the same pixels), label, declared side.
FILES = st.tuples(
    st.integers(0, PICTURES - 1),
    st.sampled_from(("png", "bmp", "broken")),
    st.sampled_from(LABELS),
    st.sampled_from((None, "train", "test")),
)
WORLDS = st.lists(FILES, min_size=1, max_size=10)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The bytes of every picture in every encoding."""
    folder, found = tmp_path_factory.mktemp("encoded"), {}
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 3, 3), dtype=np.uint8)
        for suffix in ("png", "bmp"):
            Image.fromarray(pixels).save(folder / f"x.{suffix}")
            found[number, suffix] = (folder / f"x.{suffix}").read_bytes()
        found[number, "broken"] = b"no image"
    return found


@pytest.fixture
def fresh(tmp_path):
    numbers = itertools.count()
    return lambda: tmp_path / str(next(numbers))


def parts(data_settings):
    """The examples of each part; a source of which nothing can be used has none."""
    try:
        records = read_pool(data_settings).records
    except DataError:  # not one usable example
        return Counter()
    return Counter((record.split, record.digest, record.label, record.question) for record in records)


def check(examples, world, changed):
    """One file or line of ``world`` is taken away: the two divisions differ in at most one example, of one part."""
    index = changed % len(world)
    before, after = examples(world), examples([*world[:index], *world[index + 1 :]])
    assert ((before - after) + (after - before)).total() <= 1
    return before


def each_once(examples):
    assert max(Counter((digest, question) for _, digest, _, question in examples).values(), default=0) <= 1


@NEIGHBOURS
@given(WORLDS, st.integers(0, 99), st.booleans())
def test_ni4_folder(encoded, fresh, world, changed, declared):
    def read(files):
        root = fresh()
        sides = ("train", "test") if declared else ("",)
        for side, label in itertools.product(sides, LABELS):
            (root / side / label).mkdir(parents=True, exist_ok=True)  # the folders themselves are the site's layout
        for number, (picture, suffix, label, side) in files:
            place = root / (side or "train") / label if declared else root / label
            name = "png" if suffix == "broken" else suffix
            (place / f"{number}.{name}").write_bytes(encoded[picture, suffix])
        return parts(DataSettings("folder", str(root), test_fraction=0.4))

    each_once(check(read, list(enumerate(world)), changed))


@NEIGHBOURS
@given(st.lists(st.tuples(FILES, st.booleans()), min_size=1, max_size=10), st.integers(0, 99))
def test_ni4_csv(encoded, fresh, world, changed):
    def read(rows_of):
        root = fresh()
        root.mkdir()
        # Shared: rows name one file, as they do where a list was put together from others.
        files = [
            (0, (0, "png", *more)) if shared else (f"own-{number}", (picture, suffix, *more))
            for number, ((picture, suffix, *more), shared) in rows_of
        ]
        with (root / "list.csv").open("w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(("path", "label", "split"))
            for name, (picture, suffix, label, side) in files:
                (root / f"{name}.{suffix}").write_bytes(encoded[picture, suffix])
                rows.writerow((f"{name}.{suffix}", label, side or ""))
        return parts(DataSettings("csv", str(root / "list.csv"), test_fraction=0.4))

    each_once(check(read, list(enumerate(world)), changed))


@NEIGHBOURS
@given(
    st.lists(st.tuples(FILES, st.sampled_from(("what?", "how many?", "")), st.booleans()), min_size=1, max_size=10),
    st.integers(0, 99),
)
def test_ni4_questions(encoded, fresh, world, changed):
    def read(lines):
        root = fresh()
        root.mkdir()
        text = []
        for number, ((picture, suffix, label, side), question, shared) in lines:
            name = f"{picture}.{suffix}" if shared else f"copy-{number}.{suffix}"
            (root / name).write_bytes(encoded[picture, suffix])
            asked = {"question": question} if question else {}
            text.append(json.dumps({"image": name, "answer": label, **asked} | ({"split": side} if side else {})))
        (root / "lines.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
        found = parts(DataSettings("questions", str(root / "lines.jsonl"), test_fraction=0.4))
        assert max(found.values(), default=0) <= 1
        return found

    check(read, list(enumerate(world)), changed)


class Table:
    """Rows of a data set of the hub, as the loader looks at them."""

    def __init__(self, rows, features):
        self.rows, self.features = rows, features

    def cast_column(self, _name, _feature):
        return self

    def __getitem__(self, key):
        return [label for _, label in self.rows] if key == "label" else {"image": {"bytes": self.rows[key][0]}}


@NEIGHBOURS
@given(WORLDS, st.integers(0, 99), st.booleans())
def test_ni4_hub(encoded, world, changed, declared):
    image, label = type("Image", (), {"__init__": lambda self, decode=True: None}), type("ClassLabel", (), {})
    features = {"image": image(), "label": types.SimpleNamespace()}

    def read(files):
        tables = {"train": [], "test": []} if declared else {"train": []}
        for picture, suffix, name, side in files:
            tables[side or "train" if declared else "train"].append((encoded[picture, suffix], name))
        found = {side: Table(rows, features) for side, rows in tables.items()}
        fake = types.SimpleNamespace(
            Image=image,
            ClassLabel=label,
            load_dataset=lambda *_: found,
            exceptions=types.SimpleNamespace(DatasetsError=RuntimeError),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub, "_import_datasets", lambda: fake)
            return parts(DataSettings("huggingface", "owner/name", test_fraction=0.4))

    check(read, world, changed)


@pytest.mark.long
def test_ni4_five_thousand_neighbours():
    """The row's own number: 1,250 for each of the four loaders."""
    again = (sys.executable, "-m", "pytest", "-q", "-m", "not long", __file__)
    subprocess.run(again, env=os.environ | {"DPFPL_NEIGHBOURS": "1250"}, check=True)
