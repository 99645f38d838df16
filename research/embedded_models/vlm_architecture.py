"""The shape of the tiny model: a LLaVA of about a million parameters, its tokenizer, and its seeded start."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from dpfpl_bench.demo.drawn_questions import vocabulary
from dpfpl_models import embedded_model_path

__all__ = ["ANSWER", "IMAGE", "build_tokenizer", "new_model", "save_model"]

BEGIN, END, PADDING, UNKNOWN, IMAGE, ANSWER = "<s>", "</s>", "<pad>", "<unk>", "<image>", "<answer>"
TEMPLATE = (
    "{% for message in messages %}<s>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
WIDTH = 96


def build_tokenizer() -> Any:
    """One token a word, lower case; no text of the questions' world has an unknown one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PADDING, BEGIN, END, UNKNOWN, IMAGE, ANSWER]
    words = {word: number for number, word in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # puts spaces between words
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PADDING, unk_token=UNKNOWN
    )
    fast.add_special_tokens({"additional_special_tokens": [IMAGE, ANSWER]})
    fast.chat_template = TEMPLATE
    return fast


def new_model(tokenizer: Any, generator: torch.Generator) -> LlavaForConditionalGeneration:
    """An untrained language model behind the embedded CLIP's image tower."""
    vision = CLIPModel.from_pretrained(embedded_model_path()).vision_model
    config = LlavaConfig(
        vision_config=vision.config,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" not in name and weight.ndim >= 2:
                stddev = 0.1 if "embed_tokens" in name else weight.shape[1] ** -0.5
                weight.normal_(0.0, stddev, generator=generator)
    missing = model.model.vision_tower.load_state_dict(vision.state_dict(), strict=False)
    assert not missing.missing_keys, missing
    return model


def save_model(model: LlavaForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Write config, float16 weights, tokenizer with chat template, and image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(embedded_model_path()).save_pretrained(folder)
