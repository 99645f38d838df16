"""A learned context as a stock PEFT adapter: trained embedding rows of tokens that a tokenizer can spell.

PEFT's own prompt-tuning methods put virtual tokens before the whole input and need a task head that CLIP has not. What
fits is ``TrainableTokens``, which replaces single rows of an embedding. New tokens behind the vocabulary would do for
some checkpoints only: those with the old ``eos_token_id = 2`` look for the *largest* id of a sequence to find its end.
So rows of the vocabulary itself are used: as many of its rarest entries as there are context vectors, which the
exported tokenizer spells ``<|context_1|>``, ``<|context_2|>``, ... That costs it those rare words, which it then reads
in smaller pieces, and nothing in the class names: that is checked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_common.ops.files import write_durably

__all__ = ["ADAPTER_FILES", "Adapter", "NotExpressibleError", "build_adapter"]

TARGET = "text_model.embeddings.token_embedding"
WHOLE_WORD = "</w>"
ADAPTER_FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
"""What ``Adapter.write`` writes."""


class NotExpressibleError(Exception):
    """This model's tokenizer cannot spell the context; the text is the reason."""


@dataclass(frozen=True)
class Adapter:
    """What stock transformers and peft need.

    Attributes:
        tokenizer: a stock tokenizer that spells the context vectors.
        token_ids: the embedding rows that the context takes, one for each vector.
        context: [num_context, width], the rows' values.
        prompts: the text of every class, as the tokenizer takes it.
        base_model: name of the model in the adapter's configuration.
    """

    tokenizer: Any
    token_ids: tuple[int, ...]
    context: Tensor
    prompts: tuple[str, ...]
    base_model: str

    def write(self, folder: Path, embedding: nn.Embedding) -> list[str]:
        """Write adapter_config.json, adapter_model.safetensors and the folder ``tokenizer``; gives the files' names.

        PEFT's ``AutoPeftModel`` asks a model beside a tokenizer for its input embeddings, which CLIP does not tell:
        hence the folder of its own.

        Args:
            folder: an existing folder.
            embedding: of the base model, [vocabulary, width]; it stays as it is.
        """
        from peft import TrainableTokensConfig, get_peft_model, get_peft_model_state_dict

        config = TrainableTokensConfig(token_indices=list(self.token_ids), target_modules=[TARGET])
        wrapped = get_peft_model(_TextTowerShape(embedding), config)  # type: ignore[arg-type]
        (layer,) = [module for module in wrapped.modules() if hasattr(module, "trainable_tokens_delta")]
        with torch.no_grad():
            layer.trainable_tokens_delta["default"].copy_(self.context)
        state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        write_durably(
            folder / "adapter_model.safetensors",
            save({name: value.detach().contiguous() for name, value in state.items()}, {"format": "pt"}),
        )
        config.base_model_name_or_path = self.base_model
        config.auto_mapping = {"base_model_class": "AutoModel", "parent_library": "transformers"}
        config.inference_mode = True
        config.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder / "tokenizer"))
        return list(ADAPTER_FILES)


class _TextTowerShape(nn.Module):
    """Only what gives the adapter's tensors the names that they have in a CLIPModel; no copy of the weights."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.text_model = nn.ModuleDict({"embeddings": nn.ModuleDict({"token_embedding": embedding})})

    def forward(self, input_ids: Tensor) -> Tensor:
        """Never called: nothing is computed through it."""
        raise AssertionError(input_ids)


def build_adapter(
    backbone: DualEncoder, context: Tensor, class_names: Sequence[str], base_model: str, text: str = ""
) -> Adapter:
    """The adapter for a context [num_context, width] that began as ``text``, and these classes.

    Raises:
        NotExpressibleError: the family lays prompts out otherwise, the tokenizer is no byte-pair one, has too few
            entries to spare, or would read a class prompt differently.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = backbone.tokenizer
    if backbone.adapter_obstacle:
        raise NotExpressibleError(backbone.adapter_obstacle)
    description = json.loads(own.backend_tokenizer.to_str()) if own.is_fast else {"model": {}}
    if description["model"].get("type") != "BPE":
        raise NotExpressibleError("its tokenizer is no byte-pair tokenizer")
    needed = [backbone.words.behind(name, text) for name in class_names]
    spare = _spare_entries(description, {token for ids in needed for token in ids})[: len(context)]
    if len(spare) < len(context):
        raise NotExpressibleError(f"its vocabulary has {len(spare)} entries to spare, the context needs {len(context)}")
    names = [f"<|context_{number}|>" for number in range(1, len(context) + 1)]
    _rename(description, dict(zip(spare, names, strict=True)))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token=own.bos_token,
        eos_token=own.eos_token,
        pad_token=own.eos_token,
        model_max_length=own.model_max_length,
    )
    prompts = tuple(f"{''.join(names)}{name}." for name in class_names)
    ids = tuple(int(i) for i in tokenizer.convert_tokens_to_ids(names))
    for prompt, suffix in zip(prompts, needed, strict=True):
        if tokenizer(prompt)["input_ids"] != backbone.frame.around([*ids, *suffix]):
            raise NotExpressibleError("a class prompt would be read differently by the exported tokenizer")
    return Adapter(tokenizer, ids, context, prompts, base_model)


def _spare_entries(description: dict[str, Any], needed: set[int]) -> list[str]:
    """Whole words that no merge builds on and no class name uses, the rarest (last learned) first."""
    model = description["model"]
    used = {part for merge in model["merges"] for part in _pair(merge)}
    special = {token["content"] for token in description["added_tokens"]}
    made = {"".join(_pair(merge)) for merge in model["merges"]} - used - special
    spare = [
        (number, word)
        for word, number in model["vocab"].items()
        if word.endswith(WHOLE_WORD) and word in made and number not in needed
    ]
    return [word for _, word in sorted(spare, reverse=True)]


def _rename(description: dict[str, Any], names: dict[str, str]) -> None:
    """Give vocabulary entries other names, as special tokens, and forget how to spell the old ones."""
    model = description["model"]
    model["merges"] = [merge for merge in model["merges"] if "".join(_pair(merge)) not in names]
    model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
    description["added_tokens"] = sorted(
        [
            *description["added_tokens"],
            *(
                {
                    "id": model["vocab"][name],
                    "content": name,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for name in names.values()
            ),
        ],
        key=lambda token: int(token["id"]),
    )


def _pair(merge: Any) -> tuple[str, str]:
    """Both parts of a merge, which older tokenizer files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
