"""What the random models are put together from: sizes of towers and tokenizers learned from a few words."""

from dataclasses import dataclass
from typing import Any

from dpfpl_models import embedded_model_path

__all__ = [
    "Made", "Sizes", "bert_tokenizer", "byte_tokenizer", "gemma_tokenizer", "llama_tokenizer", "roberta_tokenizer",
    "square", "text_sizes", "tokenizer_with", "vision_sizes", "xlm_tokenizer",
]  # fmt: skip

BEGIN, END, PAD, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<pad>", "<unk>"
WORDS = [
    "a", "photo", "of", "an", "the", "picture", "cat", "dog", "bird", "small", "red", "green", "house", "look", "at",
]  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Made = tuple[Any, Any, Any]
"""Model, tokenizer and image processor."""


@dataclass(frozen=True)
class Sizes:
    """How large: ``width`` of hidden states, ``layers`` of each tower, ``image`` and ``patch`` edges in pixels."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    image: int = 32
    patch: int = 8


def tokenizer_with(*special: str, **roles: str) -> Any:
    """The embedded model's vocabulary with more special tokens, as a plain fast tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(embedded_model_path() / "tokenizer.json")),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        **roles,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _merges(words: list[str], space: str) -> list[tuple[str, str]]:
    """That make whole words of letters, within a text and at its beginning."""
    spelled = [spelling for word in words for spelling in (f"{space}{word}", word)]
    return list(dict.fromkeys((word[:n], word[n]) for word in spelled for n in range(1, len(word))))


def llama_tokenizer(*special: str, first_only: bool = False) -> Any:
    """As those of LLaMA: a word with a space before it is another token than one without.

    They put a space before a text: older ones behind every special token too, newer ones not (``first_only``).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    roles, merges = [UNKNOWN, "<s>", "</s>", PAD], _merges(WORDS, "▁")
    pieces = [*roles, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *".?:", *LETTERS.upper()]
    pieces += ["".join(pair) for pair in merges]
    made = Tokenizer(
        BPE({piece: place for place, piece in enumerate(dict.fromkeys(pieces))}, merges, unk_token=UNKNOWN,
            fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    if first_only:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(role, normalized=False, special=True) for role in roles])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), roles, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def byte_tokenizer(*special: str) -> Any:
    """As those of Qwen: bytes, no unknown words, no space put before a text, and line ends join a full stop."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    merges = [*_merges(WORDS, "Ġ"), ("?", "Ċ"), (".", "Ċ")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), PAD, END]
    made = Tokenizer(BPE({piece: place for place, piece in enumerate(dict.fromkeys(pieces))}, merges))
    splits = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(splits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=PAD)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def gemma_tokenizer() -> Any:
    """SigLIP 2's own tokenizer class: a blank belongs to the word behind it, and none is put before a text."""
    from tokenizers import processors
    from transformers import Siglip2Tokenizer

    merges = _merges(WORDS, "▁")
    pieces = [PAD, "<eos>", "<bos>", UNKNOWN, "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*LETTERS, *".?:", *("".join(pair) for pair in merges)]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=merges, padding_side="right")
    ends = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])])
    tokenizer.backend_tokenizer.post_processor = ends
    return tokenizer


def bert_tokenizer() -> Any:
    """BERT's own tokenizer class with a few whole words, and letters for the rest."""
    from transformers import BertTokenizer

    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", "?", *LETTERS[1:]]
    entries += [f"##{letter}" for letter in LETTERS]
    return BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)})


def roberta_tokenizer() -> Any:
    """RoBERTa's own tokenizer class: whole words within a text, letters at its beginning."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    merges = list(dict.fromkeys((f"Ġ{word}"[: n + 1], word[n]) for word in WORDS for n in range(len(word))))
    entries = ["<s>", PAD, "</s>", UNKNOWN, "<mask>", *sorted(ByteLevel.alphabet())]
    entries += ["".join(pair) for pair in merges]
    return RobertaTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, merges=merges)


def xlm_tokenizer() -> Any:
    """XLM-RoBERTa's own tokenizer class with a few whole words, and letters for the rest."""
    from transformers import XLMRobertaTokenizer

    pieces = ["<s>", PAD, "</s>", UNKNOWN, *(f"▁{word}" for word in WORDS), "▁", ".", "?"]
    letters = [(letter, -30.0) for letter in LETTERS]
    return XLMRobertaTokenizer(vocab=[*((piece, -float(place)) for place, piece in enumerate(pieces)), *letters])


def vision_sizes(s: Sizes, **more: Any) -> dict[str, Any]:
    """Of an image tower, as most configurations call them."""
    return {
        "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "image_size": s.image, "patch_size": s.patch, **more,
    }  # fmt: skip


def text_sizes(s: Sizes, vocabulary: int, **more: Any) -> dict[str, Any]:
    """Of a text tower or a language model."""
    return {
        "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "vocab_size": vocabulary, **more,
    }  # fmt: skip


def square(s: Sizes) -> dict[str, int]:
    """Of an image, as image processors take it."""
    return {"height": s.image, "width": s.image}
