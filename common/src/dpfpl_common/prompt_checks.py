"""Checks of an experiment's [prompt]: ranges, and options that say nothing to the mechanism or method that runs."""

from typing import TYPE_CHECKING

from dpfpl_common.value_checks import impossible, within

if TYPE_CHECKING:
    from dpfpl_common.experiment import Experiment

__all__ = ["check_prompt"]


def check_prompt(experiment: "Experiment") -> None:
    """Refuse what cannot be, or would silently do nothing.

    Raises:
        ConfigError: names key, value and expectation.
    """
    prompt, privacy = experiment.prompt, experiment.privacy
    within("prompt.num_context", prompt.num_context, 1, 1024)
    within("prompt.rank", prompt.rank, 1, min(experiment.context_shape))
    within("prompt.personal_strength", prompt.personal_strength, 0.0, 10.0)
    within("prompt.absent_weight", prompt.absent_weight, 0.0, 0.95)
    within("prompt.retention", prompt.retention, 0.0, 100.0)
    within("prompt.contrast", prompt.contrast, 0.0, 100.0)
    noised_steps = (privacy.mechanism, privacy.unit, experiment.task.kind) == ("per_step", "example", "classify")
    if prompt.absent_weight and privacy.mechanism != "one_shot":
        raise impossible(
            "prompt.absent_weight",
            prompt.absent_weight,
            "0: which classes a site lacks is known without a further release under the mechanism one_shot only",
        )
    if prompt.retention and not noised_steps:
        raise impossible(
            "prompt.retention",
            prompt.retention,
            "0: it goes with the mechanism per_step, the unit example and the task classify",
        )
    if prompt.contrast and not (noised_steps and prompt.method == "fedpgp"):
        raise impossible(
            "prompt.contrast",
            prompt.contrast,
            "0: it is a term of fedpgp, under the mechanism per_step, the unit example and the task classify",
        )
