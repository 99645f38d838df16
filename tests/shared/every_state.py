"""Everything an operator can ask of a site, in every state of its agent."""

import dataclasses

import numpy as np
from PIL import Image

from dpfpl_common.evidence import pack_pool, pool_rows
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)


def experiment_of(view, name, classes, *, task=None, **privacy):
    settings = {"mechanism": "per_step", "trust": "distributed", "noise_multiplier": 2.0}
    settings |= {"nominal_site_size": 10, "sample_rate": 0.5, **privacy}
    return Experiment(
        name=name,
        classes=classes,
        sites=("north", "south", "west"),
        model=ModelSettings(width=view.width, fingerprint=view.fingerprint),
        prompt=PromptSettings(
            num_context=4, rank=2, init_text="please answer the question" if task else "a photo of a"
        ),
        privacy=PrivacySettings(**settings),
        rounds=RoundSettings(number=2, local_steps=2),
        task=TaskSettings(kind=task, max_answer_tokens=8) if task else TaskSettings(),
    )


MECHANISMS = {
    "per-step": {"mechanism": "per_step", "trust": "distributed"},
    "local": {"mechanism": "per_step", "trust": "local"},
    "one-shot": {"mechanism": "one_shot", "trust": "local"},
}
WHOLE_SITE = {"whole-site": {"unit": "site", "mechanism": "per_step", "trust": "distributed"}}
"""Another unit of privacy: it needs a ledger of its own."""


def every_state(classes, task=None, mechanisms=MECHANISMS):
    """A script: every call in every state of an agent's life."""

    def script(view):
        with view.agent() as built:
            if built is None:
                return
            for name in (*classes, "zzz") if not task else ():
                single = experiment_of(view, f"probe-{name}", (name, "never heard of"))
                view.evaluate(f"evaluate round 0, classes ({name}, ...)", single, 0)
                view.train(f"train, classes ({name}, ...)", single, 1)
            _refusals(view, classes, task)
            for name, privacy in mechanisms.items():
                _life(view, experiment_of(view, name, classes, task=task, **privacy))
        with view.agent() as built:
            if built is None:
                return
            for name, privacy in mechanisms.items():
                again = experiment_of(view, name, classes, task=task, **privacy)
                collect, _, final = _evidence(view, again)
                view.train(f"{name}: repeat round 1 after a restart", again, 1, **collect)
                view.evaluate(f"{name}: evaluate again after a restart", again, 2, **final)

    return script


def _evidence(view, experiment):
    """What the server asks for and sends where class sums are pooled: public, the same for both sites."""
    if not experiment.uses_evidence:
        return {}, {}, {}
    rows = np.random.default_rng(0).normal(size=(3, len(experiment.classes), view.feature_size))
    pooled, weights = pool_rows(list(rows), experiment.privacy.noise_multiplier)
    pool = pack_pool(pooled, weights[0])
    return {"collect": True}, {"pool": pool}, {"pool": pool, "chosen": "evidence"}


def _life(view, experiment):
    collect, vote, final = _evidence(view, experiment)
    name, moved = experiment.name, np.full(experiment.context_shape, 0.01, "<f4")
    view.evaluate(f"{name}: evaluate before any round", experiment, 0)
    view.train(f"{name}: round 1", experiment, 1, **collect)
    view.train(f"{name}: round 1 repeated", experiment, 1, **collect)
    view.train(f"{name}: round 1 with another context", experiment, 1, moved)
    view.evaluate(f"{name}: evaluate after round 1", experiment, 1, moved)
    view.train(f"{name}: round 2", experiment, 2, moved, evaluate=False, **vote)
    view.train(f"{name}: round 1 after round 2", experiment, 1)
    for number in range(3):
        view.evaluate(f"{name}: final evaluation {number}", experiment, 2, np.float32(number) * moved, **final)


def _refusals(view, classes, task):
    base = experiment_of(view, "refused", classes, task=task)

    def other(**changes):
        parts = {
            k: dataclasses.replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in changes.items()
        }
        return dataclasses.replace(base, **parts)

    view.train("not a member", other(sites=("south", "west")), 1)
    view.train("another model", other(model={"fingerprint": "0" * 64}), 1)
    view.train("too little noise", other(privacy={"noise_multiplier": 0.01}), 1)
    view.train("central", other(privacy={"trust": "central"}), 1)
    view.train("another width", other(model={"width": 64, "fingerprint": ""}), 1)
    view.train("more rounds than allowed", other(rounds={"number": 501}), 1)
    view.call("nonsense", "Train", b"\xff\xff")
    view.call("an unknown method", "Debug", b"")


def save_image(path, seed, level):
    pixels = (level + np.random.default_rng(seed).integers(0, 60, (24, 24, 3))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
