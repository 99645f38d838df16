"""From the sites' updates to the gradient of the global context."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import AggregationSettings, Experiment
from dpfpl_common.privacy.noise import NoiseSource
from dpfpl_common.privacy_plan import largest_signal, server_noise_stddev, site_noise_stddev
from dpfpl_common.wire.payloads import Context

__all__ = [
    "Updates",
    "aggregate",
    "coordinate_median",
    "initial_global_context",
    "krum",
    "trimmed_mean",
    "update_norm_cap",
]

Floats = npt.NDArray[np.float64]


class Updates:
    """The updates of one round: their sum, and each of them only where a robust rule needs it.

    So under the mean memory does not grow with the number of sites. The sum is kept in float64: 29 more binary digits
    than an update has, so sums over thousands of sites, whose updates share a grid, come out the same in whatever order
    they arrive.

    Args:
        experiment: gives the shape [num_context, width] and the rule.
        updates: those that are here already.
    """

    def __init__(self, experiment: Experiment, updates: Iterable[Context] = ()) -> None:
        self.total: Floats = np.zeros(experiment.context_shape)
        self.count = 0
        self.each: list[Context] | None = None if experiment.aggregation.rule == "mean" else []
        for update in updates:
            self.add(update)

    def add(self, update: Context) -> None:
        """Add a validated update, float32 [num_context, width]."""
        self.total += update
        self.count += 1
        if self.each is not None:
            self.each.append(update)


def aggregate(experiment: Experiment, updates: Updates, noise: NoiseSource) -> Floats:
    """Mean of the updates, with the server's own noise under ``central`` trust; or the robust rule that is configured.

    Equal weights: the sites' counts are private. An update is a mean over the round's local steps of clipped sums
    divided by the public expected batch size; under ``central`` the server's noise per step has standard deviation z C
    towards the sum over sites, hence ``z C / sqrt(local_steps)`` towards that mean.

    Under the unit ``site`` an update is clipped as a whole, so one site moves the sum by at most C, and under
    ``central`` the noise on it has standard deviation z C. The divisor is the public ``site_sample_rate * N``, however
    many replied; a sample without a single reply is noise alone. With sampled sites there is no quorum to keep: the
    noise is whole however few sites reply.

    A robust rule works on single messages. It is admitted under ``local`` trust only, where each message carries the
    whole noise, so that whatever is made of them is post-processing.

    Args:
        experiment: trust mode, norms and public divisor.
        updates: the validated updates, one a site.
        noise: source for ``central`` trust; unused otherwise.

    Raises:
        RoundError: fewer updates than the privacy analysis needs (sites less tolerated drop-outs) or than the quorum.
    """
    privacy = experiment.privacy
    sampled = privacy.site_sample_rate < 1
    needed = 0 if sampled else max(experiment.min_sites, len(experiment.sites) - privacy.tolerated_dropouts)
    if updates.count < needed:
        raise RoundError(
            code="TOO_FEW_SITES",
            message=f"{updates.count} usable replies, {needed} are needed.",
            advice="The round is abandoned; nothing was aggregated.",
        )
    if updates.each is not None:
        return _robust(experiment.aggregation, updates.each)
    total = updates.total
    stddev = server_noise_stddev(experiment)
    if privacy.unit == "site":
        noised = noise.add(total, stddev) if stddev > 0 else total
        return np.asarray(noised / (privacy.site_sample_rate * len(experiment.sites)))
    if stddev > 0:
        divisor = privacy.sample_rate * privacy.nominal_site_size
        total = noise.add(total, stddev / divisor / math.sqrt(experiment.rounds.local_steps))
    return np.asarray(total / updates.count)


def initial_global_context(experiment: Experiment) -> Context:
    """Displacement before the first round: zero from an initial text, else N(0, 0.02^2) as the paper, public."""
    if experiment.prompt.init_text:
        return np.zeros(experiment.context_shape, dtype=np.float32)
    generator = np.random.default_rng(int(experiment.digest()[:16], 16))
    return generator.normal(0.0, 0.02, experiment.context_shape).astype(np.float32)


def update_norm_cap(experiment: Experiment) -> float:
    """A norm that an honest update exceeds with negligible probability.

    What ``dpfpl_common.privacy_plan.largest_signal`` says of it without noise; the noise part is bounded by its
    expected norm plus eight deviations. Under the unit ``site`` the noise is on the update itself.
    """
    privacy = experiment.privacy
    if privacy.unit == "site":
        spread = math.sqrt(math.prod(experiment.context_shape)) + 8.0
        return largest_signal(experiment) + site_noise_stddev(experiment) * spread
    divisor = privacy.sample_rate * privacy.nominal_site_size
    size = math.prod(experiment.context_shape)
    noise = (privacy.noise_multiplier or 0.0) * privacy.clipping_norm / divisor * (math.sqrt(size) + 8.0)
    pull = experiment.prompt.contrast * privacy.clipping_norm  # public, but a part of what is sent
    return largest_signal(experiment) + pull + noise


# Rules that tolerate hostile updates: median and trimmed mean (Yin et al., 2018), Krum (Blanchard et al., 2017).
#
# They need every single update, so they are post-processing of what each site sent, not of a sum: their output is as
# private as one message is, no more. See docs/explanation/mechanism.md, robust aggregation.


def _robust(settings: AggregationSettings, updates: Sequence[Context]) -> Floats:
    """The configured rule's gradient [num_context, width]; a RoundError where it needs more updates."""
    if settings.rule == "median":
        return coordinate_median(updates)
    if settings.rule == "krum":
        return krum(updates, settings.trim)
    return trimmed_mean(updates, settings.trim)


def coordinate_median(updates: Sequence[Context]) -> Floats:
    """The median of every coordinate; with an even number of updates the mean of the two in the middle."""
    _enough(updates, 1)
    return np.asarray(np.median(np.stack(updates).astype(np.float64), axis=0))


def trimmed_mean(updates: Sequence[Context], trim: int) -> Floats:
    """The mean of every coordinate without its ``trim`` largest and ``trim`` smallest values."""
    _enough(updates, 2 * trim + 1)
    ordered = np.sort(np.stack(updates).astype(np.float64), axis=0)
    return np.asarray(ordered[trim : len(updates) - trim].mean(axis=0))


def krum(updates: Sequence[Context], hostile: int) -> Floats:
    """The one update whose n - hostile - 2 nearest others are nearest, by squared L2 distance.

    It is one site's message as it was sent: nothing averages its noise, so its variance is n times the mean's. Of
    equals the one with the smallest bytes wins, so that the order of arrival never decides.
    """
    _enough(updates, 2 * hostile + 3)
    flat = np.stack(updates).astype(np.float64).reshape(len(updates), -1)
    closest = len(updates) - hostile - 2

    def score(index: int) -> tuple[float, bytes]:
        distances = np.square(flat - flat[index]).sum(axis=1)
        others = np.sort(np.delete(distances, index))[:closest]
        return float(others.sum()), flat[index].tobytes()

    return np.asarray(updates[min(range(len(updates)), key=score)], dtype=np.float64)


def _enough(updates: Sequence[Context], needed: int) -> None:
    if len(updates) < needed:
        raise RoundError(
            code="TOO_FEW_SITES",
            message=f"{len(updates)} usable replies, the aggregation rule needs {needed}.",
            advice="The round is abandoned; nothing was aggregated.",
        )
