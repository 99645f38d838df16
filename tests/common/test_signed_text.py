"""The signed text tells any two replies apart, and is the same for the same reply."""

import dataclasses
import math

import numpy as np
import pytest

from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest, kind_of, signed_text

CONTEXT = np.random.default_rng(0).normal(size=(4, 8)).astype("<f4")
EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.5),
)
REPLY = SiteReply("north", 3, CONTEXT, {"personal_local": 0.5, "global_local": 0.25})
OTHER = dataclasses.replace(
    EXPERIMENT, privacy=PrivacySettings(mechanism="per_step", noise_multiplier=math.nextafter(1.5, 2))
)


def one_ulp_more():
    update = CONTEXT.copy()
    update[3, 7] = np.nextafter(update[3, 7], np.float32(np.inf))
    return update


CHANGES = {
    "other experiment": (OTHER, "train", REPLY),
    "other kind": (EXPERIMENT, "evaluate", REPLY),
    "other round": (EXPERIMENT, "train", dataclasses.replace(REPLY, round=4)),
    "other site": (EXPERIMENT, "train", dataclasses.replace(REPLY, site="south")),
    "update by one ulp": (EXPERIMENT, "train", dataclasses.replace(REPLY, update=one_ulp_more())),
    "no update": (EXPERIMENT, "train", dataclasses.replace(REPLY, update=None)),
    "fewer metrics": (EXPERIMENT, "train", dataclasses.replace(REPLY, metrics={"personal_local": 0.5})),
    "metric": (EXPERIMENT, "train", dataclasses.replace(REPLY, metrics={"personal_local": 0.5, "global_local": 0.26})),
    "metrics swapped": (
        EXPERIMENT,
        "train",
        dataclasses.replace(REPLY, metrics={"personal_local": 0.25, "global_local": 0.5}),
    ),
    "scores": (EXPERIMENT, "train", dataclasses.replace(REPLY, scores=(1.6,))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_changed_changes_the_text(what):
    assert signed_text(*CHANGES[what]) != signed_text(EXPERIMENT, "train", REPLY)


def test_the_same_reply_has_the_same_text_whatever_the_order_and_the_signature():
    again = SiteReply("north", 3, CONTEXT.copy(), {"global_local": 0.25, "personal_local": 0.5}, signature=b"s" * 64)
    assert signed_text(EXPERIMENT, "train", again) == signed_text(EXPERIMENT, "train", REPLY)


def test_the_kind_comes_from_the_request():
    assert kind_of(TrainRequest(EXPERIMENT, 1, CONTEXT)) == "train"
    assert kind_of(EvaluateRequest(EXPERIMENT, 1, CONTEXT)) == "evaluate"
