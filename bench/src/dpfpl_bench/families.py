"""A model of every known family with random weights, made on the spot: to prove loading, gradients and export offline.

The architectures are the installed transformers' own; only sizes are chosen here. Tokenizers are the embedded model's
with each family's special tokens added, image processors the families' own with small images.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpfpl_client.embedded import embedded_model_path

__all__ = ["FAMILIES", "Sizes", "write_random_model"]

BEGIN, END, PAD, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<pad>", "<unk>"


@dataclass(frozen=True)
class Sizes:
    """How large: ``width`` of hidden states, ``layers`` of each tower, ``image`` and ``patch`` edges in pixels."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    image: int = 32
    patch: int = 8


def write_random_model(family: str, folder: Path, sizes: Sizes | None = None, seed: int = 0) -> Path:
    """A model of that family with random weights in ``folder``, in Hugging Face format; the folder again."""
    sizes = sizes or Sizes()
    model, tokenizer, processor = FAMILIES[family](sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 * weight[0].numel() ** -0.5, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(*special: str, **roles: str) -> Any:
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


def _gemma_tokenizer() -> Any:
    """SigLIP 2's own tokenizer class, learned from a few words."""
    from tokenizers.trainers import BpeTrainer
    from transformers import Siglip2Tokenizer

    special = [PAD, "<eos>", "<bos>", UNKNOWN, "<mask>"]
    learner = Siglip2Tokenizer().backend_tokenizer
    trainer = BpeTrainer(vocab_size=300, show_progress=False, special_tokens=special)
    words = "a photo of an the picture cat dog bird small red green house"
    learner.train_from_iterator([f"{words} ", words, *(f"{word}." for word in words.split())], trainer)
    learned = json.loads(learner.to_str())["model"]
    return Siglip2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], padding_side="right"
    )


def _vision(s: Sizes, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "image_size": s.image, "patch_size": s.patch, **more,
    }  # fmt: skip


def _text(s: Sizes, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "vocab_size": vocabulary, **more,
    }  # fmt: skip


def _square(s: Sizes) -> dict[str, int]:
    return {"height": s.image, "width": s.image}


def _clip(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = _text(s, len(tokenizer), max_position_embeddings=64, projection_dim=s.width, **ids)
    config = CLIPConfig(text_config=text, vision_config=_vision(s, projection_dim=s.width), projection_dim=s.width)
    return CLIPModel(config), tokenizer, CLIPImageProcessorPil(size=_square(s), crop_size=_square(s))


def _siglip(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _tokenizer()
    text = _text(s, len(tokenizer), max_position_embeddings=16, projection_size=s.width)
    config = SiglipConfig(text_config=text, vision_config=_vision(s))
    return SiglipModel(config), tokenizer, SiglipImageProcessorPil(size=_square(s))


def _siglip2(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    tokenizer, patches = _gemma_tokenizer(), (s.image // s.patch) ** 2
    text = _text(s, len(tokenizer), max_position_embeddings=16, projection_size=s.width)
    vision = {key: value for key, value in _vision(s, num_patches=patches).items() if key != "image_size"}
    processor = Siglip2ImageProcessorPil(patch_size=s.patch, max_num_patches=patches)
    return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)), tokenizer, processor


def _llama(s: Sizes, tokenizer: Any, **more: Any) -> dict[str, Any]:
    roles = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    return _text(
        s, len(tokenizer), max_position_embeddings=4096, num_key_value_heads=s.heads // 2,
        eos_token_id=tokenizer.eos_token_id, **roles, **more,
    )  # fmt: skip


def _llava(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _tokenizer("<image>")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_vision(s)},
        text_config={"model_type": "llama", **_llama(s, tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(s.image // s.patch) ** 2,
    )
    processor = CLIPImageProcessorPil(size=_square(s), crop_size=_square(s))
    return LlavaForConditionalGeneration(config), tokenizer, processor


def _idefics3(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil

    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(
        vision_config=_vision(s), text_config={"model_type": "llama", **_llama(s, tokenizer)}, image_token_id=image,
        scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 2 * s.image}, max_image_size={"longest_edge": s.image})
    return Idefics3ForConditionalGeneration(config), tokenizer, processor


def _smolvlm(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = SmolVLMConfig(
        vision_config=_vision(s), text_config={"model_type": "llama", **_llama(s, tokenizer)}, image_token_id=image,
        scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    processor = SmolVLMImageProcessorPil(size={"longest_edge": 2 * s.image}, max_image_size={"longest_edge": s.image})
    return SmolVLMForConditionalGeneration(config), tokenizer, processor


def _qwen_tokens(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")


def _qwen_text(s: Sizes, tokenizer: Any) -> dict[str, Any]:
    half = s.width // s.heads // 2  # frequencies of a head, dealt to time, height and width
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10_000.0}
    return _llama(s, tokenizer, rope_parameters=rope)


def _qwen2_vl(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(*QWEN_TOKENS)
    config = Qwen2VLConfig(
        vision_config={
            "depth": s.layers, "embed_dim": s.width, "hidden_size": s.width, "num_heads": s.heads,
            "patch_size": s.patch, "mlp_ratio": 2,
        },
        text_config=_qwen_text(s, tokenizer),
        **_qwen_tokens(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=s.patch, min_pixels=s.image**2, max_pixels=s.image**2)
    return Qwen2VLForConditionalGeneration(config), tokenizer, processor


def _qwen2_5_vl(s: Sizes) -> tuple[Any, Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(*QWEN_TOKENS)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": s.layers, "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_heads": s.heads,
            "patch_size": s.patch, "out_hidden_size": s.width, "fullatt_block_indexes": [s.layers - 1],
            "window_size": 4 * s.patch,
        },
        text_config=_qwen_text(s, tokenizer),
        **_qwen_tokens(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=s.patch, min_pixels=s.image**2, max_pixels=s.image**2)
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer, processor


FAMILIES: dict[str, Callable[[Sizes], tuple[Any, Any, Any]]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}
"""By the model type of their config.json."""
