"""The small tokenizer: byte-pair encoding in CLIP's form, which never meets an unknown character."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

__all__ = ["BOS", "EOS", "train_tokenizer"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level encoding."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """A CLIPTokenizer learned from captions: 512 byte tokens, then merges, then BOS and EOS as the two highest ids.

    The padding token is EOS, so that pooling at the first EOS and causal attention never see padding.
    """
    learner = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=_byte_letters(),
        end_of_word_suffix=_WORD_END,
        special_tokens=[BOS, EOS],
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    letters = _byte_letters()
    tokens = [*letters, *(letter + _WORD_END for letter in letters)]
    merges: list[tuple[str, str]] = []
    for left, right in learned:
        if len(tokens) == vocab_size - 2:
            break
        merges.append((left, right))
        if left + right not in tokens:
            tokens.append(left + right)
    vocab = {token: code for code, token in enumerate([*tokens, BOS, EOS])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=max_length,
    )
