"""Evidence: from the sites' noised class sums to class vectors, and the vote that says whether to use them.

All but ``votes``, ``residuals`` and ``prefers_own`` is post-processing of noised values, so it costs no privacy;
docs/explanation/evidence.md derives it. Symbols: M sites, C classes, e the length of an image's feature, z the noise of
each coordinate of a row.

::

    rows      S_i [C, e]  one site's sums of unit image features, each coordinate + N(0, z^2)
    pool      P [C, e]    weighted sums of the sites' rows, with the variance v_c of their noise
    head      u [C, e]    class means, as far as they are known: prior the text, likelihood the pool
              logits      scale * x . u_c, plus the log of how often a class is expected
    vote      one number a site: on how many more of its own images the head is right than the text
    moment    [k, k] sum of r r^T, r the direction in which an image leaves its class vector, within the first k of them
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Head",
    "Pool",
    "class_head",
    "directions",
    "evidence_wins",
    "found_classes",
    "hidden_energy",
    "images_needed",
    "images_to_stand_out",
    "looks_unlike",
    "mix_bonus",
    "moment_pays",
    "moment_size",
    "own_head",
    "pack_pool",
    "pool_rows",
    "prefers_own",
    "residuals",
    "sharpened",
    "summed_pool",
    "text_head",
    "unpack_moment",
    "unpack_pool",
    "vote_threshold",
    "votes",
    "with_names",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STANDING_OUT = 3.0
"""Standard deviations above which the number of images in a pooled row is taken for real: of rows of noise 1 in 740."""

FALSE_ALARM = 1e-6
"""Chance that pure noise is taken for the direction in which images lie, or a row of it for a class."""

MOST_DIRECTIONS = 128
"""Of the moment, so that it is no longer than the class sums of a long list."""

MOST_SCATTER = 2.5
"""Of a class mean in units of its reach N, all coordinates together and times N: (1 - q^2) / q at most, where q is how
far an image reaches; 2.5 if q is 0.35.
"""

LEAST_SCATTER = 0.05
"""Relative to the mean one; no direction is believed to scatter less."""

DISAGREEMENT = 0.25
"""Share of images on which text and evidence are taken to differ; gives the vote its sampling error."""


@dataclass(frozen=True)
class Pool:
    """What the sites' rows say together.

    Attributes:
        rows: [C, e] weighted sums of the sites' rows.
        variances: [C], of the noise in each coordinate of a row.
        total: [e], plain sum of all rows of all sites.
        total_variance: of the noise in each of its coordinates.
        moment: [k, k], sum of the sites' moments; None before they are told.
        moment_variance: of the noise in each of its packed coordinates.
    """

    rows: Floats
    variances: Floats
    total: Floats
    total_variance: float
    moment: Floats | None = None
    moment_variance: float = 0.0


@dataclass(frozen=True)
class Head:
    """A linear classifier of unit image features, and what it was made from.

    Attributes:
        vectors: [C, e] class vectors, of norm 1 unless sharpened.
        scale: of the logits.
        bias: [C], 0 unless sharpened.
        found: [C], the classes of which the pool shows images; the others stand on their texts.
        prior: [C, e], where the class means are expected from the texts alone.
        common: [e], unit direction that all images have in common.
        counts: [C], how far the pooled rows reach along it; 0 where a class is not found.
        spread: variance of a class mean around its prior, in each coordinate.
    """

    vectors: Floats
    scale: float
    bias: Floats
    found: Bools
    prior: Floats
    common: Floats
    counts: Floats
    spread: float

    def logits(self, features: Floats) -> Floats:
        """[n, C] of unit features [n, e]."""
        return np.asarray(self.scale * (features @ self.vectors.T + self.bias))


def pool_rows(sites: Sequence[Floats], noise_multiplier: float) -> tuple[Pool, Floats]:
    """The pooled rows, and the weight [M, C] that every site's row got; the largest of a class is 1.

    A row that holds n images is n times the class mean and noise of variance z^2. The best weight of such rows is
    ``n / (n s^2 + z^2)``, s^2 the scatter of an image around its class mean: at most 1 / e in each coordinate, as
    features have norm 1. How many a row holds is read off the row itself, along the direction that all *other* sites'
    rows have in common, and counts as far as it stands out of the noise. Where such weights leave less signal over
    noise than equal ones, as for a class of few images at each of many sites, the weights are equal.

    Args:
        sites: every site's rows [C, e]; each is read three times, one after another, so they may lie on a disk.
        noise_multiplier: z, of every row.
    """
    z = noise_multiplier
    many, (classes, size) = len(sites), sites[0].shape
    plain = np.zeros((classes, size))
    for rows in sites:
        plain += rows
    total, equal = plain.sum(axis=0), np.ones((many, classes))
    if many == 1 or z == 0:
        return Pool(plain, np.full(classes, many * z * z), total, classes * many * z * z), equal
    held = np.stack([rows @ _unit(total - np.sum(rows, axis=0)) for rows in sites])  # [M, C]
    positive, square = np.maximum(held, 0.0), held**2
    certain = positive**3 / (square + 2 * z * z)
    divisor = certain / size + z * z
    weights = certain / divisor
    # Weights made of noisy values seek noise. Stein: E[w(n) (n - true n)] = z^2 E[w'(n)], which is taken off.
    steepness = positive**2 * (square + 6 * z * z) / (square + 2 * z * z) ** 2 * z * z / divisor**2
    signal = (weights * held - z * z * steepness).sum(axis=0)
    better = signal / np.maximum(np.linalg.norm(weights, axis=0), 1e-300) > held.sum(axis=0) / math.sqrt(many)
    weights /= np.maximum(weights.max(axis=0), 1e-300)
    weights = np.where(better & (weights.max(axis=0) > 0), weights, equal)
    if (weights == 1.0).all():  # the same sum, in the same order
        return Pool(plain, z * z * (weights**2).sum(axis=0), total, classes * many * z * z), weights
    pooled, weighted = np.zeros_like(plain), np.empty_like(plain)
    for weight, rows in zip(weights, sites, strict=True):
        pooled += np.multiply(weight[:, None], rows, out=weighted)
    return Pool(pooled, z * z * (weights**2).sum(axis=0), total, classes * many * z * z), weights


def summed_pool(rows: Floats, noise_multiplier: float, sites: int) -> Pool:
    """The pool that a secure sum is: every row of every site weighs 1, as nobody can tell them apart.

    Args:
        rows: [C, e], the sum of the sites' rows.
        noise_multiplier: of the noise that each site added.
        sites: how many are in the sum.
    """
    classes, variance = len(rows), noise_multiplier**2 * sites
    return Pool(rows, np.full(classes, variance), rows.sum(axis=0), classes * variance)


def pack_pool(pool: Pool, weights: Floats) -> npt.NDArray[np.float32]:
    """A pool and one site's weights [C] as one matrix, float32, [C + 1, e + 2] or with a moment [C + 1 + k, e + 2]; see
    ``unpack_pool``.
    """
    classes, size = pool.rows.shape
    k = 0 if pool.moment is None else len(pool.moment)
    packed = np.zeros((classes + 1 + k, size + 2), dtype="<f4")
    packed[:classes, :size], packed[:classes, size], packed[:classes, size + 1] = pool.rows, pool.variances, weights
    packed[classes] = (*pool.total, pool.total_variance, pool.moment_variance)
    if pool.moment is not None:
        packed[classes + 1 :, :k] = pool.moment
    return packed


def unpack_pool(packed: npt.NDArray[np.float32], classes: int) -> tuple[Pool, Floats]:
    """The pool and the site's weights [C]. A row is a class's pooled row, its variance and the site's weight; the next
    one the sum of everything, its variance and the moment's; the moment's rows follow, if there are any. Whatever is in
    there, a variance is no less than 0 and a weight from 0 to 1.
    """
    values = np.asarray(packed, dtype=np.float64)
    variances, total, k = np.maximum(values[:, -2], 0.0), values[classes], len(values) - classes - 1
    moment = (values[classes + 1 :, :k] + values[classes + 1 :, :k].T) / 2 if k else None
    pool = Pool(
        values[:classes, :-2],
        variances[:classes],
        total[:-2],
        float(variances[classes]),
        moment,
        max(float(total[-1]), 0.0),
    )
    return pool, np.clip(values[:classes, -1], 0.0, 1.0)


def moment_pays(classes: int, images: float, noise_multiplier: float, noises: float) -> bool:
    """Whether a moment is worth its share of the budget, from public numbers: only where the spectral norm of its noise
    is at most what images scatter in one of its directions, if they do so evenly.

    Args:
        classes: C, at least 2.
        images: nominal, of all sites.
        noise_multiplier: of one site's moment.
        noises: how many noises of that size are in the sum.
    """
    k = min(classes - 1, MOST_DIRECTIONS)
    return math.sqrt(2 * k * noises) * noise_multiplier <= images / k


def moment_size(classes: int, size: int) -> int:
    """k: a public number, the same at every site."""
    return min(classes - 1, size, MOST_DIRECTIONS)


def unpack_moment(packed: Floats) -> Floats:
    """[k, k], the inverse of ``dpfpl_common.privacy.one_shot.packed_moment``."""
    k = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    half = np.zeros((k, k))
    half[np.triu_indices(k)] = packed / math.sqrt(2)
    return np.asarray(half + half.T + np.diag((math.sqrt(2) - 2) * np.diag(half)))


def text_head(texts: Floats, scale: float) -> Head:
    """The model's own head: a logit is ``scale * x . T_c``, and no class is found."""
    classes, size = texts.shape
    same = np.asarray(texts, dtype=np.float64)
    none = np.zeros(classes)
    return Head(same, scale, none, np.zeros(classes, dtype=bool), same, np.zeros(size), none, 0.0)


def class_head(pool: Pool, texts: Floats, scale: float) -> Head:
    """Class vectors: posterior means of the class means, scaled to norm 1; the text's own head if nothing is found.

    Lengths are in units of the common part of a class mean, so that a row over its reach along the common direction is
    a noisy class mean. The logits keep the model's own scale and, if class vectors lie closer together than the texts
    do, the spread that the texts' logits have.

    Args:
        pool: noised.
        texts: [C, e] unit text features, of the plain or of a learned prompt.
        scale: the model's own logit scale.
    """
    size = texts.shape[1]
    common, share, counts, found = _reaches(pool)
    if not found.any():
        return text_head(texts, scale)
    means, uncertain, weights = _means(pool, counts, found)
    offsets = texts - texts.mean(axis=0)
    slope = _slope(means - common, offsets, weights, int(found.sum()))
    prior = share * common + (1 - share) * texts.mean(axis=0) + slope * offsets
    rest = np.where(found[:, None], means - prior, 0.0)
    spread = max(float(weights @ (np.sum(rest**2, axis=1) / size - uncertain)), 0.0)
    text_width = float(np.mean(np.sum(offsets**2, axis=1)))
    width = slope**2 * text_width + spread * size
    return Head(
        vectors=_unit_rows(prior + _trust(spread, uncertain)[:, None] * rest),
        scale=scale * max(1.0, math.sqrt(text_width / max(width, 1e-12))),
        bias=np.zeros(len(texts)),
        found=found,
        prior=prior,
        common=common,
        counts=np.where(found, counts, 0.0),
        spread=spread,
    )


def with_names(head: Head, texts: Floats, names: Floats) -> Head:
    """The head of a list to which names were added afterwards; the other classes stay as they are.

    A name is treated as a class that nobody has: it stands on its text, moved to where images lie. How texts move is
    the same for all classes and read off the head: ``prior_c = mean of prior + slope * (T_c - mean of T)``.

    Args:
        head: of ``class_head`` or ``text_head``, before it is sharpened.
        texts: [C, e], that it was made from.
        names: [n, e] text features of the names.
    """
    offsets, none = texts - texts.mean(axis=0), np.zeros(len(names))
    explained = float(np.sum(offsets**2))
    slope = float(np.sum(offsets * head.prior)) / explained if explained > 1e-9 else 1.0
    prior = head.prior.mean(axis=0) + slope * (names - texts.mean(axis=0))
    return dataclasses.replace(
        head,
        vectors=np.vstack([head.vectors, _unit_rows(prior)]),
        bias=np.append(head.bias, none),
        found=np.append(head.found, none > 0),
        prior=np.vstack([head.prior, prior]),
        counts=np.append(head.counts, none),
    )


def looks_unlike(
    pool: Pool, alone: Pool, weights: Floats, texts: Floats, scale: float, scatter: float | None = None
) -> bool:
    """Whether a site's images look unlike the others' of the same classes.

    Without ``scatter`` the answer follows from released values alone, so it may leave the site.

    The site's noisy class means are compared with those of the pool without its rows. They are unlike if their mean
    squared distance exceeds what noise and scatter make of it by ``STANDING_OUT`` of its standard deviations.

    Args:
        pool: noised, of all sites.
        alone: what the site released itself, as ``summed_pool`` of one site.
        weights: [C], how much the site's rows weigh in the pool.
        texts: as in ``class_head``.
        scale: as in ``class_head``.
        scatter: how much an image scatters around its class mean, in each coordinate and divided by how far an image
            reaches along the common direction; None: the most that features of norm 1 can, if they reach 0.35 or more.
    """
    own, size = alone.rows, alone.rows.shape[1]
    scatter = MOST_SCATTER / size if scatter is None else scatter
    rest = _without(pool, alone, weights)
    others = class_head(rest, texts, scale)
    reach = own @ others.common
    both = others.found & (reach > np.maximum(STANDING_OUT * np.sqrt(alone.variances), 1.0))
    if not both.any() or not found_classes(alone).any():
        return False
    mine, theirs = np.where(both, reach, 1.0), np.where(both, others.counts, 1.0)
    apart = np.sum((own / mine[:, None] - rest.rows / theirs[:, None]) ** 2, axis=1) / size
    expected = alone.variances / mine**2 + rest.variances / theirs**2 + scatter / mine + scatter / theirs
    sure = np.where(both, 1.0 / np.maximum(expected, 1e-300), 0.0)
    sure /= sure.sum()
    deviation = math.sqrt(float(sure**2 @ expected**2) * 2 / size)
    return float(sure @ (apart - expected)) > STANDING_OUT * deviation


def own_head(
    pool: Pool, alone: Pool, weights: Floats, texts: Floats, scale: float, names: Floats | None = None
) -> Head:
    """Class vectors from one site's own rows. The prior is the others' class vectors and the texts, each as far as they
    explain the site's class means. Arguments as in ``looks_unlike``; ``names`` [n, e] are texts of names that are added
    afterwards, as in ``with_names``.
    """
    names = texts[:0] if names is None else names
    others = class_head(_without(pool, alone, weights), texts, scale)
    known = with_names(others, texts, names).vectors[len(texts) :]
    common, _, counts, found = _reaches(alone)
    if not found.any():
        return with_names(class_head(alone, others.vectors, others.scale), others.vectors, known)
    means, _, sure = _means(alone, counts, found)
    offsets = np.stack([others.vectors - others.vectors.mean(axis=0), texts - texts.mean(axis=0)])
    # As in ``_slope``: classes are the observations, and the prior N((1, 0), 1) weighs as much as one of them.
    both = np.einsum("c,ace,bce->ab", sure, offsets, offsets)
    explained = np.einsum("c,ace,ce->a", sure, offsets, means - common)
    one = np.diag(both) + 1e-12
    slopes = np.linalg.solve(found.sum() * both + np.diag(one), found.sum() * explained + one * np.array([1.0, 0.0]))
    slopes = np.maximum(slopes, 0.0)
    explaining = np.einsum("a,ace->ce", slopes, offsets)
    if not explaining.any():
        return with_names(class_head(alone, others.vectors, others.scale), others.vectors, known)
    # As wide as the others' vectors, so that logits keep the spread that theirs have; the slope is fitted again.
    width, mean = np.linalg.norm(offsets[0]) / np.linalg.norm(explaining), others.vectors.mean(axis=0)
    explaining *= width
    added = width * np.einsum("a,ane->ne", slopes, np.stack([known - mean, names - texts.mean(axis=0)]))
    return with_names(class_head(alone, mean + explaining, others.scale), mean + explaining, mean + added)


def prefers_own(
    pool: Pool, alone: Pool, weights: Floats, texts: Floats, scale: float, features: Floats, labels: Ints
) -> bool:
    """Whether a site is better served by ``own_head``: its images look unlike the others', by their own scatter, and
    that head gets more of its training images right than the pool's, each taken out of its own class's row.

    Neither alone is enough: unlike images may still be classified better by the many of the others, and where classes
    have few images the count flatters the site's own rows.

    Exact, so for the site's own use: neither the answer nor anything that was chosen by it may leave a site with
    images of its own.

    Args:
        pool, alone, weights, texts, scale: as in ``looks_unlike``.
        features: [n, e] unit features of the site's training images.
        labels: [n].
    """
    others = class_head(_without(pool, alone, weights), texts, scale)
    scatter = _scatter(features, labels, others.common)
    unlike = scatter is not None and looks_unlike(pool, alone, weights, texts, scale, scatter)
    _, theirs = _without_itself(class_head(pool, texts, scale), pool, features, labels, weights)
    head = own_head(pool, alone, weights, texts, scale)
    _, own = _without_itself(head, alone, features, labels, np.ones(len(texts)))
    return unlike and bool(own.sum() > theirs.sum())


def _scatter(features: Floats, labels: Ints, common: Floats) -> float | None:
    """Variance of images around their class means in each coordinate over their mean reach; None if it is unknown."""
    counts = np.bincount(labels)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, labels, features)
    freedom = int((counts[counts > 0] - 1).sum())
    reach = float(np.mean(features @ common)) if len(features) else 0.0
    if freedom == 0 or reach <= 0:
        return None
    means = np.sum(sums**2, axis=1) / np.maximum(counts, 1)
    within = max(float(np.sum(features**2) - np.sum(means)), 0.0)
    return float(within / (freedom * features.shape[1] * reach))


def _without(pool: Pool, alone: Pool, weights: Floats) -> Pool:
    """The pool without one site's rows; with no weight they are taken not to be in it.

    A pool that was packed has seven digits: where the others have a hundred-thousandth of a row or less, what is left
    is rounding, and taken for nothing.
    """
    if not weights.any():
        return pool
    rows, variances = _left(pool.rows, pool.variances, weights[:, None] * alone.rows, weights**2 * alone.variances)
    total, variance = _left(pool.total[None], np.array([pool.total_variance]), alone.total[None], alone.total_variance)
    return Pool(rows, variances, total[0], float(variance[0]))


def _left(rows: Floats, variances: Floats, taken: Floats, variances_taken: Floats | float) -> tuple[Floats, Floats]:
    """Rows and variances less what is taken, and 0 where that was all."""
    left, noise = rows - taken, variances - variances_taken
    squares, before = np.sum(left**2, axis=1), np.sum(rows**2, axis=1)
    theirs = np.where(variances > 0, noise > 1e-5 * variances, squares > 1e-10 * before)
    return np.where(theirs[:, None], left, 0.0), np.where(theirs, noise, 0.0)


def votes(head: Head, pool: Pool, texts: Floats, features: Floats, labels: Ints, weights: Floats) -> Floats:
    """[n] from -1 to 1: for each of a site's images, (evidence right) - (text right), as if it had never been pooled.

    Each image is taken out of its own class's row, with the weight that its site has there. A class that nobody has
    cannot be judged by anybody's images: the share of such classes counts as if the image's own class were one of them.
    An image's vote depends on that image, the pool and public facts alone.

    Args:
        head: of ``class_head``.
        pool: that it was made from.
        texts: [C, e] unit text features of the plain prompt.
        features: [n, e] unit features of the site's training images.
        labels: [n].
        weights: [C], the site's weight in each class's row.
    """
    each = np.arange(len(labels))
    text_right = (features @ texts.T).argmax(axis=1) == labels
    scores, evidence_right = _without_itself(head, pool, features, labels, weights)
    absent = 1.0 - float(head.found.mean())
    if absent > 0:
        scores[each, labels] = np.sum(features * _unit_rows(head.prior[labels]), axis=1)
        evidence_right = (1 - absent) * evidence_right + absent * (scores.argmax(axis=1) == labels)
    return np.asarray(evidence_right - text_right)


def _without_itself(
    head: Head, pool: Pool, features: Floats, labels: Ints, weights: Floats
) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Each image's scores [n, C] as if its class's row had never held it, and whether they are right [n], 0 or 1."""
    each = np.arange(len(labels))
    scores = features @ head.vectors.T
    own = weights[labels][:, None] * features
    counts = head.counts[labels] - own @ head.common
    there = head.found[labels] & (counts > 0)
    safe, prior = np.where(there, counts, 1.0), head.prior[labels]
    means = (pool.rows[labels] - own) / safe[:, None]
    trust = np.where(there, _trust(head.spread, _uncertainty(pool.variances[labels], safe, features.shape[1])), 0.0)
    without = _unit_rows(prior + trust[:, None] * (means - prior))
    scores[each, labels] = np.sum(features * without, axis=1)
    return scores, (scores.argmax(axis=1) == labels).astype(np.float64)


def directions(head: Head) -> Floats:
    """B [e, k], orthonormal columns that span the first k + 1 class vectors' differences, or all the features' space.

    Gram-Schmidt in the classes' order with positive lengths, which has one result only: sites that compute it apart
    agree up to rounding. (A singular value decomposition leaves signs and rotations open.)
    """
    k = moment_size(*head.vectors.shape)
    centred = head.vectors - head.vectors.mean(axis=0)
    basis, lengths = np.linalg.qr(centred[:k].T)
    return np.asarray(basis * np.where(np.diag(lengths) < 0, -1.0, 1.0))


def residuals(head: Head, features: Floats, labels: Ints) -> Floats:
    """[n, k], within ``directions`` the unit direction in which each image leaves its class vector; 0 where there is
    none. A class vector has norm 1: it is stretched to the image's reach along the common direction.

    An image's residual depends on that image, the head and public facts alone.

    Args:
        head: of ``class_head``, with the plain texts.
        features: [n, e] unit features of the site's training images.
        labels: [n].
    """
    vectors = head.vectors[labels]
    reach = vectors @ head.common
    known = head.found[labels] & (reach > 0)
    stretch = np.where(known, features @ head.common / np.where(known, reach, 1.0), 0.0)
    rest = (features - stretch[:, None] * vectors) @ directions(head)
    return np.where(known[:, None], _unit_rows(rest), 0.0)


def sharpened(head: Head, basis: Floats, pool: Pool) -> Head:
    """Linear discriminant analysis with the pool's moment: directions in which images scatter much count less.

    The scatter S [k, k] is the moment in units of its mean, drawn towards the identity by the share of its deviation
    that noise and so few images alone make (Ledoit and Wolf 2004). As much as the spectral norm of both (``edge``) is
    added, so that an uncertain direction is taken for one that scatters. A class mean is its vector times the ``reach``
    of images along the common direction. Logits keep the spread that they had between the found classes' own vectors.

    Args:
        head: of ``class_head``.
        basis: [e, k], ``directions`` of the head with the plain texts, as the sites had them for their moments.
        pool: that the head was made from; the same head comes back where it has no moment or one of noise.
    """
    if pool.moment is None or head.found.sum() < 2:
        return head
    k, variance, images = len(pool.moment), pool.moment_variance, float(np.trace(pool.moment))
    if images <= 0:
        return head
    mean, same = images / k, np.eye(k)
    deviation = float(np.sum((pool.moment - mean * same) ** 2))
    energy = variance * k * (k + 1) / 2 + max(images - float(np.sum(pool.moment**2)) / images, 0.0)
    noise = min(1.0, energy / max(deviation, 1e-300))
    edge = math.sqrt(2 * k * variance) / mean + 2 * math.sqrt(k / images)
    scatter, axes = np.linalg.eigh((1 - noise) * pool.moment / mean + (noise + edge) * same)
    change = (axes * ((1 + edge) / np.maximum(scatter, LEAST_SCATTER) - 1)) @ axes.T
    inside = head.vectors @ basis
    vectors = head.vectors + inside @ change @ basis.T
    own = head.vectors[head.found]
    common, share, _, _ = _reaches(pool)
    reach = share * float(pool.total @ common) / images / max(float(np.mean(own @ common)), 1e-300)
    bias = -0.5 * min(max(reach, 0.0), 1.0) * np.sum((inside @ change) * inside, axis=1)
    before, after = own @ own.T, own @ vectors[head.found].T + bias[head.found]
    factor = math.sqrt(float(np.mean(np.var(before, axis=1)) / max(float(np.mean(np.var(after, axis=1))), 1e-300)))
    return dataclasses.replace(head, vectors=factor * vectors, bias=factor * bias)


def evidence_wins(total: float, images: float, noise_multiplier: float, noises: int) -> bool:
    """Whether the votes' noised total is above :func:`vote_threshold`."""
    return total > vote_threshold(images, noise_multiplier, noises)


def vote_threshold(images: float, noise_multiplier: float, noises: int) -> float:
    """One standard deviation of the votes' total if text and evidence are equally right.

    Args:
        images: public, nominal number of training images of all sites.
        noise_multiplier: of one site's vote.
        noises: how many noises of that size are in the total.
    """
    return math.sqrt(DISAGREEMENT * images + noises * noise_multiplier**2)


def images_needed(noise_multiplier: float, sites: int, size: int) -> tuple[int, int]:
    """Images of a class, in all, from which on it is found, and from which on half of what its row shows is believed.

    If they are shared out evenly over ``sites`` sites; 1 where one site has them all. A rule of thumb: it takes half of
    an image's feature for what all images have in common, and class means to spread around that half as wide.

    Args:
        noise_multiplier: of the class sums.
        sites: how many sites share the class.
        size: e.
    """
    noise = noise_multiplier * math.sqrt(sites)
    return math.ceil(STANDING_OUT * noise / 0.5), math.ceil(noise * math.sqrt(size / 0.5) / 0.5)


def hidden_energy(noise_multiplier: float, size: int) -> float:
    """Squared norm of the signal that may hide in a noised row of ``size`` numbers.

    The squared norm of pure noise exceeds ``z^2 (k + 2 sqrt(k t) + 2 t)`` with chance at most ``exp(-t)`` (Laurent and
    Massart 2000, lemma 1), here t = ln(1 / FALSE_ALARM); this is that bound less its mean ``z^2 k``.
    """
    t = math.log(1.0 / FALSE_ALARM)
    return noise_multiplier**2 * (2 * math.sqrt(size * t) + 2 * t)


def images_to_stand_out(noise_multiplier: float, size: int) -> int:
    """From how many images on a class is found on average, if their unit features agree wholly; else from some more."""
    return math.ceil(math.sqrt(hidden_energy(noise_multiplier, size)))


def mix_bonus(shares: Floats, usual_mix: float, names: int = 0) -> Floats:
    """[C + names], added to the logits: log of how often each class is expected, over how often if all C were equally
    frequent.

    Args:
        shares: [C] of a site's usual images, adding up to 1; all 0 where they are not known.
        usual_mix: from 0 to below 1, the share of future images expected from that mix; the rest is of any class.
        names: added afterwards, each expected as often as a class of which the site has no images.
    """
    if shares.sum() <= 0:
        return np.zeros(len(shares) + names)
    often = np.append(usual_mix * shares * len(shares), np.zeros(names))
    return np.asarray(np.log(often + (1 - usual_mix)))


def found_classes(pool: Pool) -> Bools:
    """[C], the classes of which the pool shows images at all."""
    return _reaches(pool)[3]


def _reaches(pool: Pool) -> tuple[Floats, float, Floats, Bools]:
    """The direction common to all images [e], how much of it is no noise, how far each row reaches along it [C], and
    which rows reach further than noise does [C].
    """
    classes, size = pool.rows.shape
    total, variance = _total(pool)
    energy = float(total @ total)
    if energy <= _energy_bar(np.array(variance), size):
        return np.zeros(size), 0.0, np.zeros(classes), np.zeros(classes, dtype=bool)
    # A row is part of the total, so its own noise points along the common direction a little.
    own = np.minimum(pool.variances, variance) * size / math.sqrt(energy)
    common = total / math.sqrt(energy)
    counts = pool.rows @ common - own
    found = counts > np.maximum(STANDING_OUT * np.sqrt(pool.variances), 1e-6)
    return common, 1 - variance * size / energy, counts, found


def _means(pool: Pool, counts: Floats, found: Bools) -> tuple[Floats, Floats, Floats]:
    """Class means in units of their reach [C, e], their variance in each coordinate [C], and how much each class says
    about all [C], 0 where it is not found.
    """
    size, reach = pool.rows.shape[1], np.where(found, counts, 1.0)
    uncertain = _uncertainty(pool.variances, reach, size)
    weights = np.where(found, 1.0 / (uncertain + 1.0 / size), 0.0)
    return pool.rows / reach[:, None], uncertain, weights / weights.sum()


def _total(pool: Pool) -> tuple[Floats, float]:
    """A sum of rows that shows where images lie, and the noise variance of each of its coordinates.

    The plain sum of everything or, where a long list of classes makes that mostly noise, of the pooled rows that stand
    out alone. (A sum of all *pooled* rows would not do: their weights seek noise, all along one direction.)
    """
    sure = np.sum(pool.rows**2, axis=1) > _energy_bar(pool.variances, pool.rows.shape[1])
    return max(
        ((pool.total, pool.total_variance), (pool.rows[sure].sum(axis=0), float(pool.variances[sure].sum()))),
        key=lambda found: float(found[0] @ found[0]) / max(found[1], 1e-300),
    )


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
    """Variance of a pooled mean in each coordinate: of the noise, and of so few images, whose scatter is 1 / e each."""
    return np.asarray(variances / counts**2 + 1.0 / (size * counts))


def _trust(spread: float, uncertain: Floats) -> Floats:
    """How far a pooled mean is believed against its prior."""
    return np.asarray(spread / np.maximum(spread + uncertain, 1e-300))


def _energy_bar(variances: Floats, size: int) -> Floats:
    """Squared norm that noise of ``size`` coordinates exceeds with chance FALSE_ALARM at most."""
    return np.asarray(variances * (size + hidden_energy(1.0, size)))


def _unit_rows(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-300))
