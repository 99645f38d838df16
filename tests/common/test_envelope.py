"""What a Flower message carries: exact names, types and sizes, or a documented code."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import only_documented_errors

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import (
    CODES,
    MAX_MESSAGE_BYTES,
    RECORD,
    Envelope,
    read_reply,
    read_request,
    reply_record,
    request_record,
)


def request(drop=(), **changes):
    fields = request_record(b"hello", 3.0) | changes
    return RecordDict({RECORD: ConfigRecord({key: value for key, value in fields.items() if key not in drop})})


def refused(code, content, read=read_request):
    assert code in CODES
    with pytest.raises(PayloadError) as caught:
        read(content)
    assert caught.value.code == code


def test_what_was_put_in_comes_out():
    assert read_request(request()) == Envelope(b"hello", 3.0)
    assert read_request(RecordDict({RECORD: ConfigRecord(request_record(b"", 60))})) == Envelope(b"", 60.0)
    assert read_reply(RecordDict({RECORD: ConfigRecord(reply_record(b"hello"))})) == b"hello"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), "MISSING_FIELD"),
        (RecordDict({"other": ConfigRecord(request_record(b"", 3.0))}), "MISSING_FIELD"),
        (RecordDict({RECORD: MetricRecord({"deadline": 1.0})}), "VERSION_MISMATCH"),
        (RecordDict({RECORD: ArrayRecord({"message": Array("x", (1,), "y", b"")})}), "VERSION_MISMATCH"),
        (RecordDict({**request(), "more": ConfigRecord({"lr": 0.1})}), "UNKNOWN_FIELD"),
        (request(debug=True), "UNKNOWN_FIELD"),
        (request(drop=("message",)), "MISSING_FIELD"),
        (request(drop=("deadline",)), "MISSING_FIELD"),
        (request(drop=("protocol_version",)), "VERSION_MISMATCH"),
        (request(protocol_version=PROTOCOL_VERSION + 1, debug=True), "VERSION_MISMATCH"),
        (request(protocol_version=True), "VERSION_MISMATCH"),
        (request(protocol_version=str(PROTOCOL_VERSION)), "VERSION_MISMATCH"),
        (request(message="hello"), "WRONG_TYPE"),
        (request(message=bytes(MAX_MESSAGE_BYTES + 1)), "MESSAGE_TOO_LARGE"),
        (request(deadline=3), "WRONG_TYPE"),
        (request(deadline=0.0), "IMPOSSIBLE_VALUE"),
        (request(deadline=float("nan")), "IMPOSSIBLE_VALUE"),
        (request(deadline=float("inf")), "IMPOSSIBLE_VALUE"),
        (request(deadline=1e7), "IMPOSSIBLE_VALUE"),
        (RecordDict({"request": ConfigRecord({"protocol_version": 3, "round": 1})}), "VERSION_MISMATCH"),
        (RecordDict({"reply": ConfigRecord({"protocol_version": 3}), "metrics": MetricRecord({})}), "VERSION_MISMATCH"),
    ],
)
def test_names_types_and_sizes_must_be_exact(content, code):
    refused(code, content)


def test_a_reply_holds_no_more():
    refused("UNKNOWN_FIELD", request(), read_reply)
    refused("MESSAGE_TOO_LARGE", request(drop=("deadline",), message=bytes(MAX_MESSAGE_BYTES + 1)), read_reply)
    assert read_reply(request(drop=("deadline",), message=bytes(MAX_MESSAGE_BYTES))) == bytes(MAX_MESSAGE_BYTES)


VALUES = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.binary(max_size=20)
)
KEYS = st.sampled_from(("protocol_version", "deadline", "message")) | st.text(max_size=8)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
@settings(max_examples=600, deadline=1000)
def test_any_record_gives_a_documented_code(changes, whole):
    content = request(**changes) if whole else RecordDict({RECORD: ConfigRecord(changes)})
    for read in (read_request, read_reply):
        with only_documented_errors():
            read(content)
