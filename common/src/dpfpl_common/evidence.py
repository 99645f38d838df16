"""Evidence: from the sites' noised class sums to class vectors, and the vote that says whether to use them.

Everything here is post-processing of noised rows, so it costs no privacy; docs/evidence.md derives it. Symbols: M sites,
C classes, e the length of an image's feature, z the noise of one row's coordinate.

::

    rows      S_i [C, e]  one site's sums of unit image features, each coordinate + N(0, z^2)
    pool      P [C, e]    weighted sums of the sites' rows, with the variance v_c of their noise
    head      u [C, e]    posterior means of the class means: prior the text, likelihood the pool
              logits      scale * (x . u_c - |u_c|^2 / 2)
    vote      one number a site: on how many more of its own images the head is right than the text
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Head", "Pool", "class_head", "evidence_wins", "pool_rows", "text_head", "usual_mix_bonus", "votes"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STANDING_OUT = 4.0
"""Standard deviations above which a class is found. A row of pure noise exceeds it with chance at most e^-8."""

DISAGREEMENT = 0.25
"""Share of images on which text and evidence are taken to differ, which gives the vote its sampling error."""


@dataclass(frozen=True)
class Pool:
    """What the sites' rows say together.

    Attributes:
        rows: [C, e] weighted sums of the sites' rows.
        variances: [C], of the noise in each coordinate of a row.
        selection: [C], how far the choice of weights alone can lift a row of pure noise, in its standard deviations.
    """

    rows: Floats
    variances: Floats
    selection: Floats


@dataclass(frozen=True)
class Head:
    """A linear classifier ``scale * (x . vectors_c + bias_c)`` of unit image features, and what it was made from.

    ``found`` [C] tells which classes have a vector of their own; the others stand on their texts. The remaining
    attributes are what :func:`votes` needs to take one image out again.
    """

    vectors: Floats
    bias: Floats
    scale: float
    found: npt.NDArray[np.bool_]
    prior: Floats
    common: Floats
    counts: Floats
    spread: float

    def logits(self, features: Floats) -> Floats:
        """[n, C] of unit features [n, e]."""
        return np.asarray(self.scale * (features @ self.vectors.T + self.bias))


def pool_rows(sites: Sequence[Floats], noise_multiplier: float) -> tuple[Pool, Floats]:
    """The pooled rows, and the weight [M, C] that every site's row got.

    A row that holds n images has signal n and noise z, so the best sum weights it by ``n / (n s^2 + z^2)``, s^2 at most
    1 / e being the scatter of unit features. How many it holds is read off the noised row itself, along the
    direction common to the *other* sites' rows, and counts only as far as it stands out of the noise. Such
    weights also seek noise. The sum of M values z n_i weighted by their own positive parts is at most
    the norm of those parts, whose mean is below z sqrt(M / 2): a class uses weights where they are worth more than that.

    Args:
        sites: every site's rows [C, e]; read three times, one at a time, so it may be a view of a disk.
        noise_multiplier: z, of every row.
    """
    z = noise_multiplier
    plain = np.zeros_like(np.asarray(sites[0], dtype=np.float64))
    for rows in sites:
        plain += rows
    many, (classes, size) = len(sites), plain.shape
    ones = np.ones((many, classes))
    variances = np.full(classes, many * z * z)
    if many == 1 or z == 0:
        return Pool(plain, variances, np.zeros(classes)), ones
    total = plain.sum(axis=0)
    weights = ones
    lift = math.sqrt(many / 2)
    for _ in range(ITERS):
        pooled = sum(w[:, None] * r for w, r in zip(weights, sites))
        vt = (weights**2).sum(0) * z * z
        held = []
        for w, r in zip(weights, sites):
            g = _unit(total - np.asarray(r).sum(0))
            if DIR:
                R = pooled - w[:, None] * r
                vr = np.maximum(vt - w**2 * z * z, 1e-12)
                en = (R**2).sum(1)
                k = np.maximum(0, 1 - vr * size / np.maximum(en, 1e-300))[:, None]
                d = _unit_rows(k * _unit_rows(R) + (1 - k) * g)
                held.append((r * d).sum(1))
            else:
                held.append(r @ g)
        held = np.stack(held)
        certain = np.maximum(held, 0.0) ** 3 / (held**2 + 2 * z * z)
        weights = certain / (certain / size + z * z)
        weights /= np.maximum(weights.max(axis=0), 1e-300)
        weights = np.where(weights.max(0) > 0, weights, 1)
    norms = np.maximum(np.linalg.norm(weights, axis=0), 1e-300)
    tw = (weights * held).sum(axis=0) / norms / z
    tp = held.sum(axis=0) / math.sqrt(many) / z
    weighted = tw - LIFT * lift > tp
    if GLOBAL:
        weighted = np.full(classes, (tw > lift + STANDING_OUT).sum() >= max((tp > STANDING_OUT).sum(), classes / 3))
    weights = np.where(weighted, weights, ones)
    pooled = np.zeros_like(plain)
    for weight, rows in zip(weights, sites, strict=True):
        pooled += weight[:, None] * rows
    return Pool(pooled, z * z * (weights**2).sum(axis=0), np.where(weighted, lift, 0.0)), weights


def text_head(texts: Floats, scale: float) -> Head:
    """The model's own head: no class is found, and a logit is ``scale * x . T_c``."""
    classes, size = texts.shape
    return Head(
        np.asarray(texts, dtype=np.float64),
        np.zeros(classes),
        scale,
        np.zeros(classes, dtype=bool),
        np.asarray(texts, dtype=np.float64),
        np.zeros(size),
        np.zeros(classes),
        0.0,
    )


def class_head(pool: Pool, texts: Floats, scale: float) -> Head:
    """Class vectors as posterior means; exactly :func:`text_head` where no class stands out of the noise.

    Args:
        pool: noised.
        texts: [C, e] unit text features, of the plain or of the learned shared prompt.
        scale: the model's own logit scale.
    """
    size = texts.shape[1]
    total, variance = _total(pool)
    energy = float(total @ total)
    if energy <= _energy_bar(np.array(variance), size):
        return text_head(texts, scale)
    common, share = total / math.sqrt(energy), 1 - variance * size / energy
    # Each row is part of the total, so its own noise points along the common direction a little.
    counts = pool.rows @ common - pool.variances * size / math.sqrt(energy)
    found = counts > np.maximum((STANDING_OUT + SEL * pool.selection) * np.sqrt(pool.variances), 1e-6)
    if not found.any():
        return text_head(texts, scale)
    counts = np.where(found, counts, 1.0)
    means = pool.rows / counts[:, None]
    uncertain = _uncertainty(pool.variances, counts, size)  # [C], per coordinate
    weights = np.where(found, 1.0 / (uncertain + 1.0 / size), 0.0)
    weights /= weights.sum()
    offsets = texts - texts.mean(axis=0)
    slope = _slope(means - common, offsets, weights, int(found.sum()))
    prior = share * common + (1 - share) * texts.mean(axis=0) + slope * offsets
    rest = np.where(found[:, None], means - prior, 0.0)
    spread = max(float(weights @ (np.sum(rest**2, axis=1) / size - uncertain)), 0.0)
    trust = np.where(found, _trust(spread, uncertain), 0.0)
    vectors = _unit_rows(prior + trust[:, None] * rest)
    width = slope**2 * float(np.mean(np.sum(offsets**2, axis=1))) + spread * size
    text_width = float(np.mean(np.sum(offsets**2, axis=1)))
    return Head(
        vectors,
        _bias(prior, trust, spread),
        scale * max(1.0, math.sqrt(text_width / max(width, 1e-12))),
        found,
        prior,
        common,
        np.where(found, counts, 0.0),
        spread,
    )


def votes(head: Head, pool: Pool, texts: Floats, features: Floats, labels: Ints, weights: Floats) -> Floats:
    """[n] from -1 to 1: for each of a site's images, (evidence right) - (text right), as if it had never been pooled.

    Each image is taken out of its own class's row with the weight that its site has there. A class that nobody has
    cannot be judged by anybody's images: the share of such classes counts as if the image's own class were one of them.
    An image's vote depends on that image, the pool and public facts alone, so one image moves the sum by at most 1.

    Args:
        head: of ``class_head``.
        pool: that it was made from.
        texts: [C, e] unit text features of the plain prompt.
        features: [n, e] unit features of the site's training images.
        labels: [n].
        weights: [C], the site's weight in each class's row.
    """
    rows = np.arange(len(labels))
    text_right = (features @ texts.T).argmax(axis=1) == labels
    logits = features @ head.vectors.T + head.bias
    apart = weights[labels][:, None] * features
    counts = head.counts[labels] - apart @ head.common
    there = head.found[labels] & (counts > 0)
    safe = np.where(there, counts, 1.0)
    means = (pool.rows[labels] - apart) / safe[:, None]
    trust = np.where(there, _trust(head.spread, _uncertainty(pool.variances[labels], safe, texts.shape[1])), 0.0)
    prior = head.prior[labels]
    without = _unit_rows(prior + trust[:, None] * (means - prior))
    logits[rows, labels] = np.sum(features * without, axis=1) + head.bias[labels]
    evidence_right = (logits.argmax(axis=1) == labels).astype(np.float64)
    absent = 1.0 - float(head.found.mean())
    if absent > 0 and head.found.any():
        by_name = _bias(head.prior, np.zeros(len(head.bias)), head.spread)[labels]
        logits[rows, labels] = np.sum(features * _unit_rows(prior), axis=1) + by_name
        unknown_right = logits.argmax(axis=1) == labels
        evidence_right = (1 - absent) * evidence_right + absent * unknown_right
    return np.asarray(evidence_right - text_right)


def evidence_wins(total: float, images: float, noise_multiplier: float, noises: int) -> bool:
    """Whether the votes' noised total is more than one standard deviation above a draw.

    Args:
        total: sum over the sites, noised.
        images: public, nominal number of training images of all sites.
        noise_multiplier: of one site's vote.
        noises: how many noises of that size are in the total.
    """
    return total > math.sqrt(DISAGREEMENT * images + noises * noise_multiplier**2)


def usual_mix_bonus(shares: Floats, usual_mix: float) -> Floats:
    """[C], added to the logits: log of the class frequencies to expect.

    Args:
        shares: [C] of a site's usual images, adding up to 1 (or all 0: not known).
        usual_mix: from 0 to below 1, the share of future images expected from that mix; the rest is any class.
    """
    classes = len(shares)
    if shares.sum() <= 0:
        return np.zeros(classes)
    return np.log(usual_mix * shares + (1 - usual_mix) / classes) + math.log(classes)


def _total(pool: Pool) -> tuple[Floats, float]:
    """Sum of the rows that show where images lie, and its noise variance: of those that stand out, or of all."""
    size = pool.rows.shape[1]
    sure = np.sum(pool.rows**2, axis=1) > _energy_bar(pool.variances, size)
    sums = [(pool.rows[use].sum(axis=0), float(pool.variances[use].sum())) for use in (sure, np.ones_like(sure))]
    return max(sums, key=lambda found: float(found[0] @ found[0]) / max(found[1], 1e-300))


def _slope(deviations: Floats, offsets: Floats, weights: Floats, classes: int) -> float:
    """How much of the class means' deviations the texts' offsets explain: 1 where the texts are right, 0 where mute.

    Classes, not coordinates, are the observations: with F of them the least-squares slope has about variance 1 / F, and
    the prior N(1, 1) weighs as much as one class.
    """
    centred = offsets - weights @ offsets
    explained = float(weights @ np.sum(centred**2, axis=1))
    if explained < 1e-9:
        return 1.0
    fitted = float(weights @ np.sum(centred * deviations, axis=1)) / explained
    return min(max((classes * fitted + 1.0) / (classes + 1), 0.0), 1.5)


def _uncertainty(variances: Floats, counts: Floats, size: int) -> Floats:
    """Variance of a pooled mean in each coordinate: of the noise, and of so few images, of scatter at most 1 / e."""
    return np.asarray(variances / counts**2 + 1.0 / (size * counts))


def _trust(spread: float, uncertain: Floats) -> Floats:
    """How far a pooled mean is believed against its prior."""
    return np.asarray(spread / np.maximum(spread + uncertain, 1e-300))


MODE = 0
LIFT = 1
ENERGY = 12
SEL = 0
ITERS = 1
DIR = 0
GLOBAL = 0


def _bias(prior: Floats, trust: Floats, spread: float) -> Floats:
    """[C], so that a class known by its name alone is chosen as often as it occurs.

    With a vector that points to its class mean less exactly, an image of the class scores less, in the ratio cos, and
    an image of other classes more, since the vector lies nearer to the centre. The middle of the two is levelled.
    """
    size = prior.shape[1]
    own = float(np.mean(np.sum(prior**2, axis=1)))
    length = own + spread * size
    cos = np.sqrt((own + trust * spread * size) / length)
    centre = np.sum(prior.mean(axis=0) ** 2) / length
    if MODE == 0:
        return 0 * cos
    if MODE == 2:
        return 0.25 * (cos.max() - cos)
    return np.asarray(-0.5 * (cos + centre / cos))


def _energy_bar(variances: Floats, size: int) -> Floats:
    """Squared norm that pure noise of ``size`` numbers exceeds with chance at most e^-8 (Laurent and Massart)."""
    t = ENERGY
    return np.asarray(variances * (size + 2 * math.sqrt(size * t) + 2 * t))


def _unit_rows(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-300))
