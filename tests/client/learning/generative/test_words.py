"""What people write is never a token that controls the model, and ordinary words keep the ids of running text."""

import dataclasses

import pytest
import torch
from transformers import AutoTokenizer

from dpfpl_client.models.generative.layout import layout_of
from dpfpl_client.models.generative.template import FAMILIES
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.models.words import Words
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import TaskSettings
from random_models.families import write_random_model
from random_models.parts import byte_tokenizer, llama_tokenizer

ORDINARY = ("what colour is it?", "how many small animals are there?", "a", "", "İ ẞ 狗 😀?", "x < y > z | w")


def test_questions_and_answers_never_get_a_control_token(model):
    layout, spelled = model.layout, sorted(model.layout.words.control)
    assert int(model._model.config.image_token_id) in spelled
    assert set(layout.ends) <= set(spelled)
    (clean,) = {tuple(t for t in layout.question_ids(q) if t in spelled) for q in ORDINARY}
    for token in model.tokenizer.convert_ids_to_tokens(spelled):
        asked = layout.question_ids(f"what {token} is it?")
        assert tuple(t for t in asked if t in spelled) == clean, token
        assert asked[-1] == layout.question_ids("what is it?")[-1]
        (*said, end) = layout.answer_ids(f"red {token} blue")
        assert end == layout.end_id
        assert not set(said) & set(spelled), token
        assert not set(model.layout.words.ids(token)) & set(spelled)


def test_ordinary_words_have_the_ids_of_the_whole_turn(model):
    layout, tokenizer = model.layout, model.tokenizer
    before = tokenizer(layout.before, add_special_tokens=False)["input_ids"]
    assert layout.head.tolist()[-len(before) :] == before
    for question in ORDINARY:
        whole = tokenizer(f"{layout.before}{layout.lead}{question}{layout.tail}", add_special_tokens=False)["input_ids"]
        assert [*before, *layout.question_ids(question)] == whole


def test_a_text_alone_has_the_tokenizers_own_ids(model):
    for text in ORDINARY:
        assert model.layout.words.ids(text) == model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert model.num_tokens(text) == len(model.layout.words.ids(text))


@pytest.fixture
def unigram():
    """Whose model knows its end token as a piece like any other."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((char, -5.0) for char in "abcdeghinorstuw <>/?")]
    made = Tokenizer(Unigram(pieces, unk_id=0))
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def test_what_a_tokenizer_cannot_read_as_plain_text_is_refused(unigram):
    words = Words(unigram, len(unigram))
    assert words.ids("what is it?") == unigram("what is it?", add_special_tokens=False)["input_ids"]
    assert words.ids("zz") == unigram("zz", add_special_tokens=False)["input_ids"]  # an unknown word is none of them
    with pytest.raises(ModelError) as caught:
        words.ids("a</s>b")
    assert caught.value.code == "SPECIAL_TOKEN"
    assert "</s>" in caught.value.message


def test_a_slow_tokenizer_is_treated_alike():
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    words = Words(slow, len(slow))
    assert not slow.is_fast
    for text in ORDINARY:
        assert words.ids(text) == slow(text, add_special_tokens=False)["input_ids"]
    assert slow.eos_token_id in slow("red </s> blue", add_special_tokens=False)["input_ids"]
    assert slow.eos_token_id not in words.ids("red </s> blue")


def test_a_token_without_a_vector_is_refused_with_its_name(tmp_path, vqa_experiment):
    folder = write_random_model("smolvlm", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])  # an ordinary one, which stays one token whatever is asked of the tokenizer
    tokenizer.save_pretrained(folder)
    model = load_backbone(str(folder))
    predictor = model.scorer(vqa_experiment(model)).at(torch.zeros(3, model.width))
    with pytest.raises(ModelError) as caught:
        predictor.reply(torch.zeros(model.feature_size), "what is <beyond> it?")
    assert caught.value.code == "SPECIAL_TOKEN"
    assert "<beyond>" in caught.value.message
    classes = vqa_experiment(model, task=TaskSettings(kind="classify"), classes=("dog", "<beyond>"))
    with pytest.raises(ModelError, match="<beyond>"):
        model.scorer(classes)
    asked = TaskSettings(kind="classify", question="what is <beyond>")
    with pytest.raises(ModelError, match="<beyond>"):
        model.scorer(vqa_experiment(model, task=asked, classes=("dog", "cat")))


def test_a_turn_that_needs_a_token_without_a_vector_is_refused():
    tokenizer = byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    with pytest.raises(ModelError) as caught:
        layout_of(FAMILIES["smolvlm"], tokenizer, image, 4, rows=image)
    assert caught.value.code == "VOCABULARY_TOO_SMALL"


@pytest.mark.parametrize("first_only", [False, True])
def test_a_question_has_no_space_that_the_turn_does_not_have(first_only):
    tokenizer = llama_tokenizer("<image>", first_only=first_only)
    layout = layout_of(FAMILIES["llava"], tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 4)
    asked = tokenizer.convert_ids_to_tokens(layout.question_ids("photo of a dog"))
    assert asked[:4] == ["photo", "▁of", "▁a", "▁dog"]
    assert tokenizer.convert_ids_to_tokens(layout.answer_ids("red dog")) == ["▁red", "▁dog", "</s>"]
    assert layout.text_of(list(layout.answer_ids("red dog"))) == "red dog"


def test_a_line_end_after_a_question_is_one_token_with_its_mark():
    tokenizer = byte_tokenizer("<image>")
    family = dataclasses.replace(FAMILIES["paligemma"], template="{image}{text}\n")
    layout = layout_of(family, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 4)
    assert tokenizer.convert_ids_to_tokens(layout.question_ids("a dog?"))[-1] == "?Ċ"


def test_space_before_a_question_joins_its_first_word():
    tokenizer = byte_tokenizer("<image>")
    family = dataclasses.replace(FAMILIES["llava"], template="{image} {text}\n")
    layout = layout_of(family, tokenizer, image := tokenizer.convert_tokens_to_ids("<image>"), 4)
    assert layout.head.tolist() == [image] * 4
    assert tokenizer.convert_ids_to_tokens(layout.question_ids("dog"))[0] == "Ġdog"
