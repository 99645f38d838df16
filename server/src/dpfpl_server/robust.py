"""Rules that bear some hostile updates: coordinate by coordinate, median and trimmed mean (Yin et al., ICML 2018).

They need every single update, so they are post-processing of what each site sent, not of a sum: their output is as
private as one message is, no more. See docs/algorithm.md, robust aggregation.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpfpl_common.errors import RoundError
from dpfpl_common.experiment import AggregationSettings
from dpfpl_common.payload import Context

__all__ = ["coordinate_median", "robust", "trimmed_mean"]

Floats = npt.NDArray[np.float64]


def robust(settings: AggregationSettings, updates: Sequence[Context]) -> Floats:
    """The configured rule's gradient [num_context, width].

    Raises:
        RoundError: too few updates for it.
    """
    if settings.rule == "median":
        return coordinate_median(updates)
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


def _enough(updates: Sequence[Context], needed: int) -> None:
    if len(updates) < needed:
        raise RoundError(
            code="TOO_FEW_SITES",
            message=f"{len(updates)} usable replies, the aggregation rule needs {needed}.",
            advice="The round is abandoned; nothing was aggregated.",
        )
