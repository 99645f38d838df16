"""The table of reply times in docs/results/audits.md: how long an operator waits, by the examples of a site.

``python -m research.tables.reply_times`` asks two sites by turns for 30 answers each, in ten experiments, with the wait
for the experiment's fixed time and without it. Run it on a machine that does nothing else.
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
from research.writing import table

EXPERIMENTS: Final = 10
ROUNDS: Final = 4
"""Of each experiment; the first one rehearses, and is not counted."""


def reply_times(backbone: Backbone, experiment: Experiment, examples: LabelledFeatures, *, fixed: bool) -> np.ndarray:
    """Seconds of one experiment's answers of one site; without ``fixed`` an answer leaves when it is ready."""
    features = SiteFeatures(examples, examples.none(), examples.none(), experiment.classes)
    policy = Policy(experiments=("*",), max_epsilon_per_experiment=1e4, max_epsilon_lifetime=1e4, reply_slot=0.05)
    found = []
    pace = mock.patch.object(Pace, "due", Pace.due if fixed else lambda *_: (0.0, False))
    with pace, tempfile.TemporaryDirectory() as folder:
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


def _pairs() -> list[tuple[str, Backbone, Experiment, dict[str, LabelledFeatures]]]:
    clip, speaking = load_backbone("embedded"), load_backbone("embedded-vlm")
    images = _experiment("images", clip, 1000, TaskSettings(), "a photo of a")
    questions = _experiment("questions", speaking, 10, TaskSettings(kind="vqa", max_answer_tokens=8), "please answer")
    many = made_up(images, (clip.feature_size,))
    long = made_up(questions, (speaking.feature_size,))
    short = LabelledFeatures(long.features[:5], long.labels[:5], (("what is this?", "a word"),) * 5)
    mixed = LabelledFeatures(short.features, short.labels, (*short.asked[:4], long.asked[0]))
    return [
        ("questions", speaking, questions, {"4 short": short.take(np.arange(4)), "4 short, 1 long": mixed}),
        ("images", clip, images, {"10 images": many.take(np.arange(10)), "1,000 images": many}),
    ]


def main() -> None:
    """Print the table, and for each pair of sites the probability that chance tells them further apart than that.

    Compared are answers without the wait, and experiments' medians with it, whose answers share one fixed time.
    """
    rows: list[list[str]] = []
    for what, backbone, experiment, sites in _pairs():
        cells = {name: [name] for name in sites}
        p = []
        for fixed in (False, True):
            found: dict[str, list[np.ndarray]] = {name: [] for name in sites}
            for turn in range(EXPERIMENTS):
                for name in list(sites)[:: 1 if turn % 2 else -1]:
                    found[name].append(reply_times(backbone, experiment, sites[name], fixed=fixed))
            for name, times in found.items():
                low, middle, high = np.quantile(np.concatenate(times), (0.1, 0.5, 0.9))
                cells[name] += [f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
            one, other = (
                [float(np.median(times)) for times in found[name]] if fixed else np.concatenate(found[name])
                for name in sites
            )
            p.append(stats.ks_2samp(one, other).pvalue)
        rows += cells.values()
        print(f"{what}: Kolmogorov-Smirnov p = {p[0]:.2g} without, {p[1]:.2g} with", flush=True)
    print(table(("examples", "without: median", "10 to 90 %", "with: median", "10 to 90 %"), rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
