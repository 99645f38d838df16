"""A class name never holds a token that ends or controls a text, whichever text tower reads it."""

import pytest

from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from random_models.families import write_random_model

FAMILIES = (
    "embedded",
    "siglip",
    "siglip2",
    "vision-text-dual-encoder/vit+bert",
    "vision-text-dual-encoder/swin+roberta",
)
M = 3


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    if request.param == "embedded":
        return load_backbone("embedded")
    return load_backbone(str(write_random_model(request.param, tmp_path_factory.mktemp("model"))))


def suffix(model, name):
    return model._suffix(name)


def test_a_name_that_spells_a_control_token_is_read_as_plain_characters(model):
    tokenizer = model.tokenizer
    control = model.words.control
    usual = [token for token in suffix(model, "dog cat") if token in control]
    assert len(usual) == 1  # what ends the text
    for token in tokenizer.all_special_tokens:
        if token == tokenizer.unk_token and tokenizer.unk_token_id not in control:
            continue  # an unknown word, however it is written
        ids = suffix(model, f"dog {token} cat")
        assert [each for each in ids if each in control] == usual, token
        assert ids[-1] == suffix(model, "dog")[-1]
        assert len(ids) > len(suffix(model, "dog cat"))
        assert not set(model.words.ids(token)) & control
        model.check_words(token)


def test_an_ordinary_name_has_the_tokenizers_own_ids(model):
    for name in ("dog", "small red dog", "a b-c/d (e)", "Über 犬", "x < y | z"):
        assert model.words.ids(name) == model.tokenizer(name, add_special_tokens=False)["input_ids"]
        assert model.num_tokens(name) == len(model.words.ids(name))


def test_a_name_that_cannot_be_read_as_plain_characters_is_refused_before_any_round(
    make_experiment, tmp_path, monkeypatch
):
    from transformers import AutoTokenizer

    folder = write_random_model("vision-text-dual-encoder/vit+bert", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])  # behind the embedding's last row
    tokenizer.save_pretrained(folder)
    model = load_backbone(str(folder))
    model.scorer(make_experiment(width=model.width, num_context=M, classes=("dog", "cat")))
    with pytest.raises(ModelError) as caught:
        model.scorer(make_experiment(width=model.width, num_context=M, classes=("dog", "a <beyond>")))
    assert caught.value.code == "SPECIAL_TOKEN"
    assert "<beyond>" in caught.value.message
    with pytest.raises(ModelError, match="<beyond>"):
        model.text_embeddings("a <beyond>", M)
