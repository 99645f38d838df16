"""The model card of an exported prompt: what it is, what it was learned from, what it may tell, how to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dpfpl_client.learning.backbone import Backbone
from dpfpl_client.prompt import SitePrompt
from dpfpl_common.accounting import epsilon, json_epsilon
from dpfpl_common.trust import ADVERSARIES, UNIT_NAMES, planned_events

__all__ = ["BaseModel", "Facts", "model_card"]

METRICS = {
    "zero_shot_local": "plain text prompt, nothing learned (floor)",
    "global_local": "shared prompt alone (floor)",
    "personal_local": "this prompt, one round before its last",
    "zero_shot_neighbour": "plain text prompt, on the other sites' classes (floor)",
    "global_neighbour": "shared prompt alone, on the other sites' classes (floor)",
    "personal_neighbour": "this prompt, one round before its last, on the other sites' classes",
}


PLACES = {
    "classify": "before the class name",
    "vqa": "between picture and question",
    "caption": "behind the picture, before the caption",
}

SOURCES = {
    "classify": "Labelled images",
    "vqa": "Questions about images, with their answers,",
    "caption": "Images with captions",
}

USES = {
    "classify": """\
To classify images of the classes above, of the kind that the site collects, with the base model named above. It was
tested, if at all, on that site's own test images only. It answers with one of its classes for every image, also for one
that belongs to none. A probability is the model's own confidence and was not calibrated.""",
    "vqa": """\
To answer questions of the kind that the site asks, about images of the kind that it collects, with the base model named
above. It was tested, if at all, on that site's own test questions only. It answers every question, also one that the
image does not answer.""",
    "caption": """\
To write captions as the site writes them, for images of the kind that it collects, with the base model named above. It
was tested, if at all, on that site's own test captions only, by the overlap of words. It has something to say about
every image, right or not.""",
}


@dataclass(frozen=True)
class BaseModel:
    """What the model is called where the prompt is used, and who says so: ``ours`` comes along in a folder."""

    name: str
    said_by: Literal["ours", "experiment", "site", "nobody"]


@dataclass(frozen=True)
class Facts:
    """What the prompt itself does not know.

    Attributes:
        site: the site's name.
        charged_epsilon: what the site's ledger charged for the experiment, at ``charged_delta``; None without a ledger.
        metrics: accuracies that the site's policy let out with the last round.
        seeded: whether the noise came from a seed.
        model: the hub id of the model that the site has loaded; empty where it is none from a hub.
    """

    site: str
    charged_epsilon: float | str | None = None
    charged_delta: float = 1e-5
    metrics: Mapping[str, float] = field(default_factory=dict)
    seeded: bool = False
    model: str = ""


def model_card(prompt: SitePrompt, backbone: Backbone, facts: Facts, base_model: BaseModel, usage: str) -> str:
    """README.md of the exported folder, in Markdown with the hub's front matter; ``usage`` says how to use it."""
    experiment = prompt.experiment
    base = json.dumps(base_model.name)
    library = "peft" if "PeftModel" in usage else "transformers"
    return f"""\
---
library_name: {library}
base_model: {base}
tags: [{backbone.family}, prompt-learning, federated-learning]
---
# Prompt of {facts.site} from the experiment {experiment.name}

{experiment.prompt.num_context} learned vectors that stand {PLACES[experiment.task.kind]} in the input of a frozen
{backbone.family} model. They were learned by the method {experiment.prompt.method} in a federation of
{len(experiment.sites)} sites over {prompt.round} rounds; the images never left their sites.

## Base model

{_base(base_model)} Its fingerprint (sha256 over weights, configuration and tokenizer, as `dpfpl-client check` prints
it) is `{backbone.fingerprint}`.

## Use

{usage}
## What it was learned from

{_sources(prompt, facts)} How many images a site has is not stated: counts are private.

## Accuracy

{_accuracy(facts.metrics, experiment.task.kind)}
## What it may tell about one training example

{_privacy(prompt, facts)}
## Intended use

{USES[experiment.task.kind]} Before decisions about people,
test it on data of your own. Whoever holds this folder is a prompt recipient in the table above: pass it on only as far
as the site agreed.
"""


def _sources(prompt: SitePrompt, facts: Facts) -> str:
    experiment = prompt.experiment
    what = SOURCES[experiment.task.kind]
    classes = f" Classes:\n{_listed(experiment.classes)}." if experiment.classes else ""
    return f"{what} of the site {facts.site}, and what all sites shared: {_listed(experiment.sites)}.{classes}"


def _base(base_model: BaseModel) -> str:
    return {
        "ours": "The small model that ships with DP-FPL, for tests and demonstrations; it is in the folder "
        "`base_model`.",
        "experiment": f"`{base_model.name}`, as the experiment names it.",
        "site": f"`{base_model.name}`, as the site calls it; the experiment names none.",
        "nobody": f"The experiment names none: put the model with this fingerprint in the place of "
        f"`{base_model.name}`.",
    }[base_model.said_by]


def _accuracy(metrics: Mapping[str, float], task: str) -> str:
    known = [(METRICS[name], metrics[name]) for name in METRICS if name in metrics]
    if not known:
        return "The site's policy lets no accuracy out, so none is stated.\n"
    rows = "\n".join(f"| {what} | {100 * value:.1f} % |" for what, value in known)
    return (
        "On the site's test images, as its policy lets it out (it may be rounded to steps of five points). A site "
        "measures when a round begins, so these figures are those of the prompt one round of training before this "
        f"one:\n\n| | {'word overlap (F1)' if task == 'caption' else 'accuracy'} |\n|---|---|\n{rows}\n"
    )


def _privacy(prompt: SitePrompt, facts: Facts) -> str:
    experiment = prompt.experiment
    delta = experiment.privacy.target_delta
    rows = "\n".join(
        f"| {ADVERSARIES[event.adversary]} | {_shown(json_epsilon(epsilon([event], delta)))} | {delta:g} |"
        for event in planned_events(experiment, prompt.round * experiment.rounds.local_steps)
    )
    charged = (
        f"\nThe site's ledger was charged {_shown(facts.charged_epsilon)} for this experiment at delta "
        f"{facts.charged_delta:g}; rounds that a crash interrupted are paid twice.\n"
        if facts.charged_epsilon is not None
        else ""
    )
    seeded = (
        "\n**The noise came from a seed: this was a simulation with public images, and nothing is protected.**\n"
        if facts.seeded
        else ""
    )
    return (
        f"Unit: {UNIT_NAMES[experiment.privacy.unit]}. Mechanism {experiment.privacy.mechanism}, trust "
        f"{experiment.privacy.trust}. The accountant's epsilons, smaller is stronger:\n\n"
        f"| against | epsilon | delta |\n|---|---|---|\n{rows}\n{charged}{seeded}\n"
        "Test images are not covered by any epsilon.\n"
    )


def _shown(value: float | str | None) -> str:
    """An epsilon, rounded up so that it never claims more than was computed."""
    return f"{-(-value * 1000 // 1) / 1000:.3f}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_plain(name) for name in names)


def _plain(name: str) -> str:
    """A class name as Markdown shows it."""
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>()#|!" else char for char in name)
