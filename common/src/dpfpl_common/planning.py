"""What an experiment will need before it starts: its noise level."""

import math

from dpfpl_common.accounting import calibrate_noise_multiplier
from dpfpl_common.experiment import Experiment
from dpfpl_common.trust import separate_blocks

__all__ = ["paper_noise_multiplier", "resolve_noise"]


def resolve_noise(experiment: Experiment) -> Experiment:
    """Fill in the noise multiplier that target_epsilon asks for, unless one is given.

    The target holds towards whoever receives a site's personalised prompt; under the unit ``site``, with one release a
    round, towards another site. Under ``accounting = "paper"`` the paper's formula is used instead, and the target is
    nominal only.
    """
    privacy = experiment.privacy
    if privacy.noise_multiplier is not None:
        return experiment
    assert privacy.target_epsilon is not None
    epsilon, delta, steps = privacy.target_epsilon, privacy.target_delta, experiment.total_steps
    if privacy.accounting == "paper":
        return experiment.with_noise_multiplier(paper_noise_multiplier(epsilon, delta, steps))
    if privacy.unit == "site":
        rounds = experiment.rounds.number
        return experiment.with_noise_multiplier(
            calibrate_noise_multiplier(epsilon, delta, privacy.site_sample_rate, rounds)
        )
    if privacy.mechanism == "one_shot":
        return experiment.with_noise_multiplier(calibrate_noise_multiplier(epsilon, delta, 1.0, 1))
    joint = calibrate_noise_multiplier(epsilon, delta, privacy.sample_rate, steps)
    return experiment.with_noise_multiplier(joint * math.sqrt(separate_blocks(experiment)))


def paper_noise_multiplier(nominal_epsilon: float, delta: float, steps: int) -> float:
    """The noise multiplier that the published code uses: ``sqrt(T ln(1 / delta)) / epsilon``.

    It is relative to a sensitivity of C / B for a batch mean, which per-example clipping has and the published code,
    which clips the batch mean itself, has not. The bound behind it ignores sub-sampling and the number of blocks.
    """
    return math.sqrt(steps * math.log(1.0 / delta)) / nominal_epsilon
