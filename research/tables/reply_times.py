"""The table of reply times in docs/results/audits.md: how long an operator waits, by the examples of a site.

``python -m research.tables.reply_times`` asks one site after another for 30 rounds each, in five experiments, with the
wait for the experiment's fixed time and without it. Run it on a machine that does nothing else.
"""

import tempfile
import time
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np
import torch
from scipy import stats

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.pace import Pace, made_up
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import Backbone, LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.policy import Policy
from dpfpl_common.wire.payloads import TrainRequest

EXPERIMENTS: Final = 5
ROUNDS: Final = 7
"""Of each experiment; the first one rehearses, and is not counted."""


def reply_times(backbone: Backbone, experiment: Experiment, examples: LabelledFeatures, *, fixed: bool) -> np.ndarray:
    """Seconds of the answers [30] of one site; without ``fixed`` an answer leaves when it is ready."""
    features = SiteFeatures(examples, examples.none(), examples.none(), experiment.classes)
    policy = Policy(experiments=("*",), max_epsilon_per_experiment=1e4, max_epsilon_lifetime=1e4, reply_slot=0.05)
    found = []
    with mock.patch.object(Pace, "due", Pace.due if fixed else lambda *_: (0.0, False)):
        for _ in range(EXPERIMENTS):
            with tempfile.TemporaryDirectory() as folder:
                store = DiskStore(Path(folder))
                agent = SiteAgent("north", backbone, features, policy, Ledger(None), store, SystemRandomness())
                for number in range(1, ROUNDS + 1):
                    started = time.monotonic()
                    agent.train(TrainRequest(experiment, number, np.zeros(experiment.context_shape, "<f4")))
                    found += [time.monotonic() - started] if number > 1 else []
    return np.array(found)


def _experiment(name: str, backbone: Backbone, nominal: int, task: TaskSettings, init_text: str) -> Experiment:
    return Experiment(
        name=name,
        classes=() if task.in_words else ("zero", "one"),
        sites=("north", "south"),
        model=ModelSettings(width=backbone.width),
        prompt=PromptSettings(num_context=4, rank=2, init_text=init_text),
        privacy=PrivacySettings(
            mechanism="per_step", trust="local", noise_multiplier=8.0, nominal_site_size=nominal, sample_rate=0.5
        ),
        rounds=RoundSettings(number=ROUNDS, local_steps=2),
        task=task,
    )


def _rows() -> list[tuple[str, Backbone, Experiment, LabelledFeatures]]:
    clip, speaking = load_backbone("embedded"), load_backbone("embedded-vlm")
    images = _experiment("images", clip, 1000, TaskSettings(), "a photo of a")
    questions = _experiment("questions", speaking, 10, TaskSettings(kind="vqa", max_answer_tokens=8), "please answer")
    many = made_up(images, (clip.feature_size,))
    long = made_up(questions, (speaking.feature_size,))
    short = LabelledFeatures(long.features[:5], long.labels[:5], (("what is this?", "a word"),) * 5)
    mixed = LabelledFeatures(short.features, short.labels, (*short.asked[:4], long.asked[0]))
    return [
        ("4 short", speaking, questions, short.take(np.arange(4))),
        ("4 short, 1 long", speaking, questions, mixed),
        ("10 images", clip, images, many.take(np.arange(10))),
        ("1,000 images", clip, images, many),
    ]


def main() -> None:
    """Print the table, and of each pair of sites the probability that chance tells them further apart than that."""
    print("| examples | without: median | 10 to 90 % | with: median | 10 to 90 % |\n|---|---|---|---|---|")
    kept: list[np.ndarray] = []
    for name, backbone, experiment, examples in _rows():
        cells = []
        for fixed in (False, True):
            found = reply_times(backbone, experiment, examples, fixed=fixed)
            low, middle, high = np.quantile(found, (0.1, 0.5, 0.9))
            cells += [f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
            kept.append(found)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for what, without, fixed in (("questions", (0, 2), (1, 3)), ("images", (4, 6), (5, 7))):
        p = [stats.ks_2samp(kept[one], kept[other]).pvalue for one, other in (without, fixed)]
        print(f"{what}: Kolmogorov-Smirnov p = {p[0]:.2g} without, {p[1]:.2g} with")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
