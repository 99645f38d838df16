"""Hypothesis strategies for everything that could be thrown at the agent's RPC."""

import json

from hypothesis import strategies as st
from killable import make_experiment, train_request

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import EvaluateRequest

KINDS = {"Train": agent_pb2.TrainRequest, "Evaluate": agent_pb2.EvaluateRequest}
TABLE = json.loads(make_experiment().to_json())
_request = train_request()
VALID = {
    "Train": wire.encode_request(_request).SerializeToString(deterministic=True),
    "Evaluate": wire.encode_request(EvaluateRequest(_request.experiment, 1, _request.global_context)).SerializeToString(
        deterministic=True
    ),
}

TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "\0", "a\0b", "../../etc/passwd", "%s%n", "{0}", "é" * 100, "\ufffe", "x" * 5000, "NaN", "1e999"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 1e308, 5e-324, -0.0]),
)


def _nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(TEXT, inner, max_size=5), st.integers(1, 300).map(_nested)
    ),
    max_leaves=4,
)


MANY_KEYS = [json.dumps({f"k{n}": n for n in range(count)}) for count in (100, 20_000)]


@st.composite
def experiments(draw):
    """The text of an experiment with a key more, less, renamed, or of another value; or no such text at all."""
    table = json.loads(json.dumps(TABLE))
    place = table
    for _ in range(draw(st.integers(0, 1))):
        parts = [key for key, value in place.items() if isinstance(value, dict)]
        place = place[draw(st.sampled_from(parts))] if parts else place
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(place))) if place else "name"
        match draw(st.integers(0, 4)):
            case 0:
                place.pop(key, None)
            case 1:
                place[draw(TEXT)] = draw(JSON)
            case _:
                place[key] = draw(JSON)
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    return json.dumps(table, sort_keys=draw(st.booleans()), separators=separators)


EXPERIMENTS = st.one_of(experiments(), TEXT, st.sampled_from(MANY_KEYS), st.just("[" * 100_000), JSON.map(repr))
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
ARRAY_BYTES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([bytes(2048), b"\xff" * 2048, b"\0\0\x80\x7f" * 512, bytes(2047), bytes(300_000)]),
)


@st.composite
def messages(draw, method):
    """A message of the method with any fields missing, strange, twice or unknown."""
    message = KINDS[method]()
    message.protocol_version = draw(st.sampled_from([PROTOCOL_VERSION] * 8 + [0, -1, 99, 2**31 - 1]))
    message.experiment = draw(st.one_of(EXPERIMENTS, st.just(make_experiment().to_json())))
    message.round = draw(st.one_of(st.integers(-1, 5), INT64))
    if draw(st.integers(0, 5)):
        shapes = st.one_of(st.sampled_from([(4, 128), (128, 4), (1, 1), (0, 0)]), st.tuples(INT32, INT32))
        rows, columns = draw(shapes)
        message.global_context.CopyFrom(agent_pb2.Array(rows=rows, columns=columns, data=draw(ARRAY_BYTES)))
    data = message.SerializeToString(deterministic=True)
    return data + draw(st.sampled_from([b""] * 6 + [data, b"\x18\x04", b"\xa0\x06\x01", b"\xff", b"\x0a\x7f"]))


@st.composite
def damaged(draw, method):
    """A valid message with a few bytes exchanged."""
    data = VALID[method]
    at = draw(st.integers(0, len(data) - 1))
    return data[:at] + draw(st.binary(max_size=6)) + data[at + draw(st.integers(0, 6)) :]


def variants(data, chance, count):
    """Copies of a message, each damaged in one to three places: bytes exchanged, cut out, doubled or put in."""
    for _ in range(count):
        made = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at, length = chance.randrange(len(made) + 1), chance.randint(1, 8)
            match chance.randrange(5):
                case 0:
                    made[at : at + length] = chance.randbytes(length)
                case 1:
                    del made[at : at + length]
                case 2:
                    made[at:at] = made[at : at + length]
                case 3:
                    made[at:at] = chance.choice(TOKENS)
                case _:
                    del made[at:]
        yield bytes(made)


TOKENS = (
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b"1e999",
    b"null",
    b"-1",
    b"\0",
    b"\xff",
    b"\x12\x80\x80\x80\x80\x08",
    b"NaN",
)


def anything(method):
    """All of the above, and plain bytes."""
    return st.one_of(st.binary(max_size=400), damaged(method), messages(method), messages(method))
