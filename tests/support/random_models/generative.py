"""Random models that answer questions about images."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import transformers

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


def _made(kind: str, tokenizer: Any, processor: Any, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Made:
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, **more)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), tokenizer, processor


def _llama(s: Sizes, tokenizer: Any, kind: str = "llama", **more: Any) -> dict[str, Any]:
    """A language model as LLaMA's; ``kind`` "" is the family's own."""
    roles = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    heads = {"max_position_embeddings": 4096, "num_key_value_heads": s.heads // 2}
    return ({"model_type": kind} if kind else {}) | text_sizes(s, len(tokenizer), **heads, **roles, **more)


def _siglip(s: Sizes, **more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **vision_sizes(s, vision_use_head=False, **more)}


def _llava(s: Sizes) -> Made:
    tokenizer = llama_tokenizer("<image>")
    processor = transformers.CLIPImageProcessorPil(size=square(s), crop_size=square(s))
    return _made(
        "Llava", tokenizer, processor,
        {"model_type": "clip_vision_model", **vision_sizes(s)}, _llama(s, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(s.image // s.patch) ** 2,
    )  # fmt: skip


def _tiles(s: Sizes) -> dict[str, Any]:
    """Pictures cut as by LLaVA-NeXT: the whole picture small, and pieces of it."""
    return {"image_grid_pinpoints": [[s.image, 2 * s.image], [2 * s.image, s.image], [2 * s.image, 2 * s.image]]}


def _llava_next(s: Sizes) -> Made:
    tokenizer = llama_tokenizer("<image>", first_only=True)
    size = {"shortest_edge": s.image}
    processor = transformers.LlavaNextImageProcessorPil(size=size, crop_size=square(s), **_tiles(s))
    return _made(
        "LlavaNext", tokenizer, processor,
        {"model_type": "clip_vision_model", **vision_sizes(s)}, _llama(s, tokenizer, "mistral"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), **_tiles(s),
    )  # fmt: skip


def _llava_onevision(s: Sizes) -> Made:
    tokenizer = tokenizer_with("<image>", "<video>")
    return _made(
        "LlavaOnevision", tokenizer, transformers.LlavaOnevisionImageProcessorPil(size=square(s), **_tiles(s)),
        _siglip(s), _llama(s, tokenizer, "qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), **_tiles(s),
    )  # fmt: skip


def _internvl(s: Sizes) -> Made:
    tokenizer = tokenizer_with("<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>")
    return _made(
        "InternVL", tokenizer, transformers.GotOcr2ImageProcessorPil(size=square(s)),
        {"model_type": "internvl_vision", **vision_sizes(s)}, _llama(s, tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(s.image // s.patch // 2) ** 2,
    )  # fmt: skip


def _mistral3(s: Sizes) -> Made:
    tokenizer = tokenizer_with("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    patch = {"height": s.patch, "width": s.patch}
    return _made(
        "Mistral3", tokenizer, transformers.PixtralImageProcessorPil(size={"longest_edge": s.image}, patch_size=patch),
        {"model_type": "pixtral", **vision_sizes(s, head_dim=s.width // s.heads)}, _llama(s, tokenizer, "mistral"),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip


def _gemma3(s: Sizes) -> Made:
    special = ("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>")
    tokenizer, head = tokenizer_with(*special), s.width // s.heads
    image, begin, end = (tokenizer.convert_tokens_to_ids(token) for token in special[:3])
    layers = {"layer_types": ["sliding_attention", "full_attention"] * (s.layers // 2), "sliding_window": 16}
    text = _llama(s, tokenizer, "", head_dim=head, query_pre_attn_scalar=head, **layers)
    return _made(
        "Gemma3", tokenizer, transformers.Gemma3ImageProcessorPil(size=square(s)), _siglip(s), text,
        mm_tokens_per_image=(s.image // s.patch // 2) ** 2, image_token_index=image, boi_token_index=begin,
        eoi_token_index=end,
    )  # fmt: skip


def _paligemma(s: Sizes, kind: str = "gemma", **caps: Any) -> Made:
    tokenizer, head = tokenizer_with("<image>"), s.width // s.heads
    processor = transformers.SiglipImageProcessorPil(size=square(s))
    processor.image_seq_length = (s.image // s.patch) ** 2
    caps |= {"query_pre_attn_scalar": head} if caps else {}
    return _made(
        "PaliGemma", tokenizer, processor,
        _siglip(s, projection_dim=s.width), _llama(s, tokenizer, kind, head_dim=head, **caps),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=s.width, hidden_size=s.width,
    )  # fmt: skip


def _idefics3(s: Sizes, kind: str = "Idefics3", words: Callable[..., Any] = tokenizer_with) -> Made:
    tokenizer = words("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    sizes = {"size": {"longest_edge": 2 * s.image}, "max_image_size": {"longest_edge": s.image}}
    return _made(
        kind, tokenizer, getattr(transformers, f"{kind}ImageProcessorPil")(**sizes),
        vision_sizes(s), _llama(s, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _qwen(
    s: Sizes, kind: str, vision: dict[str, Any], text: dict[str, Any], words: Callable[..., Any] = tokenizer_with
) -> Made:
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
    tokenizer = words(*special)
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in zip(keys, special[:4], strict=True)}
    half = s.width // s.heads // 2  # frequencies of a head, dealt to time, height and width
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10_000.0}
    vision = {"depth": s.layers, "hidden_size": s.width, "num_heads": s.heads, "patch_size": s.patch, **vision}
    pixels = {"min_pixels": s.image**2, "max_pixels": s.image**2}
    processor = transformers.Qwen2VLImageProcessorPil(patch_size=s.patch, **pixels)
    return _made(kind, tokenizer, processor, vision, _llama(s, tokenizer, "", rope_parameters=rope, **text), **ids)


def _qwen2_vl(s: Sizes) -> Made:
    return _qwen(s, "Qwen2VL", {"embed_dim": s.width, "mlp_ratio": 2}, {}, byte_tokenizer)


def _qwen2_5_vl(s: Sizes) -> Made:
    windows = {"fullatt_block_indexes": [s.layers - 1], "window_size": 4 * s.patch}
    return _qwen(s, "Qwen2_5_VL", {"intermediate_size": 2 * s.width, "out_hidden_size": s.width, **windows}, {})


def _qwen3(s: Sizes, kind: str, vision: dict[str, Any], text: dict[str, Any]) -> Made:
    sizes = {"intermediate_size": 2 * s.width, "out_hidden_size": s.width, "num_position_embeddings": 64}
    return _qwen(s, kind, sizes | vision, {"head_dim": s.width // s.heads, **text})


def _qwen3_vl(s: Sizes) -> Made:
    return _qwen3(s, "Qwen3VL", {"deepstack_visual_indexes": list(range(min(3, s.layers)))}, {})


def _qwen3_5(s: Sizes) -> Made:
    head = s.width // s.heads
    linear = {"linear_key_head_dim": head, "linear_value_head_dim": head}
    linear |= {"linear_num_key_heads": s.heads // 2, "linear_num_value_heads": s.heads}
    layers = (["linear_attention", "full_attention"] * s.layers)[: s.layers]
    return _qwen3(s, "Qwen3_5", {}, {"layer_types": layers, **linear})


CAPPED: Final[dict[str, Any]] = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "sliding_window": 16}
GENERATIVE: Final[dict[str, Callable[[Sizes], Made]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "mistral3": _mistral3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "paligemma/gemma2": partial(_paligemma, kind="gemma2", **CAPPED),
    "idefics3": _idefics3,
    "smolvlm": partial(_idefics3, kind="SmolVLM", words=byte_tokenizer),
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
}
