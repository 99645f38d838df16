"""Which chat template lays a turn out, what its errors say, and at which token an answer ends."""

import json
import shutil

import pytest
import torch

from dpfpl_client.models.generative.layout import Ends, layout_of
from dpfpl_client.models.generative.template import FAMILIES, processor_template, written_turn
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import ModelError
from random_models.families import write_random_model

PICTURES = (
    "{%% for m in messages %%}{%% if m['role'] == 'user' %%}%s {%% for part in m['content'] %%}"
    "{%% if part['type'] == 'image' %%}<image>{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}"
    "{%% else %%} BOT: {{ m['content'][0]['text'] }}</s>{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%} BOT:{%% endif %%}"
)
TEXTS = "{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"
RAISING = "{{ raise_exception('only texts') }}"
BROKEN = "{% for message in messages %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_random_model("llava", tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def head_of(folder):
    layout = load_backbone(str(folder)).layout
    return layout.tokenizer.decode(layout.head, skip_special_tokens=True).split()[0], layout.tail


def put(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))


def into_tokenizer(folder, template):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def test_the_processors_template_comes_before_the_tokenizers_and_that_before_the_familys(folder):
    assert head_of(folder) == ("USER:", " ASSISTANT:")
    into_tokenizer(folder, PICTURES % "TOK")
    assert head_of(folder) == ("TOK", " BOT:")
    put(folder, chat_template__jinja=PICTURES % "RAW")
    assert head_of(folder) == ("RAW", " BOT:")
    put(folder, chat_template__json={"chat_template": PICTURES % "LEGACY"})
    assert head_of(folder) == ("LEGACY", " BOT:")
    put(folder, processor_config__json={"chat_template": PICTURES % "NAMED"})
    assert head_of(folder) == ("NAMED", " BOT:")


def test_the_files_are_read_in_transformers_own_order(folder):
    from transformers import LlavaProcessor

    put(folder, chat_template__jinja="raw", preprocessor_config__json=(folder / "preprocessor_config.json").read_text())
    later = ({}, {"chat_template__json": {"chat_template": "legacy"}},
             {"processor_config__json": {"chat_template": "named"}})  # fmt: skip
    for files, expected in zip(later, ("raw", "legacy", "named"), strict=True):
        put(folder, **files)
        theirs = LlavaProcessor.get_processor_dict(folder)[0]["chat_template"]
        assert processor_template(folder) == theirs == expected


def test_a_language_models_template_for_texts_only_gives_way_to_the_familys(folder, caplog):
    into_tokenizer(folder, TEXTS)
    assert head_of(folder) == ("USER:", " ASSISTANT:")
    assert "takes texts only" in caplog.text


@pytest.mark.parametrize("template", [TEXTS, RAISING, BROKEN, "{{ messages[0]['nothing']['at all'] }}"])
def test_a_processors_template_that_fails_is_refused_with_its_reason(folder, template):
    put(folder, chat_template__jinja=template)
    with pytest.raises(ModelError) as caught:
        load_backbone(str(folder))
    assert caught.value.code == "BAD_TEMPLATE"
    assert "only texts" in caught.value.message or template != RAISING


@pytest.mark.parametrize("template", [RAISING, BROKEN])
def test_a_tokenizers_template_that_takes_nothing_is_refused(folder, template):
    into_tokenizer(folder, template)
    with pytest.raises(ModelError, match="BAD_TEMPLATE"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("content", "code"),
    [("{", "MODEL_FILE_DAMAGED"), ("[]", "BAD_TEMPLATE"), ('{"chat_template": {"tools": "x"}}', "BAD_TEMPLATE")],
)
def test_a_damaged_template_file_is_refused(folder, content, code):
    put(folder, chat_template__json=content)
    with pytest.raises(ModelError, match=code):
        load_backbone(str(folder))


def test_an_answer_begins_as_the_template_has_it(made):
    tokenizer = load_backbone(str(made)).tokenizer
    turn = written_turn(FAMILIES["llava"], tokenizer, "<image>", PICTURES % "USER")
    assert (turn.tail, turn.gap, turn.close) == (" BOT:", " ", "</s>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    layout = layout_of(FAMILIES["llava"], tokenizer, image, 4, template=PICTURES % "USER")
    assert tokenizer.convert_ids_to_tokens(layout.answer_ids("red dog")) == ["▁red", "▁dog", "</s>"]
    close = (PICTURES % "USER").replace("BOT: {{", "BOT:{{")
    layout = layout_of(FAMILIES["llava"], tokenizer, image, 4, template=close)
    assert tokenizer.convert_ids_to_tokens(layout.answer_ids("red dog"))[-2:] == ["▁dog", "</s>"]
    assert tokenizer.convert_ids_to_tokens(layout.answer_ids("red dog"))[0] != "▁red"


def ends_of(tokenizer, **options):
    return layout_of(FAMILIES["llava"], tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 4, **options).ends


def test_an_answer_ends_where_generation_config_says(made):
    tokenizer = load_backbone(str(made)).tokenizer
    eos, other = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("dog")
    assert ends_of(tokenizer) == (eos,)
    assert ends_of(tokenizer, ends=Ends((other,), derived=False)) == (other,)
    assert ends_of(tokenizer, ends=Ends((other, eos), derived=False)) == (eos, other)  # what the tokenizer ends with
    template = (PICTURES % "USER").replace("</s>", "<pad>")
    pad = tokenizer.pad_token_id
    assert ends_of(tokenizer, template=template, ends=Ends((other, eos, pad), derived=False)) == (pad, other, eos)
    assert ends_of(tokenizer, ends=Ends((other,), derived=True)) == (eos,)  # a default of the configuration's class
    assert ends_of(tokenizer, ends=Ends((10**6,), derived=False)) == (eos,)  # which the model cannot say


def test_the_file_is_heard_in_training_and_in_speaking(tmp_path, pictures, vqa_experiment):
    folder = write_random_model("smolvlm", tmp_path)
    model = load_backbone(str(folder))
    experiment = vqa_experiment(model)
    (row,) = model.image_features(pictures[:1])
    context = 0.5 * torch.randn(3, model.width, generator=torch.Generator().manual_seed(1))
    scorer = model.scorer(experiment)
    (part,) = scorer._parts(context, [("what is it?", "")], row[None])
    (((first, second, *_), _),) = scorer.at(context)._spoken(part)
    put(folder, generation_config__json={"eos_token_id": [first, second] if first != second else [first]})
    again = load_backbone(str(folder))
    assert again.layout.answer_ids("red")[-1] == first
    assert second in again.layout.ends
    (((), _),) = again.scorer(experiment).at(context)._spoken(part)
    put(folder, generation_config__json={"eos_token_id": [model.layout.end_id, second]})
    again = load_backbone(str(folder))
    assert again.layout.end_id == model.layout.end_id
    if first != second:
        ((said, _),) = again.scorer(experiment).at(context)._spoken(part)
        assert said == [first]
    assert again.turn["ends"] == [model.layout.end_id, second]


def test_the_embedded_model_ends_as_it_always_did():
    model = load_backbone("embedded-vlm")
    assert model.layout.ends == (model.tokenizer.eos_token_id,)
    assert model.tokenizer.convert_ids_to_tokens(model.layout.answer_ids("red")) == ["red", "</s>"]
    asked = model.tokenizer.convert_ids_to_tokens(model.layout.question_ids("what colour is it?"))
    assert asked == ["what", "colour", "is", "it", "?", "<answer>"]
