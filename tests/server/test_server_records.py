"""The server's side of Flower's records: what a site sends is believed only if every name, type and size is right."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import CONTEXT, EXPERIMENT, SHAPE, only_documented_errors

from dpfpl_client.node import records as site
from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import CODES
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_common.wire.refusal import Refusal
from dpfpl_server.federation import records

TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT, evaluate=False)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)
HEAD = {
    "protocol_version": PROTOCOL_VERSION,
    "site": "north",
    "round": 3,
    "scores": [],
    "signature": b"",
    "status": "ok",
    "code": "OK",
    "rule": "",
    "message": "",
    "advice": "",
}


def message(update=CONTEXT, metrics=None, drop=(), **changes):
    head = {key: value for key, value in (HEAD | changes).items() if key not in drop}
    content = RecordDict({"reply": ConfigRecord(head), "metrics": MetricRecord(metrics or {})})
    if update is not None:
        content["context"] = ArrayRecord({"update": update if isinstance(update, Array) else Array(update)})
    return content


def refused(code, content, request=TRAIN):
    assert code in CODES
    with pytest.raises(PayloadError) as caught:
        records.decode_reply(content, request)
    assert caught.value.code == code


def test_the_site_reads_what_the_server_writes():
    request = site.decode_train_request(records.encode_train_request(TRAIN))
    assert (request.experiment, request.round, request.evaluate) == (EXPERIMENT, 3, False)
    np.testing.assert_array_equal(request.global_context, CONTEXT)
    evaluation = site.decode_evaluate_request(records.encode_evaluate_request(EVALUATE))
    assert (evaluation.experiment, evaluation.round) == (EXPERIMENT, 10)


def test_the_server_reads_what_the_site_writes():
    sent = SiteReply("north", 3, CONTEXT, {"global_local": 0.5}, signature=bytes(range(64)))
    reply = records.decode_reply(site.encode_reply(sent, TRAIN), TRAIN)
    assert (reply.site, reply.round, reply.metrics, reply.scores) == ("north", 3, {"global_local": 0.5}, ())
    assert reply.signature == sent.signature
    np.testing.assert_array_equal(reply.update, CONTEXT)
    answer = SiteReply("south", 10, None, {})
    assert records.decode_reply(site.encode_reply(answer, EVALUATE), EVALUATE) == answer
    refusal = Refusal("CAP", "max_rounds", "The cap is 2 (rule max_rounds).", "Wait.")
    for round_number in (0, 3):
        back = records.decode_reply(site.encode_refusal(refusal, "north", round_number), TRAIN)
        assert back == records.SiteRefusal("north", round_number, refusal)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol_version": PROTOCOL_VERSION + 1}, "VERSION_MISMATCH"),
        ({"site": "elsewhere"}, "UNKNOWN_SITE"),
        ({"site": 7}, "WRONG_TYPE"),
        ({"round": 4}, "WRONG_ROUND"),
        ({"round": 0}, "WRONG_ROUND"),
        ({"round": 3.0}, "WRONG_TYPE"),
        ({"scores": 1.0}, "WRONG_TYPE"),
        ({"scores": [float("nan")]}, "BAD_SCORES"),
        ({"status": "maybe"}, "WRONG_TYPE"),
        ({"status": 1}, "WRONG_TYPE"),
        ({"code": "not a code"}, "BAD_REFUSAL"),
        ({"advice": "\x1b[2J"}, "BAD_REFUSAL"),
        ({"status": "refused"}, "UNKNOWN_FIELD"),  # a refusal with an update
        ({"weight": 100.0}, "UNKNOWN_FIELD"),
        ({"drop": ("advice",)}, "MISSING_FIELD"),
        ({"update": None}, "MISSING_FIELD"),
        ({"update": CONTEXT.astype("f8")}, "WRONG_DTYPE"),
        ({"update": CONTEXT[:1]}, "WRONG_SHAPE"),
        ({"update": Array("float32", SHAPE, "numpy.ndarray", Array(CONTEXT[:1]).data)}, "WRONG_SHAPE"),
        ({"update": CONTEXT * np.inf}, "NONFINITE_INPUT"),
        ({"update": np.full(SHAPE, 1e7, "<f4")}, "NORM_TOO_LARGE"),
        ({"metrics": {"site_size": 100.0}}, "UNKNOWN_METRIC"),
        ({"metrics": {"global_local": 1.5}}, "BAD_METRIC"),
        ({"metrics": {"global_local": 1}}, "WRONG_TYPE"),
        ({"metrics": {"global_local": [0.5]}}, "WRONG_TYPE"),
        ({"signature": "text"}, "WRONG_TYPE"),
        ({"signature": b"short"}, "BAD_SIGNATURE"),
        ({"drop": ("signature",)}, "MISSING_FIELD"),
    ],
)
def test_wrong_replies_are_refused(changes, code):
    refused(code, message(**changes))


def test_records_too_many_or_of_another_kind():
    extra = message()
    extra["personal"] = ArrayRecord({"left": Array(CONTEXT)})
    refused("UNKNOWN_FIELD", extra)
    refused("UNKNOWN_FIELD", message(round=10), EVALUATE)  # an update in the answer to an evaluation
    refused("MISSING_FIELD", RecordDict())
    other = message()
    other["metrics"] = ConfigRecord({"global_local": 0.5})
    refused("WRONG_TYPE", other)
    other = message()
    other["context"] = ConfigRecord({"update": b""})
    refused("WRONG_TYPE", other)
    late = RecordDict({"reply": ConfigRecord(HEAD | {"status": "refused", "code": "CAP", "round": 2})})
    refused("WRONG_ROUND", late)


SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(st.sampled_from(tuple(HEAD)) | st.text(max_size=6), SCALARS, max_size=4))
@settings(max_examples=600, deadline=1000)
def test_any_head_gives_a_documented_code(changes):
    content = message()
    content["reply"] = ConfigRecord(HEAD | changes)
    with only_documented_errors():
        records.decode_reply(content, TRAIN)


@given(
    st.dictionaries(
        st.sampled_from(("global_local", "personal_local")) | st.text(max_size=6),
        st.floats() | st.integers(-(2**70), 2**70) | st.lists(st.floats(), max_size=2),
        max_size=3,
    ),
    st.integers(0, 250),
    st.binary(max_size=6),
)
@settings(max_examples=600, deadline=1000)
def test_any_metrics_and_update_give_a_documented_code(metrics, place, patch):
    data = bytearray(Array(CONTEXT).data)
    data[place : place + len(patch)] = patch
    with only_documented_errors():
        records.decode_reply(message(Array("float32", SHAPE, "numpy.ndarray", bytes(data)), metrics), TRAIN)
