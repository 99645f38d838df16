"""Tokenizers of every kind, learned from random words, and small random models of every family for them."""

import gzip
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from random_models.encoders import TOWERS, token_roles
from random_models.families import Sizes, fill_randomly

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
ROLES = (PAD, UNKNOWN, BEGIN, END)
PUBLIC = [
    "a", "photo", "of", "an", "the", "picture", "X-ray", "no", "finding", "Pneumonia", "left", "cat", "golden",
    "retriever", "house", "ein", "Bild",
]  # fmt: skip
FRAMES = {"both": f"{BEGIN} $A {END}", "end": f"$A {END}", "begin": f"{BEGIN} $A", "none": "$A"}
TEXT = "a photo of a"
TEXT_POSITIONS = 48


def corpus(rng: random.Random, lines: int = 60) -> list[str]:
    """Sentences of public words and of made-up ones."""
    made = ["".join(rng.choice("abcdefghijklmnoprstuvwxyzäß") for _ in range(rng.randint(1, 9))) for _ in range(30)]
    words = [*PUBLIC, *made, "12", "T2", "(b)", "c-d"]
    return [" ".join(rng.choice(words) for _ in range(rng.randint(3, 9))) + "." for _ in range(lines)]


def _word_piece(rng):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    lower = rng.random() < 0.5
    made.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=rng.random() < 0.5)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made, trainers.WordPieceTrainer(
        vocab_size=rng.randint(120, 300), special_tokens=list(ROLES), show_progress=False
    )


def _bpe_words(rng):
    """CLIP's: lower case, blanks folded, a mark at the end of words."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splits = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(splits, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=rng.randint(600, 700), special_tokens=list(ROLES), initial_alphabet=alphabet,
        end_of_word_suffix="</w>", show_progress=False,
    )  # fmt: skip
    return made, trainer


def _bpe_bytes(rng, *, prefix: bool):
    """GPT-2's and RoBERTa's: the blank belongs to the word behind it, and one is put before a text or not."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=rng.randint(280, 420), special_tokens=list(ROLES), initial_alphabet=alphabet, show_progress=False
    )
    return made, trainer


def _bpe_blank_before(rng):
    """Gemma's: blanks become a mark, nothing splits a text into words, none is put before it. Merges may join words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    if rng.random() < 0.7:  # Gemma's own merges never run over the beginning of a word
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = ["▁", *"abcdefghijklmnopqrstuvwxyz.,-()0123456789"]
    trainer = trainers.BpeTrainer(
        vocab_size=rng.randint(100, 200), special_tokens=list(ROLES), initial_alphabet=alphabet, show_progress=False
    )
    return made, trainer


def _with_bytes(made):
    """The same with entries for single bytes, which words of unknown signs are then made of."""
    from tokenizers import Tokenizer

    description = json.loads(made.to_str())
    vocabulary = description["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(description))


def _unigram(rng):
    """XLM-RoBERTa's and T5's: a mark before every word, the first one too or not."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    scheme = rng.choice(["always", "first", "never"])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=rng.random() < 0.7)
    trainer = trainers.UnigramTrainer(
        vocab_size=rng.randint(120, 200), special_tokens=list(ROLES), unk_token=UNKNOWN, show_progress=False
    )
    return made, trainer


TRAINED = {
    "WordPiece": _word_piece,
    "BPE, end of word marked": _bpe_words,
    "BPE of bytes, blank put before": lambda rng: _bpe_bytes(rng, prefix=True),
    "BPE of bytes, none put before": lambda rng: _bpe_bytes(rng, prefix=False),
    "BPE, blank before (Gemma)": _bpe_blank_before,
    "unigram": _unigram,
}
SENTENCEPIECE = "sentencepiece"
KINDS = (*TRAINED, SENTENCEPIECE)

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789.,-()'/&%+ÄÖßéñ犬胸部ﬁⅡ😀 "
TEXTS = (TEXT, "an X-ray of", "a", "ein Bild von", "the picture:", "A", "photo  of", "x.")


def random_name(rng: random.Random) -> str:
    """Letters of several scripts, signs and blanks, also at the ends and doubled."""
    name = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 10)))
    if rng.random() < 0.3:
        name = name.replace(name[0], " ", 1) + "  b"
    return name if name.strip() else "x"


def tokenizer_of(kind: str, seed: int, frame: str = "both"):
    """A tokenizer of that kind, learned from a random corpus."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(seed)
    made, trainer = TRAINED[kind](rng)
    made.train_from_iterator(corpus(rng), trainer)
    if made.model.__class__.__name__ == "BPE" and made.model.byte_fallback:
        made = _with_bytes(made)
    special = [(token, made.token_to_id(token)) for token in (BEGIN, END)]
    made.post_processor = TemplateProcessing(single=FRAMES[frame], special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, unk_token=UNKNOWN, bos_token=BEGIN, eos_token=END,
        model_max_length=TEXT_POSITIONS, padding_side="right",
    )  # fmt: skip


def write_sentencepiece(folder: Path, seed: int, name: str = "spiece.model") -> int:
    """A sentencepiece model in the folder, as SigLIP 1's; how many pieces it has."""
    import sentencepiece

    rng, model = random.Random(seed), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(rng, 200)), model_writer=model, vocab_size=rng.randint(110, 150), pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
        model_type=rng.choice(["unigram", "bpe"]),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def siglip1_tokenizer(folder: Path, seed: int) -> int:
    """The tokenizer's files of a published SigLIP 1, with pieces of its own; how many there are."""
    pieces = write_sentencepiece(folder, seed)
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": TEXT_POSITIONS, "do_lower_case": True}
    roles = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | roles))
    return pieces


FAMILIES = tuple(TOWERS)
TOLD = {"chinese_clip": ("pad",), "aimv2": ("eos",), "vision-text-dual-encoder": ("pad",)}
"""Of which special tokens a family's configuration is told the ids, where not of all three."""


def write_towers(family: str, folder: Path, rows: int, roles: dict[str, int], seed: int = 0) -> Path:
    """A random model of that family with ``rows`` token embeddings, and its image processor; no tokenizer."""
    told = {f"{role}_token_id": roles[f"{role}_token_id"] for role in TOLD.get(family, ("pad", "bos", "eos"))}
    model, processor = TOWERS[family](Sizes(), rows, TEXT_POSITIONS, told)
    fill_randomly(model, seed)
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def write_model(family: str, kind: str, folder: Path, seed: int = 0, frame: str = "both") -> Path:
    """A random model of that family with a tokenizer of that kind."""
    if kind == SENTENCEPIECE:
        rows = siglip1_tokenizer(folder, seed)
        return write_towers(family, folder, rows, {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}, seed)
    tokenizer = tokenizer_of(kind, seed, frame)
    write_towers(family, folder, len(tokenizer), token_roles(tokenizer, "pad", "bos", "eos"), seed)
    tokenizer.save_pretrained(folder)
    return folder


def clip_vocabulary() -> Path | None:
    """The published CLIP vocabulary, where it can be got; it is not ours to pass on, so it lies nowhere here."""
    named, name = os.environ.get("DPFPL_CLIP_VOCABULARY"), "bpe_simple_vocab_16e6.txt.gz"
    if named:
        return Path(named)
    for package in ("clip", "open_clip"):
        found = importlib.util.find_spec(package)
        if found and found.origin and (Path(found.origin).parent / name).is_file():
            return Path(found.origin).parent / name
    folder = Path(tempfile.gettempdir()) / f"dpfpl-clip-vocabulary-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), "clip-anytorch"]
    if not any(folder.glob("*.whl")):
        try:
            subprocess.run(command, check=True, timeout=60, capture_output=True)
        except (OSError, subprocess.SubprocessError):
            return None
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (folder / name).write_bytes(wheel.read(f"clip/{name}"))
    return folder / name


def write_clip_vocabulary(folder: Path, published: Path) -> int:
    """The tokenizer's files as published CLIP checkpoints have them; the vocabulary's size."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir(parents=True, exist_ok=True)
    merges = gzip.decompress(published.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = [*printable, *sorted(set(ByteLevel.alphabet()) - set(printable))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({entry: place for place, entry in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    roles = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "do_lower_case": True, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": TEXT_POSITIONS}))
    return len(vocabulary)


def write_published_clip(family: str, folder: Path, published: Path) -> Path:
    """A random model of that family with CLIP's published vocabulary."""
    size = write_clip_vocabulary(folder, published)
    roles = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return write_towers(family, folder, size, roles)


def picture(seed: int = 0, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def plain_scores(folder, names, image=None, text=TEXT):
    """Logits [classes] of a picture against whole sentences, by plain transformers as its documentation does it."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = [f"{text} {name}." for name in names]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=image or picture(), return_tensors="pt")
    if model.config.model_type.startswith("siglip"):  # padded to the full length, and the padding is seen
        length = model.config.text_config.max_position_embeddings
        padded = {"padding": "max_length", "max_length": length, "truncation": True}
        words = {"input_ids": tokenizer(sentences, return_tensors="pt", **padded)["input_ids"]}
    else:
        words = tokenizer(sentences, padding=len(sentences) > 1, return_tensors="pt")
        words = {key: words[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**words, **pixels).logits_per_image[0]


def our_scores(folder, names, image=None, text=TEXT):
    """The same by ours: the text's embeddings as the context."""
    from dpfpl_client.models.loader import load_backbone

    backbone = load_backbone(str(folder))
    size = backbone.num_tokens(text)
    context = backbone.text_embeddings(text, size)
    features = backbone.text_features(context, backbone.class_tokens(names, size, text))
    (row,) = backbone.image_features([image or picture()])
    found = backbone.logit_scale * (row @ features.T)
    return found + backbone.logit_bias if backbone.logit_bias is not None else found
