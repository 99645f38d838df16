"""A site's learned prompt, for use after training.

In Python::

    from dpfpl_client import load_prompt
    from dpfpl_client.models.loader import load_backbone

    prompt = load_prompt("kits/hospital-a")  # a folder with site.toml, a state folder, or an exported prompt
    classifier = prompt.classifier(load_backbone("embedded"))
    for prediction in classifier.classify(images, top=3):  # PIL images, any number, in batches
        print(prediction.classes[0], prediction.probabilities[0])
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dpfpl_client.agent.store import Choice, DiskStore
from dpfpl_client.learning.evidence import SiteHead, chosen_head, own_rows, rows_at_site, shares_from, site_head
from dpfpl_client.learning.learner import initial_context
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.site.settings import load_site
from dpfpl_client.use.predict import Prediction
from dpfpl_common.errors import ConfigError, ModelError, StateError
from dpfpl_common.evidence import Pool, unpack_pool
from dpfpl_common.experiment import LONGEST_NAME, LONGEST_QUESTION, Experiment, parse_experiment, unprintable
from dpfpl_common.privacy_plan import class_sums_multiplier, noise_share

__all__ = ["CLASS_VECTORS", "Classifier", "Prediction", "SitePrompt", "list_prompts", "load_prompt"]

CLASS_VECTORS = "class_vectors.safetensors"
"""Of an exported prompt, with evidence: ``vectors``, ``scale``, ``bias`` (the head's own), ``shares`` of the classes as
released values show them, and ``mix``, the log of how often each class is expected, which follows from the shares.
"""


class Classifier:
    """A prompt joined to its model: what depends on the classes alone is computed once, each image is one pass.

    Attributes:
        classes: their names, in the experiment's order, then those that were added; none where the prompt was learned
            to answer questions.
        task: the experiment's.

    Args:
        prompt: a site's.
        backbone: the model it was learned for.
        question: asked of every image, where the prompt was learned to answer questions; for captions the
            experiment's own where empty. None: every call of ``classify`` brings its own.

    Raises:
        ModelError: NO_QUESTION, UNWANTED_QUESTION or BAD_QUESTION.
    """

    def __init__(self, prompt: "SitePrompt", backbone: Backbone, question: str | None = "") -> None:
        self.task, self._backbone = prompt.experiment.task, backbone
        self._question = None if question is None else self.asked(question)
        self.classes = prompt.classes
        with torch.inference_mode():
            self._head = prompt.head(backbone)
            self._predictor = backbone.scorer(prompt.listing()).at(prompt.context(backbone))

    def classify(
        self, images: Iterable[Image.Image], top: int = 1, question: str | None = None
    ) -> Iterator[Prediction]:
        """The ``top`` most probable classes of every image, or the answer, in the images' order.

        Args:
            images: any number.
            top: how many classes.
            question: instead of the classifier's own, for these images.

        Raises:
            ModelError: as ``asked``.
        """
        own = self._question if question is None else None
        asked = self.asked(question or "") if own is None else own
        for feature in self._backbone.image_features(images):
            if self.task.in_words:
                answer, probability = self._predictor.reply(feature, asked)
                yield Prediction((answer,), (round(probability, 6),))
                continue
            use = self._predictor if self._head is None else self._head
            probabilities = use.probabilities(feature[None])[0]
            best = probabilities.topk(min(top, len(self.classes)))
            yield Prediction(
                tuple(self.classes[index] for index in best.indices.tolist()),
                tuple(round(value, 6) for value in best.values.tolist()),
            )

    def asked(self, question: str) -> str:
        """The question as the model is asked it, in one line; for captions the experiment's own where there is none.

        Raises:
            ModelError: NO_QUESTION, UNWANTED_QUESTION or BAD_QUESTION.
        """
        asked = " ".join(question.split())
        if asked and not self.task.in_words:
            raise ModelError(
                code="UNWANTED_QUESTION",
                message="The prompt was learned to tell classes apart; it answers no questions.",
                advice="Leave the question out.",
            )
        if len(asked) > LONGEST_QUESTION:
            raise ModelError(
                code="BAD_QUESTION",
                message=f"The question is longer than {LONGEST_QUESTION} characters.",
                advice="Ask a shorter one.",
            )
        if strange := unprintable(asked):
            raise ModelError(
                code="BAD_QUESTION",
                message=f"The question has the unprintable character U+{ord(strange):04X}.",
                advice="Ask it in plain text.",
            )
        self._check_words(asked)
        if self.task.kind == "vqa" and not asked:
            raise ModelError(
                code="NO_QUESTION",
                message="The prompt was learned to answer questions about images, and none was asked.",
                advice='Ask one: --question "what is it?", or in a request ?question=what+is+it.',
            )
        return asked or (self.task.question if self.task.kind == "caption" else "")

    def _check_words(self, asked: str) -> None:
        try:
            self._backbone.check_words(asked)
        except ModelError as error:
            raise ModelError(code="BAD_QUESTION", message=error.message, advice=error.advice) from None


@dataclass(frozen=True)
class SitePrompt:
    """One site's prompt of one experiment.

    Attributes:
        global_context: p_G, float32 [num_context, width], displacement from the initial text.
        personal_context: p_L, float64 [num_context, width].
        round: rounds the personal context has seen.
        choice: what the sites' votes chose, at the site; None without evidence, and of an exported prompt.
        class_sums: what the site released, noised, [classes, feature_size]; None without evidence.
        vote: what it released besides, as in ``PersonalState``.
        exported: what an exported prompt classifies with; None at the site, and without evidence.
        added: names of classes that were added to the experiment's afterwards.
        version: the first digits of a sha256 over what was learned; an exported prompt keeps its site's.
        learned: when, UTC.
        finished: whether the experiment came to its end; before it, class vectors are missing.
    """

    experiment: Experiment
    global_context: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    personal_context: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    round: int
    choice: Choice | None = None
    class_sums: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    vote: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    exported: SiteHead | None = None
    version: str = ""
    learned: str = ""
    finished: bool = True
    added: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The experiment's, and those that were added."""
        return (*self.experiment.classes, *self.added)

    def listing(self) -> Experiment:
        """The experiment with all these classes, whose texts the model is to read."""
        return dataclasses.replace(self.experiment, classes=self.classes)

    def about(self) -> dict[str, Any]:
        """What the prompt is called: ``experiment``, ``version``, ``learned``, ``round``, ``rounds``, ``finished``."""
        facts = {"experiment": self.experiment.name, "version": self.version, "learned": self.learned}
        return facts | {"round": self.round, "rounds": self.experiment.rounds.number, "finished": self.finished}

    def __str__(self) -> str:
        state = "" if self.finished else ", half-finished"
        rounds = f"round {self.round} of {self.experiment.rounds.number}"
        return f"{self.experiment.name}, version {self.version}, learned {self.learned} ({rounds}{state})"

    def with_strength(self, strength: float) -> "SitePrompt":
        """The prompt alone, without class vectors, with another weight alpha of its personal part.

        0 is the shared prompt alone, 1 as trained.

        Raises:
            ConfigError: not from 0 to 10.
        """
        prompt = dataclasses.replace(self.experiment.prompt, personal_strength=strength)
        experiment = dataclasses.replace(self.experiment, prompt=prompt)
        return dataclasses.replace(self, experiment=experiment, choice=None, exported=None)

    def with_usual_mix(self, usual_mix: float) -> "SitePrompt":
        """The same with another share of images that are expected from the site's usual mix of classes.

        Raises:
            ConfigError: not from 0 to below 1.
        """
        prompt = dataclasses.replace(self.experiment.prompt, usual_mix=usual_mix)
        return dataclasses.replace(self, experiment=dataclasses.replace(self.experiment, prompt=prompt))

    def with_names(self, *names: str) -> "SitePrompt":
        """The same for a longer list: nobody learned from images of these classes, so the model knows them by name.

        Class vectors are moved to where images lie (``evidence.with_names``); those of the others stay as they are. A
        name that the model cannot take is refused where the model is used: CLASSES_READ_ALIKE, SPECIAL_TOKEN,
        NAME_JOINS_TEXT or PROMPT_TOO_LONG.

        Raises:
            ConfigError: BAD_NAME, one is empty, unprintable, too long or in the list already.
            ModelError: NO_CLASSES, the prompt answers in words.
            StateError: NAMES_MISSING, an exported prompt has class vectors, and no longer what they were made from.
        """
        if not names:
            return self
        if self.experiment.task.in_words:
            raise ModelError(
                code="NO_CLASSES",
                message="The prompt was learned to answer in words; it has no list of classes.",
                advice="Leave the names out.",
            )
        if self.exported is not None:
            raise StateError(
                code="NAMES_MISSING",
                message="An exported prompt has class vectors for its own list alone.",
                advice="Add the name at the site and export again: dpfpl-client export --also NAME.",
            )
        known = list(self.classes)
        for name in names:
            if name in known or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
                raise ConfigError(
                    code="BAD_NAME",
                    message=f"The name {name[:LONGEST_NAME]!r} cannot be added to the classes {', '.join(known)}.",
                    advice=f"Give another one that is printable, not empty and at most {LONGEST_NAME} characters long.",
                )
            known.append(name)
        return dataclasses.replace(self, added=(*self.added, *names))

    @property
    def alone(self) -> Pool | None:
        """What the site released by itself (``evidence.own_rows``)."""
        return own_rows(self.experiment, self.class_sums, self.vote)

    def head(self, backbone: Backbone, *, leaves: bool = False) -> SiteHead | None:
        """What the votes chose, with the site's usual mix of classes; None where the prompt alone is used.

        Args:
            backbone: the model it was learned for.
            leaves: whether it is to leave the site: then only what was released decides, on the usual mix of classes
                and on whose class vectors.
        """
        if self.choice is None:
            usual_mix = self.experiment.prompt.usual_mix
            return None if self.exported is None else dataclasses.replace(self.exported, usual_mix=usual_mix)
        experiment, choice = self.experiment, self.choice
        initial = initial_context(backbone, experiment)
        shared = initial + torch.from_numpy(self.global_context.astype(np.float32))
        own = None if leaves else rows_at_site(experiment, self.class_sums, choice.own)
        longer = backbone.scorer(self.listing()) if self.added else None
        about = (initial, choice.pool, choice.chosen, shared, self.alone, own, longer)
        chosen = chosen_head(backbone.scorer(experiment), *about)
        shares = choice.shares
        if leaves:
            noise_multiplier = class_sums_multiplier(experiment)
            if experiment.privacy.trust == "secure":  # the rows of all sites together, with the noise of all
                noise_multiplier *= noise_share(experiment) * math.sqrt(len(experiment.sites))
            nothing = np.zeros(len(experiment.classes))
            total = unpack_pool(choice.pool, len(experiment.classes))[0].total
            shares = nothing if self.class_sums is None else shares_from(self.class_sums, total, noise_multiplier)
        return site_head(chosen, shares, experiment.prompt.usual_mix)

    def context(self, backbone: Backbone) -> torch.Tensor:
        """The full context [num_context, width] for this model's text tower.

        Raises:
            ModelError: the prompt was learned for another model.
        """
        if self.experiment.model.fingerprint not in ("", backbone.fingerprint):
            raise ModelError(
                code="OTHER_MODEL",
                message="The prompt was learned for another model than the one that site.toml names.",
                advice=f"Use the model with the fingerprint {self.experiment.model.fingerprint}.",
            )
        strength = self.experiment.prompt.personal_strength
        learned = self.global_context.astype(np.float64) + strength * self.personal_context
        return initial_context(backbone, self.experiment) + torch.from_numpy(learned.astype(np.float32))

    def classifier(self, backbone: Backbone, question: str | None = "") -> Classifier:
        """This prompt, ready to classify with its model, or to answer one question, or with None any."""
        return Classifier(self, backbone, question)

    def predict(self, backbone: Backbone, images: Iterable[Image.Image], top: int) -> list[Prediction]:
        """The ``top`` most probable classes of every image."""
        return list(self.classifier(backbone).classify(images, top))


def load_prompt(folder: Path | str, experiment: str | None = None, *, unfinished: bool = False) -> SitePrompt:
    """The prompt that a site learned in an experiment; without a name, in the one that was finished last.

    Args:
        folder: a site's folder (with site.toml), its state folder, or what ``dpfpl-client export`` wrote.
        experiment: its name.
        unfinished: take a prompt whose experiment has not come to its end, too.

    Raises:
        StateError: nothing was learned yet, or not under this name; the prompt is half-finished; an exported prompt is
            damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StateError(
            code="NO_PROMPT",
            message=f"{folder} is no folder.",
            advice="Give a site's folder, its state folder, or an exported prompt.",
        )
    if (folder / "prompt.json").is_file():
        return _exported(folder, experiment)
    if (folder / "site.toml").is_file():
        folder = load_site(folder / "site.toml").state_folder
    store, names = DiskStore(folder), _newest_first(folder)
    if not names and experiment is None:
        raise StateError(
            code="NO_PROMPT",
            message="This site has not learned a prompt yet.",
            advice="Take part in an experiment first: dpfpl-client start.",
        )
    finished = [name for name in names if store.learned(name)[1]]
    prompt = _learned(store, experiment or (finished if finished and not unfinished else names)[0])
    if not (prompt.finished or unfinished):
        raise StateError(
            code="HALF_FINISHED",
            message=f"The prompt of {prompt.experiment.name!r} is half-finished: it has seen round {prompt.round} of "
            f"{prompt.experiment.rounds.number}.",
            advice="Wait for the experiment's end, or take it as it is: --unfinished (in Python unfinished=True). "
            f"Finished: {', '.join(finished) or 'none yet'}.",
        )
    return prompt


def list_prompts(state_folder: Path) -> list[dict[str, Any]]:
    """The prompts that a site has learned, newest first: ``about`` of each, or ``experiment`` and what is ``damaged``.

    ``default`` marks the one that is used where no experiment is named.
    """
    store, rows, default = DiskStore(state_folder), [], False
    for name in _newest_first(state_folder):
        try:
            row = _learned(store, name).about()
        except StateError as error:
            row = {"experiment": name, "finished": store.learned(name)[1], "damaged": error.message}
        rows.append(row | {"default": row["finished"] and not default})
        default = default or row["finished"]
    return rows


def _newest_first(state_folder: Path) -> list[str]:
    store = DiskStore(state_folder)
    names = [name for name in store.experiments() if store.rounds(name)]
    return sorted(names, key=lambda name: store.learned(name)[0], reverse=True)


def _learned(store: DiskStore, name: str) -> SitePrompt:
    configuration = store.experiment(name)
    last = store.last_round(name)
    record = store.read(name, last) if last else None
    if record is None:
        raise StateError(
            code="NO_PROMPT",
            message=f"No round of {name!r} is finished yet.",
            advice="Try again after its first round.",
        )
    final, choice = store.read_final(name), store.read_choice(name)
    context = record.global_context if final is None else final
    # What is exact (label shares, ``own``) is no part of the version, which leaves with an export: a hash tells who
    # guesses right.
    parts = [context, record.state.context, *([] if choice is None else [choice.pool])]
    written, finished = store.learned(name)
    return SitePrompt(
        configuration,
        context,
        record.state.context,
        last,
        choice,
        record.state.class_sums,
        record.state.vote,
        version=hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:12],
        learned=datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        finished=finished,
    )


def _exported(folder: Path, name: str | None) -> SitePrompt:
    try:
        about = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "prompt.safetensors")
        experiment = parse_experiment(json.dumps(about["experiment"]))
        learned = (tensors["global_context"], tensors["personal_context"].astype(np.float64))
        rounds, named = int(about["rounds"]), {key: about[key] for key in ("version", "learned", "finished")}
        head, added = None, tuple(str(name) for name in about.get("added", ()))
        classes = len(experiment.classes)
        if (folder / CLASS_VECTORS).is_file():
            saved = load_file(folder / CLASS_VECTORS)
            parts = (saved["vectors"], saved["scale"].item(), saved["bias"], saved["shares"])
            head = SiteHead(*parts, experiment.prompt.usual_mix)
            if not len(head.vectors) == len(head.own_bias) == classes + len(added) or len(head.shares) != classes:
                raise ValueError("one vector for each class")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StateError(
            code="EXPORT_DAMAGED",
            message=f"The exported prompt in {folder} cannot be read ({type(error).__name__}).",
            advice="Export it again: dpfpl-client export.",
        ) from None
    if any(part.shape != experiment.context_shape for part in learned):
        raise StateError(
            code="EXPORT_DAMAGED",
            message=f"The exported prompt in {folder} has context vectors of another shape than its experiment.",
            advice="Export it again: dpfpl-client export.",
        )
    if name not in (None, experiment.name):
        raise StateError(
            code="NO_EXPERIMENT",
            message=f"{folder} holds the prompt of {experiment.name!r}, not of {name!r}.",
            advice="Leave the name out.",
        )
    return SitePrompt(experiment, *learned, rounds, exported=head, added=added, **named)
