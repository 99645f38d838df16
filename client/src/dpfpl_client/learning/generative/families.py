"""What differs between families of generative models: how a picture is written, and how it is prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """One architecture's quirks, as its own processor in transformers has them.

    Attributes:
        template: a turn without a chat template of the model's own; ``{image}`` and ``{text}`` are put in.
        around: what stands directly before and after a picture's tokens, beside what the template writes.
        processor_options: for the image processor, so that every picture gets the same number of tokens.
        square: bring pictures to a square first, for processors that would keep the proportions.
        nested: the image processor takes one list of pictures for each text.
        rope_index: positions are the model's own ``get_rope_index``.
    """

    template: str
    around: tuple[str, str] = ("", "")
    processor_options: Mapping[str, object] = field(default_factory=dict)
    square: bool = False
    nested: bool = False
    rope_index: bool = False


_LLAVA = Family("USER: {image}\n{text} ASSISTANT:")
_IDEFICS = Family(
    "<|im_start|>User:{image}{text}<end_of_utterance>\nAssistant:",
    around=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    processor_options={"do_image_splitting": False},
    nested=True,
)
_QWEN = Family(
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n",
    square=True,
    rope_index=True,
)

FAMILIES: Final[Mapping[str, Family]] = {
    "llava": _LLAVA,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
}
"""By the model type of their config.json."""
