"""Packed rows hold every class once, whole, and let no token see another class."""

import random

import pytest
import torch

from dpfpl_client.models.text_tower.states import ClassTokens, pack


@pytest.mark.parametrize("seed", range(20))
def test_every_class_once_whole_and_alone(seed):
    generator = random.Random(seed)
    suffixes = [
        [*(generator.randrange(3, 90) for _ in range(generator.randint(0, 20))), 99]
        for _ in range(generator.choice([1, 2, 7, 100]))
    ]
    packed = pack(ClassTokens.build(suffixes, 98), generator.choice([1, 16, 64]))
    rows = len(packed.ids)
    seen = []
    for row in range(rows):
        for place, index in enumerate(packed.class_of_end[row].tolist()):
            if index < 0:
                continue
            end = int(packed.ends[row, place])
            start = end + 1 - len(suffixes[index])
            seen.append(index)
            assert packed.ids[row, start : end + 1].tolist() == suffixes[index]
            assert packed.places[row, start : end + 1].tolist() == list(range(len(suffixes[index])))
            for query in range(start, end + 1):
                assert packed.allowed[row, query].nonzero().flatten().tolist() == list(range(start, query + 1))
    assert sorted(seen) == list(range(len(suffixes)))
    assert torch.all(packed.allowed.any(dim=2))


def test_little_room_is_wasted():
    suffixes = [[7] * (2 + index % 3) for index in range(100)]
    packed = pack(ClassTokens.build(suffixes, 98))
    assert packed.ids.numel() < 1.1 * sum(map(len, suffixes))


def test_rows_are_of_the_length_that_leaves_the_least_unfilled():
    suffixes = [[7] * (3 + index % 3) for index in range(10)]  # 39 tokens: three rows of 13, not of 16
    assert tuple(pack(ClassTokens.build(suffixes, 98)).ids.shape) == (3, 13)


def test_some_rows_know_how_they_were_laid_out():
    packed = pack(ClassTokens.build([[7] * (2 + index % 3) for index in range(9)], 98), singly=True)
    assert packed.part(slice(2, 5)).singly
    chosen = packed.of_rows(torch.tensor([3, 3, 1]))
    assert chosen.class_of_end.flatten().tolist() == [3, 3, 1]
    assert packed.classes == packed.part(slice(0, 1)).classes == chosen.classes == 9


def test_a_layout_serves_other_tokens_of_the_same_lengths():
    for token in (7, 8):
        packed = pack(ClassTokens.build([[token] * 3, [token]], 98))
        assert set(packed.ids.flatten().tolist()) == {token}


def test_tokens_are_padded_with_eos():
    tokens = ClassTokens.build([[5, 9], [5, 6, 7, 9]], 8)
    assert tokens.ids.tolist() == [[5, 9, 9, 9], [5, 6, 7, 9]]
    assert (tokens.lengths.tolist(), tokens.bos_id) == ([2, 4], 8)
