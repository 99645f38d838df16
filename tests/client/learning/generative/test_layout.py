"""A turn's ids before the answer against what the family's own processor makes of the same turn and picture."""

import datetime
import importlib

import pytest

from dpfpl_client.models.generative.layout import layout_of
from dpfpl_client.models.generative.template import FAMILIES
from dpfpl_common.errors import ModelError
from random_models.families import write_random_model

QUESTION = "how many small animals are there?"
TILES = {"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}

WHOLE = {
    "llava": ("LlavaProcessor", TILES),
    "llava_next": ("LlavaNextProcessor", TILES),
    "gemma3": ("Gemma3Processor", {"image_seq_length": 4}),
    "paligemma": ("PaliGemmaProcessor", {}),
    "idefics3": ("Idefics3Processor", {"image_seq_len": 4}),
}
"""Processors that can be made without packages for videos; the others' rule for pictures is asked alone."""

RULES = {
    "llava_onevision": ("LlavaOnevisionProcessor", {
        "patch_size": 8, "num_additional_image_tokens": 0, "num_image_tokens": 16, "image_token": "<image>",
        "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9",
    }),
    "internvl": ("InternVLProcessor", {"start_image_token": "<img>", "end_image_token": "</img>",
                                       "image_token": "<IMG_CONTEXT>", "image_seq_length": 4}),
    "qwen2_vl": ("Qwen2VLProcessor", {"image_token": "<|image_pad|>"}),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", {"image_token": "<|image_pad|>"}),
    "qwen3_vl": ("Qwen3VLProcessor", {"image_token": "<|image_pad|>"}),
    "qwen3_5": ("Qwen3VLProcessor", {"image_token": "<|image_pad|>"}),
}  # fmt: skip


def processor_class(family, name):
    module = {"qwen3_5": "qwen3_vl"}.get(family, family)  # which has no processor of its own
    return getattr(importlib.import_module(f"transformers.models.{module}.processing_{module}"), name)


def by_the_whole_processor(family, tokenizer, image_processor, text, given):
    name, options = WHOLE[family]
    if family == "gemma3":
        for role, token in {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}.items():
            setattr(tokenizer, f"{role}_token", token)
            setattr(tokenizer, f"{role}_token_id", tokenizer.convert_tokens_to_ids(token))
    image_processor.image_seq_length = 16  # PaliGemma's processor asks its image processor
    processor = processor_class(family, name)(image_processor=image_processor, tokenizer=tokenizer, **options)
    text = QUESTION if family == "paligemma" else text  # which writes everything else itself
    return processor(text=[text], images=given, **FAMILIES[family].processor_options)["input_ids"][0]


def by_the_rule(family, tokenizer, image_processor, text, given):
    name, options = RULES[family]
    processor = processor_class(family, name).__new__(processor_class(family, name))
    for attribute, value in {**options, "image_processor": image_processor, "tokenizer": tokenizer}.items():
        setattr(processor, attribute, value)
    inputs = image_processor(images=given, return_tensors="pt", **FAMILIES[family].processor_options)
    sizes = {"num_patches": [len(inputs["pixel_values"])], "batch_num_images": [1]} | dict(inputs)
    return tokenizer(text.replace(options["image_token"], processor.replace_image_token(sizes, 0)))["input_ids"]


def by_pixtrals_rule(family, tokenizer, image_processor, text, given):
    """As ``PixtralProcessor.replace_image_token`` has it, whose module needs torchvision."""
    side = 8 * 2  # patches, merged two by two
    sizes = image_processor(images=given, return_tensors="pt", patch_size={"height": side, "width": side})[
        "image_sizes"
    ]
    height, width = (int(size) // side for size in sizes[0])
    tokens = [token for _ in range(height) for token in [*["[IMG]"] * width, "[IMG_BREAK]"]]
    return tokenizer(text.replace("[IMG]", "".join([*tokens[:-1], "[IMG_END]"])))["input_ids"]


def test_a_turn_is_written_as_the_familys_own_processor_writes_it(folder, model, pictures):
    from transformers import AutoImageProcessor, AutoTokenizer

    if model.family == "smolvlm":
        pytest.skip("its processor needs num2words; it is Idefics3's")
    quirks, edge, tokenizer = FAMILIES[model.family], model.turn["square"], AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = pictures[1].resize((edge, edge), 3) if edge else pictures[1]
    image = quirks.written or tokenizer.convert_ids_to_tokens(model._model.config.image_token_id)
    text = quirks.template.format(image=image, text=QUESTION, bos=tokenizer.bos_token)
    write = by_the_whole_processor if model.family in WHOLE else by_the_rule
    write = by_pixtrals_rule if model.family == "mistral3" else write
    given = [[picture]] if quirks.nested else [picture]
    theirs = list(map(int, write(model.family, tokenizer, image_processor, text, given)))
    if theirs[-1] == tokenizer.eos_token_id:  # this tokenizer's own habit, not the family's
        theirs.pop()
    ours = [*model.layout.head.tolist(), *model.layout.question_ids(QUESTION)]
    assert ours == theirs, (tokenizer.decode(ours), tokenizer.decode(theirs))


def test_an_answer_ends_as_the_chat_was_trained_to_end(model):
    end = model.tokenizer.convert_ids_to_tokens(model.layout.end_id)
    assert end == ("<end_of_turn>" if model.family == "gemma3" else model.tokenizer.eos_token)
    assert model.layout.answer_ids("red")[-1] == model.layout.end_id


TRIMMING = """{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}
{%- endif %}{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

DATED = """{%- if strftime_now is defined %}{% set today = strftime_now( '%d %b %Y' ) %}{% endif %}
{{- bos_token }}{{ today }}
{%- for message in messages %}[INST]{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]
{%- else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]{% endfor %}"""


def tokenizer_of(family, tmp_path, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_random_model(family, tmp_path))
    tokenizer.chat_template = template
    return tokenizer


def test_a_models_own_chat_template_is_followed(tmp_path):
    tokenizer = tokenizer_of("gemma3", tmp_path, TRIMMING)
    layout = layout_of(FAMILIES["gemma3"], tokenizer, tokenizer.convert_tokens_to_ids("<image_soft_token>"), 4)
    picture = "\n\n<start_of_image>" + 4 * "<image_soft_token>" + "<end_of_image>\n\n"
    text = f"{tokenizer.bos_token}<start_of_turn>user\n{picture}"
    assert layout.head.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert layout.head.tolist().count(tokenizer.bos_token_id) == 1
    assert layout.tail == "<end_of_turn>\n<start_of_turn>model\n"


def test_a_template_with_todays_date_gives_the_same_turn_every_day(tmp_path):
    tokenizer = tokenizer_of("mistral3", tmp_path, DATED)
    image, today = tokenizer.convert_tokens_to_ids("[IMG]"), datetime.datetime.now().strftime("%d %b %Y")
    assert today in tokenizer.apply_chat_template([{"role": "user", "content": []}], tokenize=False)
    head = layout_of(FAMILIES["mistral3"], tokenizer, image, 4).head.tolist()
    text = f"{tokenizer.bos_token}01 Jan 2025[INST][IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]"
    assert head == tokenizer(text, add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = DATED.replace("'%d %b %Y'", "'%d' + '.%m'")
    with pytest.raises(ModelError) as caught:
        layout_of(FAMILIES["mistral3"], tokenizer, image, 4)
    assert caught.value.code == "DATED_TEMPLATE"


def test_a_template_without_a_picture_before_the_question_is_refused(tmp_path):
    tokenizer = tokenizer_of("mistral3", tmp_path, "{{ messages[0]['content'][1]['text'] }}[IMG]")
    with pytest.raises(ModelError) as caught:
        layout_of(FAMILIES["mistral3"], tokenizer, tokenizer.convert_tokens_to_ids("[IMG]"), 4)
    assert caught.value.code == "NO_PICTURE_IN_TEMPLATE"
