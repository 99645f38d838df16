"""The agent's protocol: payloads survive it, and whatever else arrives gives a documented code."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import CONTEXT, EXPERIMENT, SHAPE, only_documented_errors

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import DataError, PayloadError, RefusedError
from dpfpl_common.experiment import PrivacySettings
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import (
    CODES,
    MAX_EXPERIMENT_BYTES,
    MAX_MESSAGE_BYTES,
    RECORD,
    Envelope,
    read_reply,
    read_request,
    reply_record,
    request_record,
)
from dpfpl_common.wire.payloads import (
    MAX_TEXT,
    EvaluateRequest,
    Refusal,
    SiteReply,
    SumRequest,
    TrainRequest,
    plain,
    refusal_of,
)

TRAIN = TrainRequest(dataclasses.replace(EXPERIMENT, classes=("cat", "hündin")), 3, CONTEXT, evaluate=True)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, 2 * CONTEXT)
REPLY = SiteReply("north", 3, 3 * CONTEXT, {"personal_local": 0.75}, signature=bytes(range(64)))


def refused(code, call, *arguments):
    assert code in CODES
    with pytest.raises(PayloadError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return caught.value


def train_message(**changes):
    message = wire.encode_request(TRAIN)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def decode_bytes(data):
    return wire.decode_request(wire.parse(agent_pb2.TrainRequest, data))


ONCE = dataclasses.replace(
    EXPERIMENT, classes=("cat", "dog"), privacy=PrivacySettings(mechanism="one_shot", noise_multiplier=1.5)
)
SECURE = dataclasses.replace(
    ONCE,
    sites=("north", "south", "west"),
    privacy=PrivacySettings(mechanism="one_shot", trust="secure", noise_multiplier=1.5),
)
POOL = np.random.default_rng(1).normal(size=(3, 7)).astype("<f4")


@pytest.mark.parametrize(
    "request_of",
    [
        TRAIN,
        dataclasses.replace(TRAIN, evaluate=False),
        TrainRequest(ONCE, 1, CONTEXT, collect=True),
        TrainRequest(ONCE, 2, CONTEXT, pool=POOL),
        EVALUATE,
        EvaluateRequest(ONCE, 10, CONTEXT, POOL, "evidence"),
        SumRequest(SECURE, "rows", 3, "keys", b""),
        SumRequest(SECURE, "vote", 1, "masked", b"boxes", pool=POOL),
        SumRequest(SECURE, "scores", 1, "masked", b"boxes", CONTEXT, POOL),
    ],
    ids=lambda request: type(request).__name__,
)
def test_every_field_of_a_request_comes_back(request_of):
    message = wire.encode_request(request_of)
    back = wire.decode_request(wire.parse(type(message), message.SerializeToString(deterministic=True)))
    assert type(back) is type(request_of)
    for field in dataclasses.fields(request_of):
        sent, got = getattr(request_of, field.name), getattr(back, field.name)
        if isinstance(sent, np.ndarray):
            np.testing.assert_array_equal(got, sent)
            assert got.flags.writeable
        else:
            assert got == sent


def test_reply_round_trip():
    back = wire.decode_reply(wire.encode_reply(REPLY, TRAIN), TRAIN)
    assert (back.site, back.round, back.metrics, back.scores) == ("north", 3, {"personal_local": 0.75}, ())
    assert back.signature == REPLY.signature
    np.testing.assert_array_equal(back.update, REPLY.update)
    answer = SiteReply("south", 10, None, {})
    assert wire.decode_reply(wire.encode_reply(answer, EVALUATE), EVALUATE) == answer


def test_refusal_round_trip():
    refusal = Refusal("BUDGET_SPENT", "max_epsilon", "The cap is 2.", "Ask the site.")
    assert wire.decode_reply(wire.encode_refusal(refusal), TRAIN) == refusal


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, -1])
def test_other_version_is_refused_naming_the_expected_one(version):
    error = refused("VERSION_MISMATCH", wire.decode_request, train_message(protocol_version=version))
    assert f"expected {PROTOCOL_VERSION}" in error.message
    message = wire.encode_reply(REPLY, TRAIN)
    message.protocol_version = version
    refused("VERSION_MISMATCH", wire.decode_reply, message, TRAIN)


def test_version_is_looked_at_before_unknown_fields():
    data = train_message(protocol_version=PROTOCOL_VERSION + 1).SerializeToString() + b"\xa0\x06\x01"  # field 100 = 1
    refused("VERSION_MISMATCH", decode_bytes, data)


def test_unknown_fields_are_refused_nested_ones_too():
    extra = b"\xa0\x06\x01"
    refused("UNKNOWN_FIELD", decode_bytes, train_message().SerializeToString() + extra)
    nested = train_message()
    nested.global_context.MergeFromString(extra)
    refused("UNKNOWN_FIELD", decode_bytes, nested.SerializeToString())
    reply = wire.encode_reply(REPLY, TRAIN)
    reply.reply.update.MergeFromString(extra)
    refused("UNKNOWN_FIELD", wire.decode_reply, reply, TRAIN)
    refusal = wire.encode_refusal(Refusal("X"))
    refusal.refusal.MergeFromString(extra)
    refused("UNKNOWN_FIELD", wire.decode_reply, refusal, TRAIN)


def test_millions_of_unknown_fields_cost_next_to_nothing():
    data = train_message().SerializeToString() + b"\xa0\x06\x01" * 2_000_000
    tracemalloc.start()
    refused("UNKNOWN_FIELD", decode_bytes, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20  # to list them takes 150 MB


def test_an_array_that_the_receiver_would_refuse_is_not_sent():
    with pytest.raises(PayloadError) as caught:
        wire._array(np.ones((2000, 1000), "<f4"), "pool", wire.MAX_MATRIX_BYTES)
    assert caught.value.code == "MESSAGE_TOO_LARGE"


def test_field_said_twice_is_refused():
    refused("NOT_CANONICAL", decode_bytes, train_message().SerializeToString() + b"\x18\x04")  # round = 4, again


def test_other_malformed_requests():
    refused("MALFORMED_MESSAGE", decode_bytes, b"\xff\xff\xff")
    refused("MALFORMED_MESSAGE", decode_bytes, b"\x12\x02\xff\xfe")  # not UTF-8
    refused("MESSAGE_TOO_LARGE", decode_bytes, bytes(MAX_MESSAGE_BYTES + 1))
    refused("VERSION_MISMATCH", decode_bytes, b"")
    without = train_message()
    without.ClearField("global_context")
    refused("MISSING_FIELD", wire.decode_request, without)
    for number in (-1, 0, 11, 2**63 - 1):
        refused("BAD_ROUND", wire.decode_request, train_message(round=number))


@pytest.mark.parametrize(
    ("rows", "columns", "size", "code"),
    [
        (4, 8, 127, "WRONG_SIZE"),
        (4, 8, 0, "WRONG_SIZE"),
        (4, 8, 256, "WRONG_SIZE"),
        (2**31 - 1, 2**31 - 1, 128, "WRONG_SHAPE"),
        (-4, -8, 128, "WRONG_SHAPE"),
        (8, 4, 128, "WRONG_SHAPE"),
        (1, 1, 4, "WRONG_SHAPE"),
        (0, 0, 0, "WRONG_SHAPE"),
    ],
)
def test_declared_size_must_match(rows, columns, size, code):
    message = train_message()
    message.global_context.CopyFrom(agent_pb2.Array(rows=rows, columns=columns, data=bytes(size)))
    refused(code, wire.decode_request, message)


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "NONFINITE_INPUT"), (-np.inf, "NONFINITE_INPUT"), (1e38, "NORM_TOO_LARGE")]
)
def test_values_are_checked_both_ways(value, code):
    array = CONTEXT.copy()
    array[1, 2] = value
    message = train_message()
    message.global_context.data = array.tobytes()
    refused(code, wire.decode_request, message)
    refused(code, wire.encode_reply, dataclasses.replace(REPLY, update=array), TRAIN)


def _edited(**changes):
    return json.dumps({**json.loads(EXPERIMENT.to_json()), **changes}, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "BAD_EXPERIMENT"),
        ("{}", "MISSING_KEY"),
        ("[]", "WRONG_TYPE"),
        ("[" * 100_000, "BAD_EXPERIMENT"),
        ("9" * 5000, "BAD_EXPERIMENT"),
        ("{" + " " * MAX_EXPERIMENT_BYTES, "MESSAGE_TOO_LARGE"),
        (_edited(debug=True), "UNKNOWN_KEY"),
        (_edited(name="../../etc"), "IMPOSSIBLE_VALUE"),
        (_edited(classes=["cat", "\ud800"]), "IMPOSSIBLE_VALUE"),
        (_edited(privacy={"noise_multiplier": 10**400}), "WRONG_TYPE"),
        (_edited(privacy={"noise_multiplier": 1}), "NOT_CANONICAL"),
        (EXPERIMENT.to_json() + " ", "NOT_CANONICAL"),
        (EXPERIMENT.to_json()[:-1] + ',"name":"pilot"}', "NOT_CANONICAL"),
    ],
)
def test_bad_experiments(text, code):
    refused(code, wire.decode_request, train_message(experiment=text))


def test_a_whole_number_given_for_a_real_one_travels():
    experiment = dataclasses.replace(EXPERIMENT, privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1))
    message = wire.encode_request(dataclasses.replace(TRAIN, experiment=experiment))
    assert wire.decode_request(message).experiment == experiment


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"site": "elsewhere"}, "UNKNOWN_SITE"),
        ({"round": 4}, "WRONG_ROUND"),
        ({"update": None}, "MISSING_UPDATE"),
        ({"update": np.zeros((4, 9), "<f4")}, "WRONG_SHAPE"),
        ({"update": np.zeros(SHAPE)}, "WRONG_DTYPE"),
    ],
)
def test_replies_that_do_not_answer_are_not_sent(changes, code):
    refused(code, wire.encode_reply, dataclasses.replace(REPLY, **changes), TRAIN)


def test_replies_that_do_not_answer_are_not_believed():
    message = wire.encode_reply(REPLY, TRAIN)
    refused("WRONG_ROUND", wire.decode_reply, message, EVALUATE)
    message.reply.round = 10
    refused("UNEXPECTED_UPDATE", wire.decode_reply, message, EVALUATE)
    message.reply.ClearField("update")
    message.reply.metrics["site_size"] = 0.5
    refused("UNKNOWN_METRIC", wire.decode_reply, message, EVALUATE)
    del message.reply.metrics["site_size"]
    message.reply.metrics["global_local"] = float("nan")
    refused("BAD_METRIC", wire.decode_reply, message, EVALUATE)
    refused("MISSING_FIELD", wire.decode_reply, agent_pb2.Reply(protocol_version=PROTOCOL_VERSION), TRAIN)
    for code, rule in (("lower", ""), ("", ""), ("OK", "\x1b[31m"), ("OK", "x" * (MAX_TEXT + 1))):
        broken = agent_pb2.Reply(protocol_version=PROTOCOL_VERSION, refusal=agent_pb2.Refusal(code=code, rule=rule))
        refused("BAD_REFUSAL", wire.decode_reply, broken, TRAIN)


@given(st.binary(max_size=300))
@settings(max_examples=700, deadline=1000)
def test_any_bytes_give_a_documented_code(data):
    with pytest.raises(PayloadError) as caught:
        decode_bytes(data)
    assert caught.value.code in CODES


VALID = wire.encode_request(TRAIN).SerializeToString()


@given(st.integers(0, len(VALID) - 1), st.binary(max_size=4), st.integers(0, 4))
@settings(max_examples=1200, deadline=1000)
def test_any_damage_gives_a_documented_code_or_an_equally_valid_request(place, patch, removed):
    data = VALID[:place] + patch + VALID[place + removed :]
    with only_documented_errors():
        request = decode_bytes(data)
        assert wire.encode_request(request).SerializeToString() == data


@given(st.integers(0, 400), st.binary(max_size=3))
@settings(max_examples=500, deadline=1000)
def test_any_damaged_reply_gives_a_documented_code(place, patch):
    data = bytearray(wire.encode_reply(REPLY, TRAIN).SerializeToString())
    place %= len(data)
    data[place : place + len(patch)] = patch
    with only_documented_errors():
        wire.decode_reply(wire.parse(agent_pb2.Reply, bytes(data)), TRAIN)


def test_text_of_errors_about_the_site_stays_at_the_site():
    secret = DataError(code="UNREADABLE_IMAGE", message="patient_123.png", advice="Delete /data/patient_123.png")
    refusal = refusal_of(secret)
    assert refusal.code == "UNREADABLE_IMAGE"
    assert "patient" not in refusal.rule + refusal.message + refusal.advice
    told = refusal_of(RefusedError(code="CAP", rule="max_rounds", message="The cap is 2.", advice="Wait."))
    assert told == Refusal("CAP", "max_rounds", "The cap is 2 (rule max_rounds).", "Wait.")
    assert refusal_of(RefusedError(code="not a code", message="")).code == "REFUSED"


@given(st.text(max_size=1200))
@settings(max_examples=200)
def test_any_text_can_be_told_as_one_printable_line(text):
    told = plain(text)
    assert told == plain(told)
    assert len(told) <= MAX_TEXT
    assert told.isprintable()
    wire.decode_reply(wire.encode_refusal(Refusal("X", told, told, told)), TRAIN)


# What a Flower message carries: exact names, types and sizes, or a documented code.


def record(drop=(), **changes):
    fields = request_record(b"hello", 3.0) | changes
    return RecordDict({RECORD: ConfigRecord({key: value for key, value in fields.items() if key not in drop})})


def test_what_was_put_in_comes_out():
    assert read_request(record()) == Envelope(b"hello", 3.0)
    assert read_request(RecordDict({RECORD: ConfigRecord(request_record(b"", 60))})) == Envelope(b"", 60.0)
    assert read_reply(RecordDict({RECORD: ConfigRecord(reply_record(b"hello"))})) == b"hello"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), "MISSING_FIELD"),
        (RecordDict({"other": ConfigRecord(request_record(b"", 3.0))}), "MISSING_FIELD"),
        (RecordDict({RECORD: MetricRecord({"deadline": 1.0})}), "VERSION_MISMATCH"),
        (RecordDict({RECORD: ArrayRecord({"message": Array("x", (1,), "y", b"")})}), "VERSION_MISMATCH"),
        (RecordDict({**record(), "more": ConfigRecord({"lr": 0.1})}), "UNKNOWN_FIELD"),
        (record(debug=True), "UNKNOWN_FIELD"),
        (record(drop=("message",)), "MISSING_FIELD"),
        (record(drop=("deadline",)), "MISSING_FIELD"),
        (record(drop=("protocol_version",)), "VERSION_MISMATCH"),
        (record(protocol_version=PROTOCOL_VERSION + 1, debug=True), "VERSION_MISMATCH"),
        (record(protocol_version=True), "VERSION_MISMATCH"),
        (record(protocol_version=str(PROTOCOL_VERSION)), "VERSION_MISMATCH"),
        (record(message="hello"), "WRONG_TYPE"),
        (record(message=bytes(MAX_MESSAGE_BYTES + 1)), "MESSAGE_TOO_LARGE"),
        (record(deadline=3), "WRONG_TYPE"),
        (record(deadline=0.0), "IMPOSSIBLE_VALUE"),
        (record(deadline=float("nan")), "IMPOSSIBLE_VALUE"),
        (record(deadline=float("inf")), "IMPOSSIBLE_VALUE"),
        (record(deadline=1e7), "IMPOSSIBLE_VALUE"),
        (RecordDict({"request": ConfigRecord({"protocol_version": 3, "round": 1})}), "VERSION_MISMATCH"),
        (RecordDict({"reply": ConfigRecord({"protocol_version": 3}), "metrics": MetricRecord({})}), "VERSION_MISMATCH"),
    ],
)
def test_names_types_and_sizes_must_be_exact(content, code):
    refused(code, read_request, content)


def test_a_reply_holds_no_more():
    refused("UNKNOWN_FIELD", read_reply, record())
    refused("MESSAGE_TOO_LARGE", read_reply, record(drop=("deadline",), message=bytes(MAX_MESSAGE_BYTES + 1)))
    assert read_reply(record(drop=("deadline",), message=bytes(MAX_MESSAGE_BYTES))) == bytes(MAX_MESSAGE_BYTES)


VALUES = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.binary(max_size=20)
)
KEYS = st.sampled_from(("protocol_version", "deadline", "message")) | st.text(max_size=8)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
@settings(max_examples=600, deadline=1000)
def test_any_record_gives_a_documented_code(changes, whole):
    content = record(**changes) if whole else RecordDict({RECORD: ConfigRecord(changes)})
    for read in (read_request, read_reply):
        with only_documented_errors():
            read(content)
