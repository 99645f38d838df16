"""Images are held decoded by their pixels, not by their number."""

import weakref

import pytest
import torch
from PIL import Image

from dpfpl_client.models.loader import load_backbone
from dpfpl_client.models.placement import BATCH_PIXELS, batches


def sized(*sizes):
    return [Image.new("L", size) for size in sizes]


def test_a_batch_ends_at_the_number_or_at_the_pixels(monkeypatch):
    monkeypatch.setattr("dpfpl_client.models.placement.BATCH_PIXELS", 100)
    images = sized((5, 5), (5, 5), (5, 5), (10, 5), (50, 50), (10, 10), (1, 1))
    assert [[image.size for image in batch] for batch in batches(images, 64)] == [
        [(5, 5)] * 3,
        [(10, 5)],
        [(50, 50)],
        [(10, 10)],
        [(1, 1)],
    ]
    assert [len(batch) for batch in batches(sized(*[(1, 1)] * 7), 3)] == [3, 3, 1]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("model", ["embedded", "embedded-vlm"])
def test_photographs_are_not_all_held_decoded(model, monkeypatch):
    """Room for four pictures: they and the next are held, not the sixteen or sixty-four of a batch."""
    monkeypatch.setattr("dpfpl_client.models.placement.BATCH_PIXELS", 4 * 64**2)
    alive, most = set(), 0

    def photographs():
        nonlocal most
        for number in range(20):
            image = Image.new("RGB", (64, 64), (12 * number, 90, 120))
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield image
            del image

    rows = torch.stack(list(load_backbone(model).image_features(photographs())))
    assert len(rows) == 20
    assert len({tuple(row.tolist()) for row in rows}) == 20
    assert most == 5


def test_the_room_is_for_photographs():
    assert 3 <= BATCH_PIXELS / (4000 * 3000) < 10
