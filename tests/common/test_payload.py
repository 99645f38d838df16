"""What crosses the wire is checked when built; digest and signed text tell any two apart."""

import dataclasses
import math

import numpy as np
import pytest
from wire_samples import CONTEXT, EXPERIMENT, SHAPE

from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import PrivacySettings
from dpfpl_common.wire import payloads as payload
from dpfpl_common.wire.payloads import (
    METRIC_NAMES,
    EvaluateRequest,
    SiteReply,
    SumReply,
    SumRequest,
    TrainRequest,
    check_context,
    request_digest,
    signed_text,
)

ONE_ULP = CONTEXT.copy()
ONE_ULP[3, 7] = np.nextafter(ONE_ULP[3, 7], np.float32(np.inf))
OTHER = dataclasses.replace(
    EXPERIMENT, privacy=PrivacySettings(mechanism="per_step", noise_multiplier=math.nextafter(1.5, 2))
)


def with_value(value):
    array = CONTEXT.copy()
    array[-1, -1] = value
    return array


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (CONTEXT.tolist(), "WRONG_DTYPE"),
        (None, "WRONG_DTYPE"),
        (CONTEXT.astype(np.float64), "WRONG_DTYPE"),
        (CONTEXT.astype(">f4"), "WRONG_DTYPE"),
        (CONTEXT.astype(np.float16), "WRONG_DTYPE"),
        (CONTEXT.astype(np.int32), "WRONG_DTYPE"),
        (CONTEXT.astype(object), "WRONG_DTYPE"),
        (np.asfortranarray(CONTEXT), "WRONG_DTYPE"),
        (np.repeat(CONTEXT, 2, axis=1)[:, ::2], "WRONG_DTYPE"),
        (CONTEXT[:-1], "WRONG_SHAPE"),
        (CONTEXT[None], "WRONG_SHAPE"),
        (CONTEXT.reshape(SHAPE[::-1]), "WRONG_SHAPE"),
        (CONTEXT.ravel(), "WRONG_SHAPE"),
        (with_value(np.nan), "NONFINITE_INPUT"),
        (with_value(np.inf), "NONFINITE_INPUT"),
        (with_value(-np.inf), "NONFINITE_INPUT"),
        (with_value(-1.0001e6), "NORM_TOO_LARGE"),
        (with_value(3.4e38), "NORM_TOO_LARGE"),
    ],
)
def test_a_context_that_is_none_is_refused_by_name(array, code):
    for check in (
        lambda: check_context(array, SHAPE, "global_context"),
        lambda: TrainRequest(EXPERIMENT, 1, array),
        lambda: EvaluateRequest(EXPERIMENT, 1, array),
    ):
        with pytest.raises(PayloadError, match="global_context") as caught:
            check()
        assert caught.value.code == code


def test_good_contexts_pass():
    for array in (CONTEXT, np.zeros(SHAPE, "<f4"), with_value(1e6), with_value(1e-45)):
        check_context(array, SHAPE, "x")


@pytest.mark.parametrize("number", [-1, 11, True, 1.0, "1", None, 10**400])
def test_a_round_out_of_bounds_is_refused(number):
    for build in (TrainRequest, EvaluateRequest):
        with pytest.raises(PayloadError) as caught:
            build(EXPERIMENT, number, CONTEXT)
        assert caught.value.code == "BAD_ROUND"


def test_round_bounds():
    with pytest.raises(PayloadError):
        TrainRequest(EXPERIMENT, 0, CONTEXT)
    for number in (1, 10):
        assert TrainRequest(EXPERIMENT, number, CONTEXT).round == number
        assert EvaluateRequest(EXPERIMENT, number, CONTEXT).round == number
    assert EvaluateRequest(EXPERIMENT, 0, CONTEXT).round == 0


def test_the_digest_changes_with_every_part(monkeypatch):
    base = TrainRequest(EXPERIMENT, 3, CONTEXT)
    digests = [
        request_digest(base),
        request_digest(dataclasses.replace(base, round=4)),
        request_digest(dataclasses.replace(base, evaluate=False)),
        request_digest(dataclasses.replace(base, experiment=OTHER)),
        request_digest(dataclasses.replace(base, global_context=ONE_ULP)),
    ]
    assert request_digest(TrainRequest(EXPERIMENT, 3, CONTEXT.copy())) == digests[0]
    monkeypatch.setattr(payload, "DIGEST_VERSION", b"another")
    digests.append(request_digest(base))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, 1, True, "1", None])
def test_a_metric_that_is_no_accuracy_is_refused(value):
    with pytest.raises(PayloadError, match="personal_local") as caught:
        SiteReply("north", 1, None, {"personal_local": value})
    assert caught.value.code == "BAD_METRIC"


def test_metrics_by_name_only():
    assert SiteReply("north", 1, CONTEXT, dict.fromkeys(METRIC_NAMES, 0.5)).metrics
    with pytest.raises(PayloadError) as caught:
        SiteReply("north", 1, None, {"patients": 0.5})
    assert caught.value.code == "UNKNOWN_METRIC"
    assert len(str(caught.value)) < 100 or "x" * 50 not in str(caught.value)


@pytest.mark.parametrize("score", [math.nan, math.inf, -1e12, 1, True])
def test_impossible_scores(score):
    with pytest.raises(PayloadError) as caught:
        SiteReply("north", 1, None, {}, (0.5, score))
    assert caught.value.code == "BAD_SCORES"


TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT)
REPLY = SiteReply("north", 3, CONTEXT, {"personal_local": 0.5, "global_local": 0.25})


@pytest.mark.parametrize(
    ("request_of", "changes"),
    [
        (TrainRequest(OTHER, 3, CONTEXT), {}),
        (EvaluateRequest(EXPERIMENT, 3, CONTEXT), {}),
        (TRAIN, {"round": 4}),
        (TRAIN, {"site": "south"}),
        (TRAIN, {"update": ONE_ULP}),
        (TRAIN, {"update": None}),
        (TRAIN, {"evidence": CONTEXT}),
        (TRAIN, {"metrics": {"personal_local": 0.5}}),
        (TRAIN, {"metrics": {"personal_local": 0.5, "global_local": 0.26}}),
        (TRAIN, {"metrics": {"personal_local": 0.25, "global_local": 0.5}}),
        (TRAIN, {"scores": (1.6,)}),
    ],
)
def test_whatever_is_changed_changes_the_signed_text(request_of, changes):
    assert signed_text(request_of, dataclasses.replace(REPLY, **changes)) != signed_text(TRAIN, REPLY)


def test_the_same_reply_has_the_same_text_whatever_the_order_and_the_signature():
    again = SiteReply("north", 3, CONTEXT.copy(), {"global_local": 0.25, "personal_local": 0.5}, signature=b"s" * 64)
    assert signed_text(TRAIN, again) == signed_text(TRAIN, REPLY)


@pytest.mark.parametrize(
    "changes", [{"sum": "vote"}, {"attempt": 2}, {"step": "shares"}, {"site": "south"}, {"content": b"x"}]
)
def test_whatever_is_changed_changes_the_signed_text_of_a_step_of_a_sum(changes):
    secure = PrivacySettings(mechanism="one_shot", trust="secure", noise_multiplier=1.5)
    asked = SumRequest(
        dataclasses.replace(EXPERIMENT, sites=("north", "south", "west"), privacy=secure), "rows", 1, "keys", b""
    )
    reply = SumReply("north", b"content")
    of_request = {name: value for name, value in changes.items() if hasattr(asked, name) and name != "content"}
    of_reply = {name: value for name, value in changes.items() if name not in of_request}
    changed = signed_text(dataclasses.replace(asked, **of_request), dataclasses.replace(reply, **of_reply))
    assert changed != signed_text(asked, reply)
