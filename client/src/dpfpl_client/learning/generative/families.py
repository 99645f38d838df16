"""What differs between families of generative models: how a picture is written, prepared and attended to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["FAMILIES", "REFUSED", "Family"]


@dataclass(frozen=True)
class Family:
    """One architecture's quirks, as its own processor and model in transformers have them.

    Attributes:
        template: a turn without a chat template of the model's own; ``{image}``, ``{text}`` and ``{bos}`` are put in.
        written: what the chat template writes where the picture goes; the image token where empty.
        around: what stands directly before and after a picture's tokens, beside what the template writes.
        row_ends: what follows each row of a picture's tokens, and its last row; None where rows follow each other.
        opening: what the tokenizer puts before every text opens the turn too.
        gap: what ``template`` has between the tail and an answer.
        end: the token that ends an answer, where it is not the tokenizer's end token.
        processor_options: for the image processor, so that every picture gets the same number of tokens.
        square: bring pictures to a square first, for processors that would keep the proportions: of one size for all
            models, or of the image tower's.
        nested: the image processor takes one list of pictures for each text.
        rope_index: positions are the model's own ``get_rope_index``.
        sees_ahead: who does, by the model's own ``token_type_ids``: the picture's tokens each other, or all
            before the answer each other; empty where nobody does.
        attention: the implementation that computes what the family was trained with.
        caps_logits: the wrapper caps logits as its language model would.
    """

    template: str
    written: str = ""
    around: tuple[str, str] = ("", "")
    row_ends: tuple[str, str] | None = None
    opening: bool = True
    gap: str = ""
    end: str = ""
    processor_options: Mapping[str, object] = field(default_factory=dict)
    square: Literal["", "any", "tower"] = ""
    nested: bool = False
    rope_index: bool = False
    sees_ahead: Literal["", "picture", "prefix"] = ""
    attention: str = "sdpa"
    caps_logits: bool = False


_LLAVA = Family("USER: {image}\n{text} ASSISTANT:", gap=" ")
_IDEFICS = Family(
    "<|im_start|>User:{image}{text}<end_of_utterance>\nAssistant:",
    gap=" ",
    around=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    processor_options={"do_image_splitting": False},
    nested=True,
)
_QWEN = Family(
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n",
    square="any",
    rope_index=True,
)

FAMILIES: Final[Mapping[str, Family]] = {
    "llava": _LLAVA,
    "llava_next": Family("[INST] {image}\n{text} [/INST]", gap=" ", square="tower"),
    "llava_onevision": Family("<|im_start|>user {image}\n{text}<|im_end|><|im_start|>assistant\n", square="tower"),
    "internvl": Family(
        "<|im_start|>user\n{image}\n{text}<|im_end|>\n<|im_start|>assistant\n",
        around=("<img>", "</img>"),
        processor_options={"crop_to_patches": False},
    ),
    "mistral3": Family("[INST]{image}{text}[/INST]", row_ends=("[IMG_BREAK]", "[IMG_END]"), square="any"),
    "gemma3": Family(
        "<start_of_turn>user\n{image}{text}<end_of_turn>\n<start_of_turn>model\n",
        written="<start_of_image>",
        around=("\n\n<start_of_image>", "<end_of_image>\n\n"),
        end="<end_of_turn>",
        processor_options={"do_pan_and_scan": False},
        sees_ahead="picture",
    ),
    "paligemma": Family(
        "{image}{bos}{text}\n",
        opening=False,
        sees_ahead="prefix",
        attention="eager",  # Gemma 2 caps attention, which transformers computes in this way only
        caps_logits=True,
    ),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": _QWEN,
}
"""By the model type of their config.json."""

_CROSS = "its language model sees pictures by cross-attention, not as tokens before the question"
_TWO_PARTS = "it is an encoder and a decoder, so there is no turn in which a context could stand"
_BY_ID = "some layers take embeddings by a token's number, which a learned vector has not"
_ENTRIES = "its pictures become entries of the vocabulary"

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("mllama", "idefics", "blip"), _CROSS),
    **dict.fromkeys(("florence2", "pix2struct", "udop", "vision-encoder-decoder", "t5gemma2"), _TWO_PARTS),
    **dict.fromkeys(("gemma3n", "gemma4"), _BY_ID),
    **dict.fromkeys(("chameleon", "emu3"), _ENTRIES),
    **dict.fromkeys(("instructblip", "instructblipvideo"), "what it sees of a picture depends on the question"),
    "blip-2": "its pictures pass through a Q-Former, which was not tried",
    "qwen3_vl_moe": "its layers choose experts, which was not tried",
}
"""Why well-known families cannot be used, by model type."""
