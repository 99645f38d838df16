"""Whether a site has enough images for the noise of an experiment, as a rule of thumb in words."""

import math

from dpfpl_common.experiment import Experiment
from dpfpl_common.trust import site_noise_stddev

__all__ = ["noise_to_signal", "noise_words"]

LITTLE, NOTICEABLE, MUCH = 0.1, 0.5, 2.0


def noise_to_signal(experiment: Experiment, training_images: int, smallest_class: int, feature_size: int) -> float:
    """Length of the noise over the largest length of what can be learned, over the whole experiment.

    ``per_step``: T noised sums of about q n gradients of length C at most; the noise of each has the length
    s sqrt(num_context * width), and over T steps grows by sqrt(T) only. ``one_shot``: the noised sum of the features of
    the smallest class. Under the unit ``site`` one update of length C a round.

    Args:
        experiment: noise resolved.
        training_images: n.
        smallest_class: images of the smallest class that the site has.
        feature_size: of the model's image features.
    """
    privacy, rounds = experiment.privacy, experiment.rounds
    z = privacy.noise_multiplier or 0.0
    values = math.prod(experiment.context_shape)
    if privacy.mechanism == "one_shot":
        return z * math.sqrt(feature_size) / max(1, smallest_class)
    stddev = max(site_noise_stddev(experiment), z * privacy.clipping_norm)
    if privacy.unit == "site":
        return stddev * math.sqrt(values) / (privacy.clipping_norm * len(experiment.sites) * math.sqrt(rounds.number))
    steps = experiment.total_steps
    signal = privacy.clipping_norm * privacy.sample_rate * max(1, training_images) * math.sqrt(steps)
    return stddev * math.sqrt(values) / signal


def noise_words(ratio: float) -> tuple[str, bool]:
    """What such a ratio means for the accuracy, and whether it deserves a warning."""
    if ratio <= LITTLE:
        return "the noise is small beside what your images teach: expect little loss of accuracy", False
    if ratio <= NOTICEABLE:
        return "the noise is noticeable beside what your images teach: expect some loss of accuracy", False
    if ratio <= MUCH:
        more = math.ceil(ratio / NOTICEABLE)
        return (
            "the noise is about as large as what your images teach: expect a clear loss of accuracy; about "
            f"{more} times as many images, or a larger epsilon, would mend it",
            True,
        )
    return (
        "there are too few images for so much noise: the prompt will hardly learn anything from this site; ask for "
        "more images, a larger epsilon or fewer rounds",
        True,
    )
