"""Random models that compare images with texts."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import transformers

from dpfpl_models import embedded_model_path
from random_models.parts import (
    Made,
    Sizes,
    bert_tokenizer,
    gemma_tokenizer,
    roberta_tokenizer,
    square,
    text_sizes,
    tokenizer_with,
    vision_sizes,
    xlm_tokenizer,
)

__all__ = ["ENCODERS", "TOWERS", "token_roles"]

Roles = Mapping[str, int]
Towers = Callable[[Sizes, int, int, Roles], tuple[Any, Any]]
"""Model and image processor by sizes, number of tokens, positions of the text tower and ids of special tokens."""


def _made(kind: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **more)
    return getattr(transformers, f"{kind}Model")(config)


def _text(s: Sizes, rows: int, positions: int, roles: Roles, **more: Any) -> dict[str, Any]:
    return text_sizes(s, rows, max_position_embeddings=positions, **more, **roles)


def _cropped(s: Sizes, kind: str = "CLIP") -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(size=square(s), crop_size=square(s))


def _clip(s: Sizes, rows: int, positions: int, roles: Roles, kind: str = "CLIP") -> tuple[Any, Any]:
    size = {"projection_dim": s.width}
    return _made(kind, _text(s, rows, positions, roles, **size), vision_sizes(s, **size), **size), _cropped(s)


def _metaclip_2(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    return _clip(s, rows, positions, roles, "MetaClip2")


def _siglip(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = _text(s, rows, positions, roles, projection_size=s.width)
    return _made("Siglip", text, vision_sizes(s)), transformers.SiglipImageProcessorPil(size=square(s))


def _siglip2(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    patches = (s.image // s.patch) ** 2
    vision = {key: value for key, value in vision_sizes(s, num_patches=patches).items() if key != "image_size"}
    processor = transformers.Siglip2ImageProcessorPil(patch_size=s.patch, max_num_patches=patches)
    return _made("Siglip2", _text(s, rows, positions, roles, projection_size=s.width), vision), processor


def _altclip(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = _text(s, rows, positions + 2, roles, project_dim=s.width // 2)  # its positions begin behind the padding's id
    return _made("AltCLIP", text, vision_sizes(s), projection_dim=s.width), _cropped(s)


def _chinese_clip(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = _text(s, rows, positions, roles)
    return _made("ChineseCLIP", text, vision_sizes(s), projection_dim=s.width), _cropped(s, "ChineseCLIP")


def _aimv2(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    return _made("Aimv2", _text(s, rows, positions, roles), vision_sizes(s), projection_dim=s.width), _cropped(s)


def _pair(vision: Any, text: Any, s: Sizes) -> Any:
    """Two towers that were never made for each other, as Hugging Face joins them."""
    join = transformers.VisionTextDualEncoderConfig.from_vision_text_configs
    return transformers.VisionTextDualEncoderModel(join(vision, text, projection_dim=s.width))


def _vit_bert(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = transformers.BertConfig(**_text(s, rows, positions, roles))
    pair = _pair(transformers.ViTConfig(**vision_sizes(s)), text, s)
    return pair, transformers.ViTImageProcessorPil(size=square(s))


def _swin_roberta(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = transformers.RobertaConfig(**_text(s, rows, positions + 2, roles))
    vision = transformers.SwinConfig(
        image_size=s.image,
        patch_size=4,
        embed_dim=s.width // 2,
        depths=[1, s.layers - 1],
        num_heads=[s.heads // 2, s.heads // 2],
        window_size=4,
    )
    return _pair(vision, text, s), transformers.ViTImageProcessorPil(size=square(s))


def _dinov2_clip(s: Sizes, rows: int, positions: int, roles: Roles) -> tuple[Any, Any]:
    text = transformers.CLIPTextConfig(**_text(s, rows, positions, roles))
    vision = {key: value for key, value in vision_sizes(s, mlp_ratio=2).items() if key != "intermediate_size"}
    return _pair(transformers.Dinov2Config(**vision), text, s), _cropped(s, "Bit")


def _embedded_tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(embedded_model_path())


def token_roles(tokenizer: Any, *roles: str) -> dict[str, int]:
    """The ids of its special tokens that a configuration is told: of ``pad``, ``bos``, ``eos``."""
    return {f"{role}_token_id": int(getattr(tokenizer, f"{role}_token_id")) for role in roles}


def _with(tokenizer: Callable[[], Any], towers: Towers, positions: int, *roles: str) -> Callable[[Sizes], Made]:
    """A model of these towers and this tokenizer, whose configuration is told the ids of these special tokens."""

    def made(s: Sizes) -> Made:
        words = tokenizer()
        model, processor = towers(s, len(words), positions, token_roles(words, *roles))
        return model, words, processor

    return made


TOWERS: Final[dict[str, Towers]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "metaclip_2": _metaclip_2,
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
    "aimv2": _aimv2,
    "vision-text-dual-encoder": _vit_bert,
}
ENCODERS: Final[dict[str, Callable[[Sizes], Made]]] = {
    "clip": _with(_embedded_tokenizer, _clip, 64, "bos", "eos"),
    "siglip": _with(tokenizer_with, _siglip, 16),
    "siglip2": _with(gemma_tokenizer, _siglip2, 16),
    "metaclip_2": _with(xlm_tokenizer, _metaclip_2, 64, "pad", "bos", "eos"),
    "altclip": _with(xlm_tokenizer, _altclip, 32, "pad", "bos", "eos"),
    "chinese_clip": _with(bert_tokenizer, _chinese_clip, 32),
    "aimv2": _with(_embedded_tokenizer, _aimv2, 32, "eos"),
    "vision-text-dual-encoder/dinov2+clip": _with(_embedded_tokenizer, _dinov2_clip, 64, "bos", "eos"),
    "vision-text-dual-encoder/vit+bert": _with(bert_tokenizer, _vit_bert, 32),
    "vision-text-dual-encoder/swin+roberta": _with(roberta_tokenizer, _swin_roberta, 32, "pad", "bos", "eos"),
}
