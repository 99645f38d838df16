"""Random models that answer questions about images."""

from collections.abc import Callable
from typing import Any, Final

from random_models.parts import (
    Made,
    Sizes,
    byte_tokenizer,
    llama_tokenizer,
    square,
    text_sizes,
    tokenizer_with,
    vision_sizes,
)

__all__ = ["GENERATIVE"]


def _llama(s: Sizes, tokenizer: Any, **more: Any) -> dict[str, Any]:
    roles = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    return text_sizes(
        s, len(tokenizer), max_position_embeddings=4096, num_key_value_heads=s.heads // 2,
        eos_token_id=tokenizer.eos_token_id, **roles, **more,
    )  # fmt: skip


def _llava(s: Sizes) -> Made:
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = llama_tokenizer("<image>")
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

    tokenizer = byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
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

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
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


def _tiles(s: Sizes) -> dict[str, Any]:
    """Pictures cut as by LLaVA-NeXT: the whole picture small, and pieces of it."""
    return {"image_grid_pinpoints": [[s.image, 2 * s.image], [2 * s.image, s.image], [2 * s.image, 2 * s.image]]}


def _llava_next(s: Sizes) -> Made:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil

    tokenizer = llama_tokenizer("<image>", first_only=True)
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **vision_sizes(s)},
        text_config={"model_type": "mistral", **_llama(s, tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **_tiles(s),
    )
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": s.image}, crop_size=square(s), **_tiles(s))
    return LlavaNextForConditionalGeneration(config), tokenizer, processor


def _llava_onevision(s: Sizes) -> Made:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
    )

    tokenizer = tokenizer_with("<image>", "<video>")
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **vision_sizes(s, vision_use_head=False)},
        text_config={"model_type": "qwen2", **_llama(s, tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        **_tiles(s),
    )
    processor = LlavaOnevisionImageProcessorPil(size=square(s), **_tiles(s))
    return LlavaOnevisionForConditionalGeneration(config), tokenizer, processor


def _internvl(s: Sizes) -> Made:
    from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration

    tokenizer = tokenizer_with("<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>")
    config = InternVLConfig(
        vision_config={"model_type": "internvl_vision", **vision_sizes(s)},
        text_config={"model_type": "qwen2", **_llama(s, tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(s.image // s.patch // 2) ** 2,
    )
    return InternVLForConditionalGeneration(config), tokenizer, GotOcr2ImageProcessorPil(size=square(s))


def _mistral3(s: Sizes) -> Made:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessorPil

    tokenizer = tokenizer_with("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    config = Mistral3Config(
        vision_config={"model_type": "pixtral", **vision_sizes(s, head_dim=s.width // s.heads)},
        text_config={"model_type": "mistral", **_llama(s, tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    processor = PixtralImageProcessorPil(
        size={"longest_edge": s.image}, patch_size={"height": s.patch, "width": s.patch}
    )
    return Mistral3ForConditionalGeneration(config), tokenizer, processor


def _gemma_text(s: Sizes, tokenizer: Any, **more: Any) -> dict[str, Any]:
    return _llama(s, tokenizer, head_dim=s.width // s.heads, **more)


def _gemma3(s: Sizes) -> Made:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil

    special = ("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = tokenizer_with(*special)
    image, begin, end = (tokenizer.convert_tokens_to_ids(token) for token in special[:3])
    layers = {"layer_types": ["sliding_attention", "full_attention"] * (s.layers // 2), "sliding_window": 16}
    config = Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **vision_sizes(s, vision_use_head=False)},
        text_config=_gemma_text(s, tokenizer, query_pre_attn_scalar=s.width // s.heads, **layers),
        mm_tokens_per_image=(s.image // s.patch // 2) ** 2,
        image_token_index=image,
        boi_token_index=begin,
        eoi_token_index=end,
    )
    return Gemma3ForConditionalGeneration(config), tokenizer, Gemma3ImageProcessorPil(size=square(s))


def _paligemma(s: Sizes, text: str = "gemma") -> Made:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipImageProcessorPil

    tokenizer = tokenizer_with("<image>")
    caps: dict[str, Any] = {}
    if text == "gemma2":
        caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "sliding_window": 16}
        caps |= {"query_pre_attn_scalar": s.width // s.heads}
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model", **vision_sizes(s, vision_use_head=False, projection_dim=s.width),
        },
        text_config={"model_type": text, **_gemma_text(s, tokenizer, **caps)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=s.width,
        hidden_size=s.width,
    )  # fmt: skip
    processor = SiglipImageProcessorPil(size=square(s))
    processor.image_seq_length = (s.image // s.patch) ** 2
    return PaliGemmaForConditionalGeneration(config), tokenizer, processor


def _paligemma2(s: Sizes) -> Made:
    return _paligemma(s, "gemma2")


def _qwen3_vl(s: Sizes) -> Made:
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = tokenizer_with(*QWEN_TOKENS)
    config = Qwen3VLConfig(
        vision_config={
            "depth": s.layers, "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_heads": s.heads,
            "patch_size": s.patch, "out_hidden_size": s.width, "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(min(3, s.layers))),
        },
        text_config=_qwen_text(s, tokenizer) | {"head_dim": s.width // s.heads},
        **_qwen_tokens(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=s.patch, min_pixels=s.image**2, max_pixels=s.image**2)
    return Qwen3VLForConditionalGeneration(config), tokenizer, processor


def _qwen3_5(s: Sizes) -> Made:
    from transformers import Qwen2VLImageProcessorPil, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    tokenizer, head = tokenizer_with(*QWEN_TOKENS), s.width // s.heads
    layers = (["linear_attention", "full_attention"] * s.layers)[: s.layers]
    linear = {"linear_key_head_dim": head, "linear_value_head_dim": head}
    linear |= {"linear_num_key_heads": s.heads // 2, "linear_num_value_heads": s.heads}
    text = _qwen_text(s, tokenizer) | {"head_dim": head, "layer_types": layers, **linear}
    config = Qwen3_5Config(
        vision_config={
            "depth": s.layers, "hidden_size": s.width, "intermediate_size": 2 * s.width, "num_heads": s.heads,
            "patch_size": s.patch, "out_hidden_size": s.width, "num_position_embeddings": 64,
        },
        text_config=text,
        **_qwen_tokens(tokenizer),
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(patch_size=s.patch, min_pixels=s.image**2, max_pixels=s.image**2)
    return Qwen3_5ForConditionalGeneration(config), tokenizer, processor


GENERATIVE: Final[dict[str, Callable[[Sizes], Made]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "mistral3": _mistral3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "paligemma/gemma2": _paligemma2,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
}
