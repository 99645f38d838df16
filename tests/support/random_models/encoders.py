"""Random models that compare images with texts."""

from collections.abc import Callable
from typing import Any, Final

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

__all__ = ["ENCODERS"]


def _clip(s: Sizes) -> Made:
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = text_sizes(s, len(tokenizer), max_position_embeddings=64, projection_dim=s.width, **ids)
    config = CLIPConfig(text_config=text, vision_config=vision_sizes(s, projection_dim=s.width), projection_dim=s.width)
    return CLIPModel(config), tokenizer, CLIPImageProcessorPil(size=square(s), crop_size=square(s))


def _siglip(s: Sizes) -> Made:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = tokenizer_with()
    text = text_sizes(s, len(tokenizer), max_position_embeddings=16, projection_size=s.width)
    config = SiglipConfig(text_config=text, vision_config=vision_sizes(s))
    return SiglipModel(config), tokenizer, SiglipImageProcessorPil(size=square(s))


def _siglip2(s: Sizes) -> Made:
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    tokenizer, patches = gemma_tokenizer(), (s.image // s.patch) ** 2
    text = text_sizes(s, len(tokenizer), max_position_embeddings=16, projection_size=s.width)
    vision = {key: value for key, value in vision_sizes(s, num_patches=patches).items() if key != "image_size"}
    processor = Siglip2ImageProcessorPil(patch_size=s.patch, max_num_patches=patches)
    return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)), tokenizer, processor


def _metaclip_2(s: Sizes) -> Made:
    from transformers import CLIPImageProcessorPil, MetaClip2Config, MetaClip2Model

    tokenizer = xlm_tokenizer()
    text = text_sizes(s, len(tokenizer), max_position_embeddings=64, projection_dim=s.width, **_roles(tokenizer))
    vision = vision_sizes(s, projection_dim=s.width)
    config = MetaClip2Config(text_config=text, vision_config=vision, projection_dim=s.width)
    return MetaClip2Model(config), tokenizer, CLIPImageProcessorPil(size=square(s), crop_size=square(s))


def _altclip(s: Sizes) -> Made:
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessorPil

    tokenizer = xlm_tokenizer()
    text = text_sizes(s, len(tokenizer), max_position_embeddings=34, project_dim=s.width // 2, **_roles(tokenizer))
    config = AltCLIPConfig(text_config=text, vision_config=vision_sizes(s), projection_dim=s.width)
    return AltCLIPModel(config), tokenizer, CLIPImageProcessorPil(size=square(s), crop_size=square(s))


def _chinese_clip(s: Sizes) -> Made:
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessorPil, ChineseCLIPModel

    tokenizer = bert_tokenizer()
    text = text_sizes(s, len(tokenizer), max_position_embeddings=32)
    config = ChineseCLIPConfig(text_config=text, vision_config=vision_sizes(s), projection_dim=s.width)
    return ChineseCLIPModel(config), tokenizer, ChineseCLIPImageProcessorPil(size=square(s), crop_size=square(s))


def _aimv2(s: Sizes) -> Made:
    from transformers import Aimv2Config, Aimv2Model, AutoTokenizer, CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    text = text_sizes(s, len(tokenizer), max_position_embeddings=32, eos_token_id=tokenizer.eos_token_id)
    config = Aimv2Config(text_config=text, vision_config=vision_sizes(s), projection_dim=s.width)
    return Aimv2Model(config), tokenizer, CLIPImageProcessorPil(size=square(s), crop_size=square(s))


def _roles(tokenizer: Any) -> dict[str, int]:
    roles = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {role: int(getattr(tokenizer, role)) for role in roles}


def _pair(vision: Any, text: Any, s: Sizes) -> Any:
    """Two towers that were never made for each other, as Hugging Face joins them."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=s.width)
    return VisionTextDualEncoderModel(config)


def _vit_bert(s: Sizes) -> Made:
    from transformers import BertConfig, ViTConfig, ViTImageProcessorPil

    tokenizer = bert_tokenizer()
    text = BertConfig(**text_sizes(s, len(tokenizer), max_position_embeddings=32))
    return _pair(ViTConfig(**vision_sizes(s)), text, s), tokenizer, ViTImageProcessorPil(size=square(s))


def _swin_roberta(s: Sizes) -> Made:
    from transformers import RobertaConfig, SwinConfig, ViTImageProcessorPil

    tokenizer = roberta_tokenizer()
    text = RobertaConfig(**text_sizes(s, len(tokenizer), max_position_embeddings=34, **_roles(tokenizer)))
    heads = [s.heads // 2, s.heads // 2]
    vision = SwinConfig(
        image_size=s.image,
        patch_size=4,
        embed_dim=s.width // 2,
        depths=[1, s.layers - 1],
        num_heads=heads,
        window_size=4,
    )
    return _pair(vision, text, s), tokenizer, ViTImageProcessorPil(size=square(s))


def _dinov2_clip(s: Sizes) -> Made:
    from transformers import AutoTokenizer, BitImageProcessorPil, CLIPTextConfig, Dinov2Config

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(**text_sizes(s, len(tokenizer), max_position_embeddings=64, **ids))
    vision = {key: value for key, value in vision_sizes(s, mlp_ratio=2).items() if key != "intermediate_size"}
    processor = BitImageProcessorPil(size=square(s), crop_size=square(s))
    return _pair(Dinov2Config(**vision), text, s), tokenizer, processor


ENCODERS: Final[dict[str, Callable[[Sizes], Made]]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "metaclip_2": _metaclip_2,
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
    "aimv2": _aimv2,
    "vision-text-dual-encoder/dinov2+clip": _dinov2_clip,
    "vision-text-dual-encoder/vit+bert": _vit_bert,
    "vision-text-dual-encoder/swin+roberta": _swin_roberta,
}
