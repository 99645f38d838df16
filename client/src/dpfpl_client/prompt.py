"""A site's learned prompt, for use and inspection after training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save

from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.backbone import ClipBackbone
from dpfpl_client.learning.evaluation import class_probabilities
from dpfpl_client.learning.factorisation import factorise
from dpfpl_client.learning.learner import initial_context
from dpfpl_common.durable import write_durably
from dpfpl_common.errors import ModelError, PrivacyError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.settings import to_table

__all__ = ["Prediction", "SitePrompt", "load_prompt"]


@dataclass(frozen=True)
class Prediction:
    """Attributes: the most probable classes with their probabilities, best first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class SitePrompt:
    """One site's prompt of one experiment.

    Attributes:
        global_context: p_G, float32 [num_context, width], displacement from the initial text.
        personal_context: p_L, float64 [num_context, width].
        round: rounds the personal context has seen.
    """

    experiment: Experiment
    global_context: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    personal_context: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    round: int

    def context(self, backbone: ClipBackbone) -> torch.Tensor:
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
        learned = self.global_context.astype(np.float64) + self.personal_context
        return initial_context(backbone, self.experiment) + torch.from_numpy(learned.astype(np.float32))

    def predict(self, backbone: ClipBackbone, images: Iterable[Image.Image], top: int) -> list[Prediction]:
        """The ``top`` most probable classes of every image."""
        features = list(backbone.image_features(images))
        if not features:
            return []
        tokens = backbone.class_tokens(self.experiment.classes, self.experiment.prompt.num_context)
        probabilities = class_probabilities(backbone, self.context(backbone), tokens, torch.stack(features))
        best = probabilities.topk(min(top, len(self.experiment.classes)), dim=1)
        return [
            Prediction(tuple(self.experiment.classes[i] for i in indices), tuple(round(v, 6) for v in values))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def export(self, backbone: ClipBackbone, folder: Path) -> None:
        """Write prompt.safetensors (full context and all its parts) and prompt.json (what they belong to).

        Raises:
            PrivacyError: the prompt was trained without noise and must stay at the site.
        """
        if self.experiment.privacy.unit == "site":
            raise PrivacyError(
                code="PROMPT_MUST_STAY",
                message="Under the unit site a site's own prompt is trained without noise: towards whoever receives it "
                "epsilon is infinite, so it is not exported.",
                advice="Use it at the site (dpfpl-client predict), or pass on the shared prompt of the server.",
            )
        folder.mkdir(parents=True, exist_ok=True)
        factors = factorise(self.personal_context, self.experiment.prompt.rank, np.random.default_rng(0))
        parts = {
            "context": self.context(backbone).numpy(),
            "global_context": self.global_context,
            "personal_context": self.personal_context,
            "left": factors.left,
            "right": factors.right,
            "residual": factors.residual,
        }
        tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in parts.items()}
        about = {
            "experiment": to_table(self.experiment),
            "model_fingerprint": backbone.fingerprint,
            "rounds": self.round,
            "context_follows": "the begin token; then comes '<class name>.' and the end token",
        }
        write_durably(folder / "prompt.safetensors", save(tensors), 0o600)
        write_durably(folder / "prompt.json", (json.dumps(about, indent=2) + "\n").encode(), 0o600)


def load_prompt(state_folder: Path, experiment: str | None = None) -> SitePrompt:
    """The prompt that a site learned in an experiment; without a name, in the only or the latest one.

    Raises:
        StateError: nothing was learned yet, or not under this name.
    """
    store = DiskStore(state_folder)
    names = [name for name in store.experiments() if store.rounds(name)]
    if not names and experiment is None:
        raise StateError(
            code="NO_PROMPT",
            message="This site has not learned a prompt yet.",
            advice="Take part in an experiment first: dpfpl-client start.",
        )
    name = experiment or max(names, key=lambda known: (state_folder / "experiments" / known).stat().st_mtime)
    configuration = store.experiment(name)
    last = store.last_round(name)
    record = store.read(name, last) if last else None
    if record is None:
        raise StateError(
            code="NO_PROMPT",
            message=f"No round of {name!r} is finished yet.",
            advice="Try again after its first round.",
        )
    final = store.read_final(name)
    return SitePrompt(configuration, record.global_context if final is None else final, record.state.context, last)
