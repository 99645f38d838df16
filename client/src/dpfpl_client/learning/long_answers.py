"""Right answers that are longer than an experiment lets a model answer: no prompt can say them."""

from collections.abc import Sequence

from dpfpl_client.learning.backbone import Scorer
from dpfpl_common.experiment import TaskSettings

__all__ = ["too_long_answers"]


def too_long_answers(scorer: Scorer, task: TaskSettings, answers: Sequence[str]) -> str:
    """What a site should know about its answers, with a code; empty where all can be said.

    Args:
        scorer: the model joined to the experiment.
        task: the experiment's.
        answers: the right ones.
    """
    count = scorer.cut_off(answers) if task.in_words else 0
    if not count:
        return ""
    return (
        f"{count} of {len(answers)} answers can never be right: what the model says ends after "
        f"{task.max_answer_tokens} tokens. Shorten them, or have the experiment's task.max_answer_tokens raised. "
        "[ANSWERS_TOO_LONG]"
    )
