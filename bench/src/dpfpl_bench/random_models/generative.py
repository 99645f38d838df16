"""Random models that answer questions about images."""

from collections.abc import Callable
from typing import Any, Final

from dpfpl_bench.random_models.parts import Made, Sizes, square, text_sizes, tokenizer_with, vision_sizes

__all__ = ["GENERATIVE"]


def _llama(s: Sizes, tokenizer: Any, **more: Any) -> dict[str, Any]:
    roles = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    return text_sizes(
        s, len(tokenizer), max_position_embeddings=4096, num_key_value_heads=s.heads // 2,
        eos_token_id=tokenizer.eos_token_id, **roles, **more,
    )  # fmt: skip


def _llava(s: Sizes) -> Made:
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = tokenizer_with("<image>")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision_sizes(s)},
        text_config={"model_type": "llama", **_llama(s, tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(s.image // s.patch) ** 2,
    )
    processor = CLIPImageProcessorPil(size=square(s), crop_size=square(s))
    return LlavaForConditionalGeneration(config), tokenizer, processor


def _idefics3(s: Sizes) -> Made:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil

    tokenizer = tokenizer_with("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(
        vision_config=vision_sizes(s), text_config={"model_type": "llama", **_llama(s, tokenizer)},
        image_token_id=image, scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 2 * s.image}, max_image_size={"longest_edge": s.image})
    return Idefics3ForConditionalGeneration(config), tokenizer, processor


def _smolvlm(s: Sizes) -> Made:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

    tokenizer = tokenizer_with("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = SmolVLMConfig(
        vision_config=vision_sizes(s), text_config={"model_type": "llama", **_llama(s, tokenizer)},
        image_token_id=image, scale_factor=2, pad_token_id=tokenizer.pad_token_id,
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


def _qwen2_vl(s: Sizes) -> Made:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = tokenizer_with(*QWEN_TOKENS)
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


def _qwen2_5_vl(s: Sizes) -> Made:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = tokenizer_with(*QWEN_TOKENS)
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


GENERATIVE: Final[dict[str, Callable[[Sizes], Made]]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}
