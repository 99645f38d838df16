"""What an experiment will need before it starts: its noise level."""

from dpfpl_common.accounting import calibrate_noise_multiplier
from dpfpl_common.experiment import Experiment

__all__ = ["resolve_noise"]


def resolve_noise(experiment: Experiment) -> Experiment:
    """Fill in the smallest noise multiplier that keeps the target epsilon, unless one is given."""
    privacy = experiment.privacy
    if privacy.noise_multiplier is not None:
        return experiment
    assert privacy.target_epsilon is not None
    multiplier = calibrate_noise_multiplier(
        privacy.target_epsilon, privacy.target_delta, privacy.sample_rate, experiment.total_steps
    )
    return experiment.with_noise_multiplier(multiplier)
