"""Everything an operator can ask of a site, in every state of its agent."""

import dataclasses

import numpy as np
from PIL import Image

from dpfpl_common.evidence import pack_pool, pool_rows, summed_pool
from dpfpl_common.experiment import (
    Experiment,
    ModelSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
    TaskSettings,
)
from dpfpl_common.secure import STEPS
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import SiteSum
from dpfpl_common.secure.terms import terms_of


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


SECURE = {"mechanism": "one_shot", "trust": "secure", "noise_multiplier": 0.5}  # so little that moments are told too
MECHANISMS = {
    "per-step": {"mechanism": "per_step", "trust": "distributed"},
    "local": {"mechanism": "per_step", "trust": "local"},
    "one-shot": SECURE | {"trust": "local"},
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
            secure = experiment_of(view, "secure", classes, task=task, **SECURE) if "one-shot" in mechanisms else None
            if secure is not None and not task:
                _sums(view, secure)
        with view.agent() as built:
            if built is None:
                return
            if secure is not None and not task:
                view.add_up("secure: another attempt after a restart", secure, "rows", 2, "keys", b"")
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


def _sums(view, experiment):
    """All three sums, with two honest sites that the test plays; then steps that a site has to refuse."""
    assert experiment.uses_moment
    classes = len(experiment.classes)
    pool = pack_pool(summed_pool(np.ones((classes, view.feature_size)), 1e-3, 1), np.ones(classes))
    context = np.zeros(experiment.context_shape, "<f4")
    view.add_up("secure: a vote begun before the rows", experiment, "vote", 1, "keys", b"")
    for name, computed in (
        ("rows", {}),
        ("vote", {"pool": pool}),
        ("scores", {"pool": pool, "global_context": context}),
    ):
        server, zeros = ServerSum(terms_of(experiment, name, 1)), None
        played = {site: SiteSum(server.terms, site) for site in ("south", "west")}
        for step in STEPS:
            asked, more = server.requests(), computed if step == "masked" else {}
            reply = view.add_up(f"secure: {name}, {step}", experiment, name, 1, step, asked["north"], **more)
            if not reply:
                break
            zeros = np.zeros(len(reply) // 8, np.int64)
            server.take("north", reply)
            for site, one in played.items():
                server.take(site, one.answer(step, asked[site], zeros if step == "masked" else None))
            if step != STEPS[-1]:
                server.close()
        view.add_up(f"secure: {name}, keys again", experiment, name, 1, "keys", b"other")
        view.add_up(f"secure: {name}, a second attempt", experiment, name, 2, "keys", b"")


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
    view.train("beyond the budget", other(name="dear", privacy={"noise_multiplier": 0.6}, rounds={"number": 200}), 1)
    view.train("rounds left out", other(name="hasty"), 2)
    view.train("a name", other(name="named"), 1)
    view.train("the name again, for something else", other(name="named", rounds={"number": 3}), 1)
    view.call("nonsense", "Train", b"\xff\xff")
    view.call("an unknown method", "Debug", b"")


def save_image(path, seed, level):
    pixels = (level + np.random.default_rng(seed).integers(0, 60, (24, 24, 3))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
