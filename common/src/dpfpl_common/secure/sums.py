"""What an experiment sums in secret, and how its noise lies in it.

Each site adds noise of deviation ``s / sqrt(H)`` to its integers, s what the release is charged with: so the integers
of H sites that no colluder knows hold noise of deviation s, and a sum over S sites ``s sqrt(S / H)``, never less. Sums
of discrete Gaussians of 2^36 grid steps differ from a discrete Gaussian by less than exp(-10^20) (Kairouz, Liu and
Steinke 2021, theorem 1), so the accountant's Gaussian stands for them.
"""

from dpfpl_common.experiment import Experiment
from dpfpl_common.privacy.counts import count_noise_stddev
from dpfpl_common.privacy_plan import class_sums_multiplier, noise_share, score_noise_multiplier, vote_multiplier
from dpfpl_common.secure.terms import Terms
from dpfpl_common.wire.payloads import scored

__all__ = ["share_stddev", "terms_of"]


def terms_of(experiment: Experiment, name: str, attempt: int) -> Terms:
    """The terms of one attempt at a sum, from the experiment alone: no server can choose them."""
    privacy = experiment.privacy
    dropouts, colluders = privacy.tolerated_dropouts, privacy.tolerated_colluders
    return Terms(experiment.digest(), name, attempt, experiment.sites, dropouts, colluders)


def share_stddev(experiment: Experiment, name: str) -> float:
    """Standard deviation of the noise that one site adds to each coordinate of its part of a sum."""
    match name:
        case "rows":
            whole = class_sums_multiplier(experiment)
        case "vote":
            whole = vote_multiplier(experiment)
        case _:
            whole = count_noise_stddev(len(scored(experiment)), score_noise_multiplier(experiment))
    return whole * noise_share(experiment)
