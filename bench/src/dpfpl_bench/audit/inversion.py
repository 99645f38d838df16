"""Which image is behind a message? The gradient of one step is inverted, as its receiver would.

The image tower is frozen, so a message depends on an image only through its unit feature. The attacker knows the
prompt, the model and the classes. With a gallery of candidates it compares their gradients with the message; without
one it looks, for every class, for a feature whose gradient is the message (after Zhu et al. 2019, Geiping et al. 2020).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpfpl_bench.audit.victim import Victim

__all__ = ["Inversion", "attack_messages", "invert"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Inversion:
    """Success over the attacked messages.

    Attributes:
        found: share of messages whose image, among the gallery's, has the gradient nearest to the message.
        chance: the same for a guess.
        similarity: mean cosine between recovered and true feature.
        baseline: mean cosine between the true feature and another image's.
    """

    found: float
    chance: float
    similarity: float
    baseline: float


def attack_messages(victim: Victim, messages: Floats, truth: npt.NDArray[np.int64], context: torch.Tensor) -> Inversion:
    """Invert each message and look the result up in the victim's pool.

    Args:
        victim: model, classes and the pool that serves as gallery.
        messages: [n, num_context, width], each made by one example.
        truth: [n], which example of the pool.
        context: [num_context, width], with which they were made.
    """
    gallery = victim.pool.features
    candidates = victim.gradients(context, np.arange(len(gallery))).reshape(len(gallery), -1)
    candidates /= np.maximum(np.linalg.norm(candidates, axis=1, keepdims=True), 1e-12)
    jacobian, text = _jacobian(victim, context)
    right = 0
    similarities, baselines = [], []
    for message, index in zip(messages, truth, strict=True):
        right += int((candidates @ message.ravel()).argmax() == index)
        recovered = invert(victim, message, jacobian, text)
        similarities.append(float(gallery[index] @ recovered))
        baselines.append(float((gallery @ gallery[index]).mean()))
    return Inversion(
        found=right / len(truth),
        chance=1 / len(gallery),
        similarity=float(np.mean(similarities)),
        baseline=float(np.mean(baselines)),
    )


def invert(
    victim: Victim, message: Floats, jacobian: torch.Tensor, text: torch.Tensor, steps: int = 300
) -> torch.Tensor:
    """The unit feature [feature_size] whose gradient points most nearly where the message does.

    For label y the gradient is ``J^T (tau (p(z) - e_y) z)`` with the Jacobian J of all text features. Each label is
    tried from two starts; the best fit wins.

    Args:
        victim: the model and the gallery, whose mean is one of the starts.
        message: [num_context, width].
        jacobian: J, [classes * feature_size, num_context * width].
        text: unit text features [classes, feature_size] at the message's context.
        steps: of the search.
    """
    classes = len(text)
    scale = victim.backbone.logit_scale
    wanted = torch.from_numpy(message.ravel()).float()
    wanted = wanted / wanted.norm().clamp_min(1e-12)
    # One row for each label and start: the label's own text feature, and the average image.
    starts = torch.cat([text, victim.pool.features.mean(dim=0, keepdim=True).expand(classes, -1)])
    labels = torch.arange(classes).repeat(2)
    z = starts.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        fit = _fit(z, labels, jacobian, text, scale, wanted)
        (-fit.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        best = _fit(z, labels, jacobian, text, scale, wanted).argmax()
        return torch.nn.functional.normalize(z[best], dim=0)


def _fit(
    z: torch.Tensor,
    labels: torch.Tensor,
    jacobian: torch.Tensor,
    text: torch.Tensor,
    scale: float,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """Cosine between the message and the gradient of each guessed (feature, label), [rows]."""
    unit = torch.nn.functional.normalize(z, dim=1)
    residual = torch.softmax(scale * unit @ text.T, dim=1) - torch.nn.functional.one_hot(labels, len(text)).float()
    cotangents = (residual[:, :, None] * unit[:, None, :]).reshape(len(z), -1)
    gradients = torch.nn.functional.normalize(cotangents @ jacobian, dim=1)
    return gradients @ wanted


def _jacobian(victim: Victim, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all unit text features by the context, [classes * feature_size, num_context * width]; and the features."""
    text = victim.backbone.text_features(context, victim.tokens)
    each = torch.eye(text.numel()).reshape(text.numel(), *text.shape)
    rows = victim.backbone.text_pass(context, victim.tokens).pullback(each)
    return rows.reshape(text.numel(), -1), text
