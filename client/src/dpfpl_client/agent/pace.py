"""How long an answer takes: as long for every answer of an experiment, whatever the site's examples.

The time is found by a rehearsal on made-up examples of the public nominal number before an experiment's first answer:
it depends on the plan and on the machine, and is a power of two. An answer that is ready earlier waits. If an honest
one takes longer, the experiment's time is doubled for all later answers: what that can tell is one bit
for each doubling, over the whole experiment, instead of a duration with every answer.
"""

import math
import time

import numpy as np
import torch

from dpfpl_client.agent.store import Store
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_common.evidence import pack_pool, summed_pool
from dpfpl_common.experiment import Experiment

__all__ = ["Pace", "made_up"]

MARGIN = 4.0
"""How much longer an answer takes than the rehearsal at least, at most twice that: room for more examples than nominal,
and for a busy machine."""


class Pace:
    """The fixed time of each experiment's answers.

    Args:
        store: keeps them over restarts.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._started = 0.0

    def start(self) -> None:
        """An answer's time begins."""
        self._started = time.monotonic()

    def rehearse(self, experiment: Experiment, backbone: Backbone, features: SiteFeatures) -> None:
        """Find the time of an experiment's answers, unless it is known; then the answer's time starts again.

        Args:
            experiment: whose answers.
            backbone: the frozen model.
            features: of the site; only the shape of one row is used.
        """
        if self._store.read_pace(experiment.name) > 0:
            return
        examples = made_up(experiment, tuple(features.train.features.shape[1:]))
        learner = PromptLearner(
            backbone, experiment, SiteFeatures(examples, examples, examples.none(), experiment.classes)
        )
        took = min(_rehearsal(learner, experiment) for _ in range(2))  # the first also loads what is loaded once
        # A power of two: what else the machine did meanwhile does not show, unless it took twice as long.
        self._store.write_pace(experiment.name, 2.0 ** math.ceil(math.log2(MARGIN * max(took, 1e-3))))
        self.start()

    def slot(self, least: float) -> float:
        """When a refusal may leave, on the monotonic clock: ``least`` seconds after it was asked for, or twice as many,
        four times, and so on, where it took longer.
        """
        pace, passed = least, time.monotonic() - self._started
        while pace < passed:
            pace *= 2.0
        return self._started + pace

    def due(self, experiment: str, least: float) -> tuple[float, bool]:
        """When the answer may leave, on the monotonic clock, and whether the experiment's time had to be doubled.

        Args:
            experiment: its name.
            least: seconds that every answer takes at least, by the site's policy.
        """
        pace, passed, stretched = max(least, self._store.read_pace(experiment)), time.monotonic() - self._started, False
        while pace < passed:
            pace, stretched = 2.0 * pace, True
        if stretched:
            self._store.write_pace(experiment, pace)
        return self._started + pace, stretched


def _rehearsal(learner: PromptLearner, experiment: Experiment) -> float:
    """Seconds of a round's training or of an evaluation, whichever takes longer."""
    randomness = SeededRandomness(0).for_round("rehearsal", 1)
    context = np.zeros(experiment.context_shape, "<f4")
    pool = None
    if experiment.uses_evidence:  # every class stands out
        shape = (len(experiment.classes), learner.feature_size)
        pool = pack_pool(summed_pool(np.ones(shape), 1e-3, 1), np.ones(shape[0]))
    trained_on = pool if experiment.privacy.trust == "secure" else None  # there it comes from the server
    started = time.monotonic()
    state = learner.train_round(context, PersonalState.initial(experiment), randomness, pool=trained_on).state
    trained = time.monotonic()
    learner.evaluate(context, state.context)
    if pool is not None:
        learner.own_moment(pool, learner.alone(state), randomness)
    return max(trained - started, time.monotonic() - trained)


def made_up(experiment: Experiment, row: tuple[int, ...]) -> LabelledFeatures:
    """The nominal number of examples, none of them real: random rows, and answers as long as they may be."""
    count = experiment.privacy.nominal_site_size
    rows = torch.randn((count, *row), generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(rows, dim=-1)
    labels = torch.arange(count) % max(1, len(experiment.classes))
    answer = " ".join(["word"] * max(1, experiment.task.max_answer_tokens))
    asked = (("what is this, and how many?", answer),) * count if experiment.task.in_words else ()
    return LabelledFeatures(rows, labels, asked)
