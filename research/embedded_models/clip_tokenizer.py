"""The small tokenizer: byte-pair encoding in CLIP's form, which never meets an unknown character."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

__all__ = ["BOS", "EOS", "FILLER_WORDS", "train_tokenizer"]


# Common English words, so that the tokenizer and the text tower have met more than the pictures' names.


_TEXT = """
the of and to in is it you that was for on are with as his they be at this have from or had by word but what some we
can out other were all there when up use your how said an each she which do their time if will way about many then
them write would like so these her long make thing see him look more day could go come did sound no most people my
over know water than call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does set want air well
also play small end put home read hand port large spell add even land here must big high such follow act why ask men
change went light kind off need house picture try us again animal point mother world near build self earth father
airplane automobile bird cat deer dog frog horse ship truck apple fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle chair clock cloud couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn mower leopard lion lizard lobster
man maple tree motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup truck pine plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow wolf woman worm flower face guitar piano plane camera anchor barrel bonsai cannon chandelier
cougar dragonfly ferry garfield hawksbill hedgehog helicopter ibis inline skate joshua ketch laptop llama lotus
mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver
rhino rooster saxophone scissors scorpion sneaker starfish stapler stegosaurus strawberry umbrella watch wheelchair
wrench normal tumor cell tissue lesion scan healthy disease defect scratch crack good bad product leaf grain metal
glass wood fabric cotton paper plastic kitchen office street garden beach summer winter spring autumn morning night
north south east west car van boat cow sheep goat pig chicken duck goose bread cheese milk coffee tea sugar salt rice
corn bean carrot potato tomato onion garlic
"""

FILLER_WORDS = tuple(_TEXT.split())


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
