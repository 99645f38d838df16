"""From the sites' updates to the gradient of the global context."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.noise import NoiseSource
from dpfpl_common.privacy_plan import largest_signal, server_noise_stddev, site_noise_stddev
from dpfpl_common.wire.payloads import Context
from dpfpl_server.federation.robust import robust

__all__ = [
    "UpdateStack",
    "UpdateSum",
    "Updates",
    "aggregate",
    "aggregate_sum",
    "collector",
    "initial_global_context",
    "update_norm_cap",
]


class UpdateSum:
    """The sum of the updates so far; its memory does not grow with the number of sites.

    Kept in float64: 29 more binary digits than an update has, so sums over thousands of sites, whose updates share a
    grid, come out the same in whatever order they arrive.

    Args:
        experiment: gives the shape [num_context, width].
    """

    def __init__(self, experiment: Experiment) -> None:
        self.total: npt.NDArray[np.float64] = np.zeros(experiment.context_shape)
        self.count = 0

    def add(self, update: Context) -> None:
        """Add a validated update, float32 [num_context, width]."""
        self.total += update
        self.count += 1


class UpdateStack:
    """All updates, kept until the round closes: what a robust rule needs."""

    def __init__(self) -> None:
        self.updates: list[Context] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.updates)

    def add(self, update: Context) -> None:
        """Keep a validated update, float32 [num_context, width]."""
        self.updates.append(update)


Updates = UpdateSum | UpdateStack


def collector(experiment: Experiment) -> Updates:
    """What takes the updates of one round, empty."""
    return UpdateSum(experiment) if experiment.aggregation.rule == "mean" else UpdateStack()


def aggregate(experiment: Experiment, updates: Iterable[Context], noise: NoiseSource) -> npt.NDArray[np.float64]:
    """As :func:`aggregate_sum`, for updates that are all here already."""
    added = collector(experiment)
    for update in updates:
        added.add(update)
    return aggregate_sum(experiment, added, noise)


def aggregate_sum(experiment: Experiment, updates: Updates, noise: NoiseSource) -> npt.NDArray[np.float64]:
    """Mean of the updates, with the server's own noise under ``central`` trust; or the robust rule that is configured.

    Equal weights: the sites' counts are private. An update is a mean over the round's local steps of clipped sums
    divided by the public expected batch size; under ``central`` the server's noise per step has standard deviation z C
    towards the sum over sites, hence ``z C / sqrt(local_steps)`` towards that mean.

    Under the unit ``site`` an update is clipped as a whole, so one site moves the sum by at most C, and under
    ``central`` the noise on it has standard deviation z C. The divisor is the public ``site_sample_rate * N``, however
    many replied; a sample without a single reply is noise alone. With sampled sites there is no quorum to keep: the
    noise is whole however few sites reply.

    A robust rule (``dpfpl_server.federation.robust``) works on single messages. It is admitted under ``local`` trust
    only, where each message carries the whole noise, so that whatever is made of them is post-processing.

    Args:
        experiment: trust mode, norms and public divisor.
        updates: the validated updates, one a site, in what ``collector`` gave.
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
    if isinstance(updates, UpdateStack):
        return robust(experiment.aggregation, updates.updates)
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
