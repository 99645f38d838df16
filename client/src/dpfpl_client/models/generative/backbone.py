"""A frozen generative vision-language model: pictures to rows of tokens, texts to embeddings, tasks to scorers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.class_scorer import EXACT
from dpfpl_client.models.files import feature_identity, load_image_processor, load_parts, model_fingerprint
from dpfpl_client.models.folder import model_type
from dpfpl_client.models.generative.language import LanguageModel
from dpfpl_client.models.generative.layout import Ends, layout_of
from dpfpl_client.models.generative.scorer import AnswerScorer
from dpfpl_client.models.generative.template import FAMILIES, Family, processor_template
from dpfpl_client.models.image_tower import batches
from dpfpl_client.models.words import refuse_alike, repeated_to_the_left
from dpfpl_common.errors import ModelError
from dpfpl_common.experiment import TASKS, Experiment

__all__ = ["GenerativeBackbone", "load_generative"]

EDGE: Final = 448
"""To which pictures are brought, in pixels, where the model would otherwise take any size: 256 tokens of Qwen2-VL."""

TRIAL: Final = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Largest relative difference of logits to plain transformers, by what is computed in."""

PREPARED: Final = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
"""What image towers take of what image processors give."""


class GenerativeBackbone(Backbone):
    """A frozen generative model, which can be asked everything, but has no features of classes to sum.

    Attributes:
        feature_size: length of a picture's row: its tokens times d, times what Qwen3-VL adds for deeper layers.
        layout: how a turn is laid out.
        language: the language model behind a picture.
    """

    tasks: tuple[str, ...] = TASKS
    mechanisms: tuple[str, ...] = ("per_step",)

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str, template: str | None = None
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._image_processor = image_processor
        self.family = str(model.config.model_type)
        self._quirks = FAMILIES[self.family]
        self.fingerprint = fingerprint
        self._edge = _edge(self._quirks, model.config)
        rounding = [] if model.dtype == torch.float32 else [model.dtype]
        self.feature_identity = feature_identity(fingerprint, image_processor, self._edge, self._quirks, *rounding)
        probe = self._prepared([Image.new("RGB", (64, 48), (90, 120, 150))])
        (row,) = self._rows(probe)
        self.width = int(model.get_input_embeddings().weight.shape[1])
        self.feature_size = row.numel()
        self.layout = layout_of(
            self._quirks,
            tokenizer,
            int(model.config.image_token_id),
            len(row),
            rows=len(model.get_input_embeddings().weight),
            template=template,
            ends=_ends(model),
        )
        self.words = self.layout.words
        self.language = LanguageModel(
            model,
            self.layout,
            self._quirks,
            depth=int(row.shape[1]) // self.width,
            grid=probe.get("image_grid_thw") if self._quirks.rope_index else None,
        )
        self._try(probe, row)

    @property
    def shortcuts(self) -> str:
        """What is computed once, exactly."""
        return "picture's tokens once; " + (
            "the turn up to the context once a picture, without a graph"
            if self.language.shared
            else "no layer's activations are kept"
        )

    @property
    def turn(self) -> dict[str, object]:
        """How a turn is laid out, for users of an exported prompt with plain transformers."""
        return {
            "head": [int(token) for token in self.layout.head],
            "before": self.layout.before,
            "lead": self.layout.lead,
            "tail": self.layout.tail,
            "ends": list(self.layout.ends),
            "control": sorted(self.words.control),
            "square": self._edge,
            "nested": self._quirks.nested,
            "processor_options": dict(self._quirks.processor_options),
            "rope_index": self._quirks.rope_index,
            "sees_ahead": self._quirks.sees_ahead,
            "attention": self._quirks.attention,
        }

    def hold(self, size: int) -> None:
        """Hold at most ``size`` bytes of keys and values of pictures between steps."""
        self.language.hold(size)

    def text_embeddings(self, text: str, num_context: int) -> torch.Tensor:
        """Token embeddings [num_context, width] of a text, repeated to the left until they fill the context."""
        ids = repeated_to_the_left(self.words.ids(text), text, num_context)
        found = self.language.embed(torch.tensor(ids, dtype=torch.long)).detach().reshape(len(ids), self.width)
        return _given(found)

    def check_words(self, *texts: str) -> None:
        """Refuse texts that cannot be asked or answered.

        Raises:
            ModelError: SPECIAL_TOKEN.
        """
        for text in texts:
            self.layout.question_ids(text)
            self.layout.answer_ids(text)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Refuse class names that are the same answer, token by token.

        Raises:
            ModelError: CLASSES_READ_ALIKE or SPECIAL_TOKEN.
        """
        refuse_alike(class_names, [self.layout.answer_ids(name) for name in class_names])

    @torch.no_grad()
    def image_features(self, images: Iterable[Image.Image], batch_size: int = 16) -> Iterator[torch.Tensor]:
        """A picture's tokens in the language model's embedding space, one row [feature_size] a picture."""
        for batch in batches(images, 1 if self.language.singly else batch_size):
            for row in self._rows(self._prepared(batch)):
                yield _given(row.flatten()).clone()

    def scorer(self, experiment: Experiment) -> AnswerScorer:
        """The model joined to an experiment's task.

        Raises:
            ModelError: what the experiment asks for has no meaning for a model without features of classes; or
                SPECIAL_TOKEN, its question or a class name spells one.
        """
        self.check_words(experiment.task.question, *experiment.classes)
        self.check_classes(experiment.classes)
        if experiment.privacy.mechanism not in self.mechanisms:
            raise ModelError(
                code="NO_CLASS_FEATURES",
                message=f"one_shot releases sums of image features for each class, which a model of the family "
                f"{self.family!r} does not compare with classes.",
                advice='Write mechanism = "per_step" under [privacy] of experiment.toml (dpfpl-bench run --mechanism '
                "per_step), or use a model of the CLIP or SigLIP family.",
            )
        if experiment.prompt.retention or experiment.prompt.contrast:
            raise ModelError(
                code="NO_CLASS_FEATURES",
                message=f"prompt.retention and prompt.contrast pull on class features, which a model of the family "
                f"{self.family!r} does not have.",
                advice="Leave them out, or use a model of the CLIP or SigLIP family.",
            )
        if experiment.gradients != EXACT:
            raise ModelError(
                code="NO_ESTIMATES",
                message=f"The cheaper estimates of [gradients] are not made for the family {self.family!r}.",
                advice="Leave [gradients] out.",
            )
        scorer = AnswerScorer(self.language, self.layout, experiment.task, experiment.classes)
        for name in experiment.classes:
            if scorer.too_long(experiment.prompt.num_context, scorer.question, name):
                raise ModelError(
                    code="PROMPT_TOO_LONG",
                    message=f"A turn with {experiment.prompt.num_context} context vectors and the class name {name!r} "
                    f"has more than the model's {self.language.longest} tokens.",
                    advice="Use fewer context vectors, a shorter question or a shorter class name.",
                )
        return scorer

    @torch.no_grad()
    def _try(self, probe: dict[str, torch.Tensor], row: torch.Tensor) -> None:
        """Refuse a model whose answers are not those of plain transformers, on tokens of its whole vocabulary.

        Raises:
            ModelError: TEXT_TOWER_UNUSABLE.
        """
        embedding, head = self._model.get_input_embeddings(), self.layout.head
        usable = [token for token in range(len(embedding.weight)) if token not in self.words.control]
        drawn = torch.randint(len(usable), (8,), generator=torch.Generator().manual_seed(0)).tolist()
        said = [usable[place] for place in drawn]
        context, answer = torch.tensor(said[:4]), said[4:]
        behind = [*self.layout.question_ids("What is in the picture?"), *answer]
        vectors = self.language.embed(torch.tensor([[*context.tolist(), *behind]]))
        ours = self.language.logits(self.language.states(row.flatten()[None].cpu(), vectors, len(answer)))[0]
        self.language.forget()
        ids = torch.tensor([[*head.tolist(), *context.tolist(), *behind]], device=self._model.device)
        theirs = self._plain_logits(ids, probe, len(answer))[-len(vectors[0]) :].to(ours)
        difference = float((ours - theirs).float().norm() / theirs.float().norm())
        if not difference <= TRIAL.get(self._model.dtype, 0.0):
            raise ModelError(
                code="TEXT_TOWER_UNUSABLE",
                message=f"The language model of this {self.family!r} model takes no learned context: relative "
                f"difference {difference:.1e} to plain transformers.",
                advice="Use the model's files as they were published, or another model.",
            )

    def _plain_logits(self, ids: torch.Tensor, probe: dict[str, torch.Tensor], answer: int) -> torch.Tensor:
        """[length, vocabulary] of a whole turn [1, length] by the model's own forward, from the picture's pixels on."""
        picture = torch.zeros_like(ids, dtype=torch.bool)
        picture[0, : len(self.layout.picture)] = self.layout.picture.to(ids.device)
        given = {key: value.to(ids.device) for key, value in probe.items()}
        if self._quirks.rope_index:
            places = self._model.model.get_rope_index(ids.cpu(), picture.int().cpu(), probe["image_grid_thw"].cpu())[0]
            given["position_ids"] = places.to(ids.device)
        if self._quirks.sees_ahead:
            said = torch.arange(ids.shape[1], device=ids.device)[None] >= ids.shape[1] - answer
            given["token_type_ids"] = (picture if self._quirks.sees_ahead == "picture" else said).long()
        embedded = self._model.get_input_embeddings()(ids)
        logits: torch.Tensor = self._model(inputs_embeds=embedded, use_cache=False, **given).logits[0]
        return logits

    def _prepared(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the image tower takes."""
        if self._edge:
            images = [image.resize((self._edge, self._edge), Image.Resampling.BICUBIC) for image in images]
        given = [[image] for image in images] if self._quirks.nested else images
        found = self._image_processor(images=given, return_tensors="pt", **self._quirks.processor_options)
        return {key: found[key] for key in PREPARED if key in found}

    @torch.no_grad()
    def _rows(self, prepared: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """A picture's tokens [tokens, depth * width], for every picture."""
        found = self._model.get_image_features(**{key: value.to(self._model.device) for key, value in prepared.items()})
        deeper = getattr(found, "deepstack_features", None) or []
        return [torch.cat(levels, dim=1) for levels in zip(found.pooler_output, *deeper, strict=True)]


def _given(found: torch.Tensor) -> torch.Tensor:
    """On the processor, in float32 where the model computes in less."""
    found = found.cpu()
    return found.float() if found.dtype == torch.bfloat16 else found


def _ends(model: Any) -> Ends:
    """What generation_config.json says about the end of an answer."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    ids = tuple(found) if isinstance(found, list | tuple) else () if found is None else (int(found),)
    return Ends(ids, bool(getattr(config, "_from_model_config", False)))


def _edge(quirks: Family, config: Any) -> int | None:
    """Of the square that pictures are brought to, in pixels; None where the processor makes all of one size."""
    if quirks.square == "tower":
        size = config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])
    if quirks.row_ends:  # whole rows of merged patches
        return EDGE - EDGE % (int(config.vision_config.patch_size) * int(config.spatial_merge_size))
    return EDGE if quirks.square else None


def load_generative(folder: Path, dtype: torch.dtype, device: torch.device) -> GenerativeBackbone:
    """The generative model of a folder."""
    from transformers import AutoModelForImageTextToText

    options = {"attn_implementation": FAMILIES[model_type(folder)].attention, "dtype": dtype}
    parts = load_parts(folder, AutoModelForImageTextToText, load_image_processor, device, **options)
    return GenerativeBackbone(*parts, model_fingerprint(folder), processor_template(folder))
