"""The site's side of Flower's records: exact names, types and sizes, or a documented code."""

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import CONTEXT, EXPERIMENT, SHAPE, only_documented_errors

from dpfpl_client.node import records
from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import CODES
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_common.wire.refusal import Refusal

TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT)


def message(arrays=None, drop=(), **changes):
    fields = {"protocol_version": PROTOCOL_VERSION, "experiment": EXPERIMENT.to_json(), "round": 3}
    fields |= {"evaluate": True, "collect": False}
    fields = {key: value for key, value in (fields | changes).items() if key not in drop}
    arrays = {"global_context": Array(CONTEXT)} if arrays is None else arrays
    return RecordDict({"context": ArrayRecord(arrays), "request": ConfigRecord(fields)})


def refused(code, content, decode=records.decode_train_request):
    assert code in CODES
    with pytest.raises(PayloadError) as caught:
        decode(content)
    assert caught.value.code == code


def array(dtype="float32", shape=SHAPE, stype="numpy.ndarray", data=None):
    return {"global_context": Array(dtype, shape, stype, Array(CONTEXT).data if data is None else data)}


def test_requests_are_read():
    request = records.decode_train_request(message(evaluate=False))
    assert (request.experiment, request.round, request.evaluate) == (EXPERIMENT, 3, False)
    np.testing.assert_array_equal(request.global_context, CONTEXT)
    evaluation = records.decode_evaluate_request(message(drop=("evaluate", "collect"), chosen=""))
    assert isinstance(evaluation, EvaluateRequest)
    np.testing.assert_array_equal(evaluation.global_context, CONTEXT)


def test_names_must_be_exact():
    refused("UNKNOWN_FIELD", message(debug=True))
    refused("UNKNOWN_FIELD", message(), records.decode_evaluate_request)
    refused("MISSING_FIELD", message(drop=("round",)))
    refused("MISSING_FIELD", message(arrays={}))
    refused("UNKNOWN_FIELD", message(arrays={"global_context": Array(CONTEXT), "personal_context": Array(CONTEXT)}))
    refused("MISSING_FIELD", RecordDict())
    refused("MISSING_FIELD", RecordDict({"request": MetricRecord({"round": 1})}))
    extra = message()
    extra["config"] = ConfigRecord({"lr": 0.1})
    refused("UNKNOWN_FIELD", extra)
    wrong = message()
    wrong["context"] = ConfigRecord({"global_context": b""})
    refused("WRONG_TYPE", wrong)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": "1"}, "WRONG_TYPE"),
        ({"round": 1.5}, "WRONG_TYPE"),
        ({"round": True}, "WRONG_TYPE"),
        ({"round": -1}, "BAD_ROUND"),
        ({"round": 2**63}, "BAD_ROUND"),
        ({"evaluate": 1}, "WRONG_TYPE"),
        ({"experiment": b"{}"}, "WRONG_TYPE"),
        ({"experiment": "gAN9Lg=="}, "BAD_EXPERIMENT"),
        ({"protocol_version": True}, "VERSION_MISMATCH"),
        ({"protocol_version": PROTOCOL_VERSION + 1}, "VERSION_MISMATCH"),
        ({"protocol_version": "1"}, "VERSION_MISMATCH"),
    ],
)
def test_types_must_be_exact(changes, code):
    refused(code, message(**changes))


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        (array(dtype="float64"), "WRONG_DTYPE"),
        (array(stype="pickle"), "WRONG_DTYPE"),
        (array(shape=(8, 4)), "WRONG_SHAPE"),
        (array(shape=(10**9, 10**9)), "WRONG_SHAPE"),
        (array(data=b""), "BAD_ARRAY_HEADER"),
        (array(data=Array(CONTEXT).data + b"\0"), "WRONG_SIZE"),
        (array(data=Array(CONTEXT.astype("<f8")).data), "WRONG_DTYPE"),
        (array(data=Array(np.asfortranarray(CONTEXT)).data), "WRONG_DTYPE"),
        (array(data=Array(CONTEXT[0]).data), "BAD_ARRAY_HEADER"),
        (array(data=Array(CONTEXT * np.nan).data), "NONFINITE_INPUT"),
    ],
)
def test_arrays_must_be_exact(arrays, code):
    refused(code, message(arrays=arrays))


def test_huge_header_is_refused_at_once_without_allocation():
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 1000000), }".ljust(117) + b"\n"
    content = message(arrays=array(data=b"\x93NUMPY\x01\x00\x76\x00" + head + bytes(80)))
    records.decode_train_request(message())  # warm
    tracemalloc.start()
    started = time.perf_counter()
    refused("WRONG_SHAPE", content)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak < 200_000


def test_reply_has_exactly_the_agreed_records():
    reply = SiteReply("north", 3, CONTEXT, {"personal_local": 0.5}, signature=b"s" * 64)
    content = records.encode_reply(reply, TRAIN)
    assert set(content) == {"context", "metrics", "reply"}
    assert dict(content["metrics"]) == {"personal_local": 0.5}
    np.testing.assert_array_equal(content["context"]["update"].numpy(), CONTEXT)
    assert dict(content["reply"]) == {
        "protocol_version": PROTOCOL_VERSION,
        "site": "north",
        "round": 3,
        "scores": [],
        "signature": b"s" * 64,
        "status": "ok",
        "code": "OK",
        "rule": "",
        "message": "",
        "advice": "",
    }
    evaluation = EvaluateRequest(EXPERIMENT, 10, CONTEXT)
    assert set(records.encode_reply(SiteReply("north", 10, None, {}), evaluation)) == {"metrics", "reply"}


def test_reply_that_does_not_answer_is_not_sent():
    reply = SiteReply("north", 3, CONTEXT, {})
    for changes in ({"round": 4}, {"site": "x"}, {"update": None}, {"update": CONTEXT.T}):
        with pytest.raises(PayloadError):
            records.encode_reply(dataclasses.replace(reply, **changes), TRAIN)


def test_refusal_is_one_record():
    content = records.encode_refusal(
        Refusal("CAP", "max_rounds", "The cap is 2 (rule max_rounds).", "Wait."), "north", 3
    )
    assert set(content) == {"reply"}
    assert (content["reply"]["status"], content["reply"]["code"]) == ("refused", "CAP")


SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.binary(max_size=20)
)
KEYS = st.one_of(st.sampled_from(("protocol_version", "experiment", "round", "evaluate")), st.text(max_size=8))


@given(st.dictionaries(KEYS, SCALARS, max_size=5), st.booleans())
@settings(max_examples=600, deadline=1000)
def test_any_config_gives_a_documented_code(changes, whole):
    content = message(**changes) if whole else message()
    if not whole:
        content["request"] = ConfigRecord(changes)
    with only_documented_errors():
        records.decode_train_request(content)


@given(
    st.sampled_from(("float32", "float64", "object", "")),
    st.lists(st.integers(-(2**70), 2**70), max_size=4).map(tuple) | st.just(SHAPE),
    st.integers(0, 250),
    st.binary(max_size=6),
)
@settings(max_examples=600, deadline=1000)
def test_any_array_gives_a_documented_code(dtype, shape, place, patch):
    data = bytearray(Array(CONTEXT).data)
    data[place : place + len(patch)] = patch
    with only_documented_errors():
        records.decode_train_request(message(arrays=array(dtype, shape, data=bytes(data))))
