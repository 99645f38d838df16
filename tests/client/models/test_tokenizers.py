"""Class names behind a context have the ids of the whole sentence, whatever tokenizer: as plain, or refused."""

import json
import random

import pytest
import torch

from dpfpl_client.models import trial
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.models.words import Words
from dpfpl_common.errors import ModelError
from tokenizer_kinds import (
    BEGIN,
    END,
    FAMILIES,
    FRAMES,
    KINDS,
    PAD,
    SENTENCEPIECE,
    TEXTS,
    UNKNOWN,
    clip_vocabulary,
    our_scores,
    plain_scores,
    random_name,
    siglip1_tokenizer,
    tokenizer_of,
    write_model,
    write_published_clip,
    write_sentencepiece,
    write_towers,
)

torch.set_num_threads(1)

NAMES = ("cat", "golden retriever", "Pneumonia (left)", "no finding", "zz x12")
GEMMA = "BPE, blank before (Gemma)"
CLOSE = 1e-4


def difference(folder, names=NAMES, **more):
    return float((our_scores(folder, names, **more) - plain_scores(folder, names, **more)).abs().max())


def refused(folder, code):
    with pytest.raises(ModelError) as caught:
        load_backbone(str(folder))
    assert caught.value.code == code
    assert caught.value.advice
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_reads_names_as_in_the_whole_sentence(kind, tmp_path):
    assert difference(write_model("siglip", kind, tmp_path, seed=1, frame="end")) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_a_blank_before_words_is_not_lost(family, tmp_path):
    folder = write_model(family, GEMMA, tmp_path, seed=1)
    assert difference(folder) < CLOSE
    assert difference(folder, text="an X-ray of") < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != SENTENCEPIECE])
def test_every_kind_in_every_family(family, kind, tmp_path):
    assert difference(write_model(family, kind, tmp_path, seed=2)) < CLOSE


@pytest.mark.parametrize("family", ["clip", "vision-text-dual-encoder"])
def test_with_the_published_clip_vocabulary(family, tmp_path):
    published = clip_vocabulary()
    if published is None:
        pytest.skip("CLIP's vocabulary is not there: name it in DPFPL_CLIP_VOCABULARY, or be online")
    folder = write_published_clip(family, tmp_path, published)
    assert difference(folder, (*NAMES, "Nevus, dysplastic", "胸部 X線")) < CLOSE


def compared(seed, folder):
    """What became of one random tokenizer in one random model: a code, or (largest difference, names compared)."""
    rng = random.Random(seed)
    kind, family = rng.choice(KINDS), rng.choice(list(FAMILIES))
    frame = rng.choice(list(FRAMES)) if rng.random() < 0.4 else "both"
    text = rng.choice(TEXTS)
    write_model(family, kind, folder, seed=seed, frame=frame)
    try:
        backbone = load_backbone(str(folder))
        size, kept, codes = backbone.num_tokens(text), {}, set()
        for name in sorted({random_name(rng) for _ in range(12)}):
            try:
                tokens = backbone.class_tokens([name], size, text)
                kept.setdefault(tuple(tokens.ids[0].tolist()), name)
            except ModelError as error:
                codes.add(error.code)
    except ModelError as error:
        return error.code
    assert codes <= {"NAME_JOINS_TEXT", "SPECIAL_TOKEN", "PROMPT_TOO_LONG"}
    if not kept:  # behind this text no name can stand
        return min(codes)
    return difference(folder, list(kept.values()), text=text), len(kept)


def count_of(seeds, tmp_path):
    outcomes = {seed: compared(seed, tmp_path / str(seed)) for seed in seeds}
    refusals = {seed: found for seed, found in outcomes.items() if isinstance(found, str)}
    assert set(refusals.values()) <= {"TOKENIZER_UNUSABLE", "TEXT_TOWER_UNUSABLE", "NAME_JOINS_TEXT", "SPECIAL_TOKEN"}
    assert len(refusals) < len(outcomes) / 3, refusals  # a test of equality, not of refusals
    wrong = {seed: found for seed, found in outcomes.items() if seed not in refusals and not found[0] < CLOSE}
    assert not wrong
    return sum(found[1] for found in outcomes.values() if not isinstance(found, str))


@pytest.mark.slow
def test_random_tokenizers_and_names_ours_equals_plain_or_is_refused(tmp_path):
    assert count_of(range(12), tmp_path) > 60


@pytest.mark.long
def test_three_hundred_random_tokenizers(tmp_path):
    assert count_of(range(1000, 1300), tmp_path) > 2000


# Kind: what the tokenizer writes around a text.


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_siglip_takes_its_tokenizers_own_frame_and_padding(frame, side, tmp_path):
    folder = write_model("siglip", GEMMA, tmp_path, seed=3, frame=frame)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": side}))
    assert difference(folder) < CLOSE


def test_a_clip_whose_tokenizer_ends_no_text_is_refused_with_the_difference(tmp_path):
    folder = write_model("clip", "unigram", tmp_path, seed=3, frame="begin")
    assert "relative difference" in refused(folder, "TEXT_TOWER_UNUSABLE")


def test_a_clip_whose_tokenizer_begins_no_text_is_refused(tmp_path):
    assert "begins a text with 0 tokens" in refused(
        write_model("clip", "unigram", tmp_path, frame="end"), "TOKENIZER_UNUSABLE"
    )


def test_what_a_tokenizer_adds_to_texts_belongs_to_the_names(tmp_path):
    folder = write_model("siglip", GEMMA, tmp_path, seed=3, frame="end")
    description = json.loads((folder / "tokenizer.json").read_text())
    adds = {"type": "Replace", "pattern": {"Regex": "\\.$"}, "content": " END."}
    description["normalizer"] = {"type": "Sequence", "normalizers": [adds, description["normalizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert difference(folder) < CLOSE


def specials_last(tokenizer):
    """The same tokenizer with its special tokens behind all others, as CLIP's vocabulary has them."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    description = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [token["content"] for token in description["added_tokens"]]
    vocabulary = sorted(description["model"]["vocab"], key=lambda entry: (entry in special, entry))
    description["model"]["vocab"] = {entry: place for place, entry in enumerate(vocabulary)}
    description["added_tokens"], description["post_processor"] = [], None
    made = Tokenizer.from_str(json.dumps(description))
    made.add_special_tokens(special)
    ends = [(token, made.token_to_id(token)) for token in (BEGIN, END)]
    made.post_processor = processors.TemplateProcessing(single=FRAMES["both"], special_tokens=ends)
    roles = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def test_clips_that_end_prompts_at_the_largest_id_are_right_on_the_whole_vocabulary(tmp_path):
    """``eos_token_id = 2`` in older files: the end is the largest id, wherever it stands, and new tokens are larger."""
    tokenizer = specials_last(tokenizer_of("BPE, end of word marked", 5))
    roles = {"pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 2}
    folder = write_towers("clip", tmp_path / "old", 1000, roles)
    tokenizer.add_tokens(["zebra", "okapi"])
    assert tokenizer.eos_token_id < tokenizer.convert_tokens_to_ids("zebra") < 1000
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(str(folder))
    assert type(backbone._tower).__name__ == "PlainTextTower"  # the fast one ends prompts at their end token
    assert difference(folder, ["cat", "zebra", "an okapi", "house"]) < CLOSE


def test_the_trial_finds_a_begin_that_was_forgotten(tmp_path, monkeypatch):
    from dpfpl_client.models import encoders

    class Forgetful(encoders.PaddedTextTower):
        def __init__(self, text_model, begin, *, pads_left):
            super().__init__(text_model, (), pads_left=pads_left)

    monkeypatch.setattr(encoders, "PaddedTextTower", Forgetful)
    folder = write_model("siglip", GEMMA, tmp_path, seed=3)
    assert "relative difference" in refused(folder, "TEXT_TOWER_UNUSABLE")


def test_the_trial_finds_names_glued_to_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(Words, "behind", lambda words, name, text="": words.ids(f"{name}."))
    for family in ("siglip2", "clip", "chinese_clip"):
        folder = write_model(family, GEMMA, tmp_path / family, seed=3)
        assert "relative difference" in refused(folder, "TOKENIZER_UNUSABLE")


def test_the_trial_looks_at_the_last_token_of_the_vocabulary(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(trial, "_difference", lambda backbone, start, tokens, expected: seen.append(tokens) or 0.0)
    backbone = load_backbone(str(write_model("clip", GEMMA, tmp_path, seed=3)))
    assert len(backbone.token_embedding.weight) - 1 in seen[0].ids


# Kind: class names that are the same tokens.


@pytest.mark.parametrize("names", [("Nevus", "nevus"), ("bar ", "bar"), ("lung  cancer", "lung cancer")])
def test_names_that_the_tokenizer_does_not_tell_apart_are_refused(tmp_path, names):
    folder = write_model("chinese_clip", "BPE, end of word marked", tmp_path, seed=1)  # lower case, blanks folded
    backbone = load_backbone(str(folder))
    for call in (backbone.check_classes, lambda all_names: backbone.class_tokens(all_names, 4)):
        with pytest.raises(ModelError) as caught:
            call(("cat", *names))
        assert caught.value.code == "CLASSES_READ_ALIKE"
        assert all(repr(name) in str(caught.value) for name in names)
    backbone.check_classes(("cat", names[0]))


def test_generative_models_refuse_classes_that_are_one_answer():
    backbone = load_backbone("embedded-vlm")
    with pytest.raises(ModelError) as caught:
        backbone.check_classes(("two  red", "two red"))
    assert caught.value.code == "CLASSES_READ_ALIKE"
    backbone.check_classes(("two red", "red"))


# Kind: packages that tokenizers need.


def test_a_published_siglip_1_folder_loads(tmp_path):
    folder = write_model("siglip", SENTENCEPIECE, tmp_path, seed=4)
    assert (folder / "spiece.model").is_file()
    assert not (folder / "tokenizer.json").exists()
    assert difference(folder) < CLOSE


def test_a_folder_with_an_xlm_sentencepiece_file_alone_loads(tmp_path):
    """AltCLIP's and MetaCLIP 2's tokenizer before anybody made a tokenizer.json of it."""
    pieces = write_sentencepiece(tmp_path, 4, "sentencepiece.bpe.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    folder = write_towers("altclip", tmp_path, pieces + 8, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2})
    assert difference(folder, ["cat", "golden retriever"]) < CLOSE


def without(monkeypatch, *packages):
    """As if these packages were not installed."""
    import importlib.util
    import sys

    import transformers.utils.import_utils as known

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else found(name, *more)
    )
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
        for check in (f"is_{package}_available",):
            if hasattr(known, check):
                monkeypatch.setattr(known, check, lambda: False)
    monkeypatch.setattr(
        known, "BACKENDS_MAPPING",
        type(known.BACKENDS_MAPPING)(
            (name, ((lambda: False), text) if name in packages else (there, text))
            for name, (there, text) in known.BACKENDS_MAPPING.items()
        ),
    )  # fmt: skip


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder = write_model("siglip", SENTENCEPIECE, tmp_path, seed=4)
    without(monkeypatch, "sentencepiece")
    message = refused(folder, "PACKAGE_MISSING")
    assert "pip install sentencepiece" in message


@pytest.mark.parametrize(("name", "package"), [("CpmTokenizer", "jieba"), ("BertJapaneseTokenizer", "fugashi")])
def test_any_other_missing_package_is_named(name, package, tmp_path):
    siglip1_tokenizer(tmp_path, 4)
    folder = write_towers("siglip", tmp_path, 150, {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": name, "word_tokenizer_type": "mecab", "vocab_file": "spiece.model"})
    )
    with pytest.raises(ModelError) as caught:
        load_backbone(str(folder))
    assert (caught.value.code, package in str(caught.value)) == ("PACKAGE_MISSING", True)
