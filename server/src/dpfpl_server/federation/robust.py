"""Rules that tolerate hostile updates: median and trimmed mean (Yin et al., 2018), Krum (Blanchard et al., 2017).

They need every single update, so they are post-processing of what each site sent, not of a sum: their output is as
private as one message is, no more. See docs/explanation/mechanism.md, robust aggregation.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import AggregationSettings
from dpfpl_common.wire.payloads import Context

__all__ = ["coordinate_median", "krum", "robust", "trimmed_mean"]

Floats = npt.NDArray[np.float64]


def robust(settings: AggregationSettings, updates: Sequence[Context]) -> Floats:
    """The configured rule's gradient [num_context, width].

    Raises:
        RoundError: too few updates for it.
    """
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
