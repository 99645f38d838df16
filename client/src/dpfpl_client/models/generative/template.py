"""A model's chat template: which one it is, and what it writes of a turn with one picture and one question."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from dpfpl_common.errors import ModelError
from dpfpl_common.ops.text import first_line

__all__ = ["FAMILIES", "REFUSED", "Family", "Turn", "processor_template", "written_turn"]


# What differs between families of generative models: how a picture is written, prepared and attended to.


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


logger = logging.getLogger(__name__)

DAY: Final = datetime(2025, 1, 1)
"""What a chat template that writes today's date is told: a turn must be the same at every site and on every day."""

TODAY: Final = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")

QUESTION, ANSWER = "DPFPLQUESTION", "DPFPLANSWER"
"""Where they go, while a chat template is rendered; no template contains these words."""

READABLE: Final = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Turn:
    """A turn's texts, the picture as the template writes it.

    Attributes:
        head: before the question.
        tail: between question and answer.
        gap: what the template writes between the tail and an answer, usually nothing or a space.
        close: what it writes behind an answer; empty where that is unknown.
    """

    head: str
    tail: str
    gap: str = ""
    close: str = ""


def processor_template(folder: Path) -> str | None:
    """The chat template that the folder's processor would take, in the order in which transformers looks for it.

    Raises:
        ModelError: BAD_TEMPLATE, the file that should hold it is damaged.
    """
    named, legacy, raw = (
        folder / name for name in ("processor_config.json", "chat_template.json", "chat_template.jinja")
    )
    try:
        for file in (named, legacy):
            found = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
            if found is not None:
                return str(found["default"] if isinstance(found, dict) else found)
        return raw.read_text(encoding="utf-8") if raw.is_file() else None
    except READABLE as error:
        raise _bad(f"cannot be read ({type(error).__name__})") from None


def written_turn(family: Family, tokenizer: Any, image: str, template: str | None) -> Turn:
    """The turn by the processor's chat template, else by the tokenizer's, else by the family's.

    A tokenizer often comes with its language model's template, which takes texts only. The processor would not look at
    it, so the family's is taken then.

    Args:
        family: of the model.
        tokenizer: the model's own.
        image: what stands for a picture in the text.
        template: the processor's; None where it has none.

    Raises:
        ModelError: BAD_TEMPLATE, DATED_TEMPLATE, or NO_PICTURE_IN_TEMPLATE: it does not put one picture before the
            question.
    """
    own = template if template is not None else _tokenizers(tokenizer)
    if own is not None:
        fixed = _without_today(own)
        try:
            turn = _rendered(tokenizer, fixed, image)
        except ModelError:
            if template is not None or not _for_texts_only(tokenizer, fixed, image):
                raise
            logger.warning("The tokenizer's chat template takes texts only; the turn is laid out as its family's are.")
        else:
            return turn
    text = family.template.format(image=image, text=QUESTION, bos=tokenizer.bos_token or "")
    head, tail = _parted(text, image)
    return Turn(head, tail, family.gap)


def _tokenizers(tokenizer: Any) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several, and none is the default
        raise _bad(f"cannot be chosen ({first_line(error)})") from None


def _rendered(tokenizer: Any, template: str, image: str) -> Turn:
    """What the template writes."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = _applied(tokenizer, template, asked, opens=True)
    head, tail = _parted(text, image)
    try:
        answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}]
        whole = _applied(tokenizer, template, answered, opens=False)
    except ModelError:  # not every template takes answers of this form; none is needed
        return Turn(head, tail)
    said, found, close = whole.partition(ANSWER)
    gap = said.removeprefix(text)
    if not found or not said.startswith(text) or gap.strip():
        return Turn(head, tail)
    return Turn(head, tail, gap, close)


def _for_texts_only(tokenizer: Any, template: str, image: str) -> bool:
    """Whether the template writes a question that is a plain text, and pictures nowhere."""
    try:
        text = _applied(tokenizer, template, [{"role": "user", "content": QUESTION}], opens=True)
    except ModelError:
        return False
    return QUESTION in text and image not in text


def _applied(tokenizer: Any, template: str, messages: list[dict[str, Any]], *, opens: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=opens, tokenize=False)
        )
    except (TemplateError, *READABLE, ArithmeticError) as error:
        raise _bad(f"fails with one picture and one question: {first_line(error)}") from None


def _parted(text: str, image: str) -> tuple[str, str]:
    """What stands before and behind the question."""
    head, found, tail = text.partition(QUESTION)
    if not found or head.count(image) != 1 or image in tail:
        raise ModelError(
            code="NO_PICTURE_IN_TEMPLATE",
            message=f"The model's chat template does not write one picture ({image}) before the question.",
            advice="Use a model whose chat template accepts one picture and one text, the picture first.",
        )
    return head, tail


def _without_today(template: str) -> str:
    """A chat template that writes one certain day where it would write today's date.

    Raises:
        ModelError: DATED_TEMPLATE, the date's form is computed, so that it cannot be replaced.
    """
    fixed = TODAY.sub(lambda found: json.dumps(DAY.strftime(found[2])), template)
    if "strftime_now(" in fixed:
        raise ModelError(
            code="DATED_TEMPLATE",
            message="The model's chat template writes today's date, so a turn would be another one every day.",
            advice="Use a model whose chat template writes no date.",
        )
    return fixed


def _bad(what: str) -> ModelError:
    return ModelError(
        code="BAD_TEMPLATE",
        message=f"The model's chat template {what}.",
        advice="Put a chat template that takes pictures beside the model, chat_template.jinja, or use another model.",
    )
