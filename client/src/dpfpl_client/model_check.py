"""Whether a site's model can do what is planned, and with the data that the site has: for ``dpfpl-client check``."""

from dpfpl_client.data import SiteData
from dpfpl_client.learning.backbone import Backbone, Scorer
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.learning.long_answers import too_long_answers
from dpfpl_common.errors import DpfplError
from dpfpl_common.experiment import Experiment, TaskSettings

__all__ = ["other_data", "refused_for_its_model", "words_for_the_task"]


def refused_for_its_model(experiment: Experiment, backbone: Backbone) -> str:
    """Why the agent would refuse the experiment at its first round, because of the model; empty where it would not."""
    if experiment.model.fingerprint not in ("", backbone.fingerprint):
        return (
            f"The plan asks for another model than the site has: for {experiment.model.id or 'one'!r} with the "
            f"fingerprint {experiment.model.fingerprint[:12]}, where site.toml's has {backbone.fingerprint[:12]}. "
            "Set model in site.toml. [OTHER_MODEL]"
        )
    try:
        PromptLearner(backbone, experiment, SiteFeatures.empty(backbone.feature_size, experiment.classes))
    except DpfplError as error:
        return str(error)
    return ""


def words_for_the_task(experiment: Experiment, scorer: Scorer | None, data: SiteData, source: str) -> list[str]:
    """Warnings where the site's lines are not all what a task in words needs; for captions any line will do.

    ``scorer`` is None where the model cannot serve the experiment; then lengths are not looked at.
    """
    if source != "questions":
        return ["The plan wants answers in words; the site has none and would only send noise. [NO_QUESTIONS]"]
    warnings, task = [], experiment.task
    without = sum(not record.question for record in data.train)
    if task.kind == "vqa" and without:
        warnings.append(
            f"The plan asks questions; {without} of {len(data.train)} training lines have none and are trained on "
            "without one. [NO_QUESTIONS]"
        )
    if scorer is None:
        return warnings
    records = (*data.train, *data.test)
    if warning := too_long_answers(scorer, task, [record.label for record in records]):
        warnings.append(warning)
    asked = [(record.question or task.question, record.label) for record in records]
    too_long = sum(scorer.too_long(experiment.prompt.num_context, *pair) for pair in asked)
    if too_long:
        warnings.append(
            f"{too_long} of {len(asked)} lines make a turn longer than the model was made for; they teach nothing and "
            "count as answered wrong. [TURN_TOO_LONG]"
        )
    return warnings


def other_data(source: str, backbone: Backbone) -> str:
    """A warning where the model cannot learn, or not only, from data of this kind; empty where it can."""
    in_words = any(TaskSettings(kind).in_words for kind in backbone.tasks)
    if source == "questions" and not in_words:
        return (
            f"The data are questions or captions, which a model of the family {backbone.family!r} does not answer. Set "
            'model in site.toml to the generative one that the operator names; for a trial to "embedded-vlm". '
            "[NO_ANSWERS]"
        )
    if source != "questions" and in_words:
        return (
            "The model answers questions, and the data are images of classes: where an experiment's task is not "
            "classify, the site would only send noise. [NO_QUESTIONS]"
        )
    return ""
