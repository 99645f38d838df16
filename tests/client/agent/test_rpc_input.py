"""Bad input to the agent's RPC, row by row: a documented code, no charge, nothing computed, nothing opened."""

import concurrent.futures
import contextlib
import dataclasses
import inspect
import json
import sys
import threading
import time
import tracemalloc

import grpc
import numpy as np
import pytest
from wire_samples import Caller, reply_content

from dpfpl_client.agent.endpoint import read_token
from dpfpl_client.agent.service import AgentServer
from dpfpl_common.errors import DataError, PayloadError
from dpfpl_common.policy import Policy
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.codec import CODES, MAX_CONTEXT_BYTES, MAX_MESSAGE_BYTES
from dpfpl_common.wire.payloads import METRIC_NAMES, EvaluateRequest, SiteReply, TrainRequest
from dpfpl_server.federation.messages import content_bytes, request_content

pytestmark = pytest.mark.privacy


class Wire:
    """The site's agent behind its socket, and raw calls of it."""

    def __init__(self, site, folder):
        self.site, self.folder = site, folder
        self.server = AgentServer(site.agent, f"unix:{folder}/agent.sock", folder / "agent.token")
        self.server.start()
        self._connection = grpc.insecure_channel(self.server.address)
        self._header = (("authorization", f"Bearer {read_token(folder / 'agent.token')}"),)

    def call(self, message, method="Train", timeout=30):
        data = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        answer = self._connection.unary_unary(f"/dpfpl.v1.SiteAgent/{method}")
        return agent_pb2.Reply.FromString(answer(data, metadata=self._header, timeout=timeout))

    def code(self, message, method="Train"):
        """The refusal's code; both methods read the same fields, so what fits is sent to both."""
        return self.call(message, method).refusal.code

    def close(self):
        self._connection.close()
        self.server.stop(1.0)


@pytest.fixture
def line(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    folder.chmod(0o700)
    made = Wire(site, folder)
    yield made
    made.close()


@pytest.fixture
def untouched(site, computed):
    """Afterwards the ledger is empty, nothing was computed and nothing stored."""
    yield
    assert (site.charges, site.released, computed) == ([], 0, [])


def message(request, **changes):
    made = wire.encode_request(request)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def edited(request, path, value):
    """The request with one value of its experiment's JSON exchanged; canonical spelling."""
    table = json.loads(request.experiment.to_json())
    place = table
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    return message(request, experiment=json.dumps(table, sort_keys=True, separators=(",", ":")))


# What no honest server sends; each row makes a message of a good request.


def value(number):
    """One value of the context exchanged."""

    def make(request):
        context = request.global_context.copy()
        context[-1, -1] = number
        return array(context)(request)

    return make


def array(content, rows=4, columns=128):
    """Other bytes or another shape for the context."""

    def make(request):
        made = message(request)
        made.global_context.CopyFrom(agent_pb2.Array(rows=rows, columns=columns, data=content.tobytes()))
        return made

    return make


def field(name, number):
    return lambda request: message(request, **{name: number})


def setting(path, wrong):
    return lambda request: edited(request, path, wrong)


def round_as(other):
    """Other bytes under the round's number."""
    return lambda request: message(request).SerializeToString(deterministic=True).replace(b"\x18\x01", other)


ZEROS = np.zeros((4, 128), "<f4")
NO_MESSAGE = ("MALFORMED_MESSAGE", "UNKNOWN_FIELD", "NOT_CANONICAL")
OVER_CAP = ("EPSILON_OVER_CAP", "OPERATOR_EPSILON_OVER_CAP")
BAD = {
    "I2 not a number": (value(np.nan), "NONFINITE_INPUT"),
    "I2 infinite": (value(-np.inf), "NONFINITE_INPUT"),
    "I2 huge": (value(-3.4e38), "NORM_TOO_LARGE"),
    "I2 large": (value(1.1e6), "NORM_TOO_LARGE"),
    **{f"I3 {kind}": (array(ZEROS.astype(kind)), "WRONG_SIZE") for kind in ("<f8", "<c8", "<f2")},
    "I3 nothing": (array(ZEROS[:0]), "WRONG_SIZE"),
    "I3 one number": (array(ZEROS[0, :1]), "WRONG_SIZE"),
    "I3 another byte order": (array(np.full((4, 128), 1e-3, ">f4")), "NORM_TOO_LARGE"),
    **{
        f"I3 shape {rows} {columns}": (array(np.zeros(rows * columns, "<f4"), rows, columns), "WRONG_SHAPE")
        for rows, columns in ((128, 4), (1, 128), (4, 1), (1, 1), (5, 128), (0, 128), (-4, -128))
    },
    **{f"I3 rank {rank}": (setting("prompt.rank", rank), "IMPOSSIBLE_VALUE") for rank in (0, -1, 5, 2**31)},
    "I4 a header that claims gigabytes": (array(ZEROS[0, :20], 2**31 - 1, 2**31 - 1), "WRONG_SHAPE"),
    **{f"I6 round {n}": (field("round", n), "BAD_ROUND") for n in (-1, 0, 4, 104, 2**62, 2**63 - 1, -(2**63))},
    "I6 a round in words": (round_as(b"\x1a\x011"), NO_MESSAGE),
    "I6 a round as 1.0": (round_as(b"\x19" + bytes(8)), NO_MESSAGE),
    "I6 a round as 1f": (round_as(b"\x1d" + bytes(4)), NO_MESSAGE),
    "I7 another protocol": (field("protocol_version", 99), "VERSION_MISMATCH"),
    "I7 another model": (setting("model.fingerprint", "0" * 64), "OTHER_MODEL"),
    "I8 a large learning rate": (setting("optimizer.personal_learning_rate", 1e9), "IMPOSSIBLE_VALUE"),
    "I8 a negative learning rate": (setting("optimizer.global_learning_rate", -1.0), "IMPOSSIBLE_VALUE"),
    "I8 many steps": (setting("rounds.local_steps", 10**9), ("IMPOSSIBLE_VALUE", "TOO_MANY_ROUNDS")),
    "I8 no step": (setting("rounds.local_steps", 0), "IMPOSSIBLE_VALUE"),
    "I8 many rounds": (setting("rounds.number", 10**9), ("IMPOSSIBLE_VALUE", "TOO_MANY_ROUNDS")),
    "I8 no sampling": (setting("privacy.sample_rate", 0.0), "IMPOSSIBLE_VALUE"),
    "I8 more than all": (setting("privacy.sample_rate", 1.5), "IMPOSSIBLE_VALUE"),
    "I8 a site without examples": (setting("privacy.nominal_site_size", 0), "IMPOSSIBLE_VALUE"),
    "I8 fewer than none": (setting("privacy.nominal_site_size", -5), "IMPOSSIBLE_VALUE"),
    "I8 many vectors": (setting("prompt.num_context", 10**6), ("IMPOSSIBLE_VALUE", "WRONG_SHAPE")),
    "I8 no time": (setting("rounds.deadline", -1.0), "IMPOSSIBLE_VALUE"),
    "I9 little noise": (setting("privacy.noise_multiplier", 0.29), "TOO_LITTLE_NOISE"),
    "I9 no noise": (setting("privacy.noise_multiplier", 0.0), "TOO_LITTLE_NOISE"),
    "I9 negative noise": (setting("privacy.noise_multiplier", -4.0), "IMPOSSIBLE_VALUE"),
    "I9 a large epsilon": (setting("privacy.noise_multiplier", 1.0), OVER_CAP),
    "I9 delta 1": (setting("privacy.target_delta", 1.0), "IMPOSSIBLE_VALUE"),
    "I9 a large delta": (setting("privacy.target_delta", 0.1), "DELTA_TOO_LARGE"),
    "I9 hardly clipped": (setting("privacy.clipping_norm", 1e9), ("CLIPPING_NORM_TOO_LARGE", "IMPOSSIBLE_VALUE")),
    "I9 clipped to nothing": (setting("privacy.clipping_norm", 0.0), "IMPOSSIBLE_VALUE"),
    "I9 factors hardly clipped": (setting("privacy.factor_clipping_norm", 1e5), "CLIPPING_NORM_TOO_LARGE"),
    "I9 central": (setting("privacy.trust", "central"), "TRUST_NOT_ALLOWED"),
    "I9 nominal accounting": (setting("privacy.accounting", "paper"), ("ACCOUNTING_NOT_HONEST", "IMPOSSIBLE_VALUE")),
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory, site_in):
    """A site with a strict policy behind its socket, which refuses all that it is sent."""
    folder = tmp_path_factory.mktemp("w")
    folder.chmod(0o700)
    site = site_in(tmp_path_factory.mktemp("strict"))
    site.start(Policy(("*",), 2.0, 20.0, max_epsilon_operator=10.0))
    made = Wire(site, folder)
    yield made
    made.close()


@pytest.mark.parametrize("case", BAD)
def test_I2_to_I9_what_no_honest_server_sends_is_refused(strict, request_for, computed, case):
    make, codes = BAD[case]
    began = time.process_time()
    refusal = strict.call(make(request_for())).refusal
    assert refusal.code in ((codes,) if isinstance(codes, str) else codes)
    assert refusal.message
    assert time.process_time() - began < 5.0
    assert (strict.site.charges, strict.site.released, computed) == ([], 0, [])


def test_I2_subnormal_values_are_ordinary_ones(line, request_for):
    reply = line.call(array(np.full((4, 128), 1e-45, "<f4"))(request_for())).reply
    assert np.all(np.isfinite(np.frombuffer(reply.update.data, "<f4")))


def test_I4_a_header_that_claims_gigabytes_costs_nothing(request_for):
    data = BAD["I4 a header that claims gigabytes"][0](request_for()).SerializeToString()
    tracemalloc.start()
    began = time.thread_time()
    with pytest.raises(PayloadError, match="WRONG_SHAPE"):
        wire.decode_request(wire.parse(agent_pb2.TrainRequest, data))
    seconds, peak = time.thread_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak < 1_000_000


@pytest.mark.usefixtures("untouched")
def test_I5_a_message_above_the_cap_is_not_read(line):
    for size in (MAX_MESSAGE_BYTES + 1, 16 << 20):
        with pytest.raises(grpc.RpcError) as caught:
            line.call(bytes(size))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_I6_going_back_is_refused_and_skipping_is_not_going_back(line, request_for, site):
    assert line.call(message(request_for(3))).reply.round == 3
    assert line.code(message(request_for(1))) == "ROUND_ORDER"
    assert [charge.round for charge in site.charges] == [3]


def test_I7_a_refusal_names_what_is_expected(strict, request_for):
    assert "expected" in strict.call(message(request_for(), protocol_version=99)).refusal.message
    refusal = strict.call(edited(request_for(), "model.fingerprint", "0" * 64)).refusal
    assert strict.site.backbone.fingerprint in refusal.advice


def test_I7_an_unknown_experiment_is_refused(line, request_for, site):
    policy = Policy(("only-this-one",), 50.0, 100.0)
    line.server._agent = site.start(policy)
    assert line.code(message(request_for())) == "EXPERIMENT_NOT_APPROVED"
    assert site.charges == []


def test_I8_the_sample_rate_that_is_charged_is_the_one_that_is_drawn(site, request_for, monkeypatch):
    """Batch size is no field of the wire: what is sampled with is what the ledger says."""
    drawn = []
    from dpfpl_common.privacy.sampling import SystemSampler

    real = SystemSampler.draw
    monkeypatch.setattr(SystemSampler, "draw", lambda self, n, rate: drawn.append((n, rate)) or real(self, n, rate))
    site.agent.train(request_for())
    (charge,) = site.charges
    event = next(event for event in charge.events if event.adversary == "prompt_recipient")
    assert drawn == [(12, event.sample_rate)] * event.steps


FORBIDDEN = ("off", "debug", "return_raw", "seed", "no_noise", "raw", "skip_ledger")


@pytest.mark.usefixtures("untouched")
def test_I10_there_is_no_switch_that_turns_protection_off(line, request_for):
    assert line.code(message(request_for()).SerializeToString() + b"\x32\x04true") in ("UNKNOWN_FIELD", "NOT_CANONICAL")
    fields = {
        field.name for kind in agent_pb2.DESCRIPTOR.message_types_by_name.values() for field in kind.fields
    } | set(inspect.signature(TrainRequest).parameters)
    for name in FORBIDDEN:
        assert line.code(edited(request_for(), name, True)) == "UNKNOWN_KEY"
        assert line.code(edited(request_for(), f"privacy.{name}", True)) == "UNKNOWN_KEY"
        assert not any(name == field or name in field.split("_") for field in fields)


STRANGE = (
    "/etc/passwd",
    "../../../../etc/shadow",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "{0.__class__.__mro__}",
    "%s%s%n",
    "$(touch /tmp/owned)",
    "cposix\nsystem\n(S'true'\ntR.",
    "\\\\host\\share",
)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("path", ["name", "classes", "sites", "model.id", "model.fingerprint", "prompt.method"])
def test_I11_strings_are_never_opened_called_or_connected_to(line, request_for, site, path):
    line.server._agent = site.start(Policy(("only-this-one",), 50.0, 100.0))
    events = []
    _watch(events)
    for text in STRANGE:
        value = ["north", "south", text] if path == "sites" else [text, "dog"] if path == "classes" else text
        code = line.code(edited(request_for(), path, value))
        free = path in ("classes", "model.id")  # any printable text
        assert code in (*CODES, "EXPERIMENT_NOT_APPROVED" if free else "OTHER_MODEL")
    _watch(None)
    assert events == []


_sink = None


def _watch(events):
    global _sink
    _sink = events


def _audit(event, arguments):
    if _sink is None:
        return
    if event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "pickle.find_class", "exec"):
        _sink.append((event, str(arguments)[:200]))
    if event == "open" and any(str(text) in str(arguments[0]) for text in (*STRANGE, "passwd", "shadow")):
        _sink.append((event, str(arguments[0])))


sys.addaudithook(_audit)


def test_I12_of_two_requests_for_one_round_one_wins(line, request_for, experiment, site):
    start, codes = threading.Barrier(2), []

    def ask(value):
        request = request_for(context=np.full(experiment.context_shape, value, "<f4"))
        start.wait(10)
        reply = line.call(message(request))
        codes.append(reply.refusal.code)

    threads = [threading.Thread(target=ask, args=(value,)) for value in (0.0, 1e-3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(codes) == ["", "KEY_REUSED_OTHER_DIGEST"]
    assert len(site.charges) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file", "/data/patient_123.png"),
        DataError(code="UNREADABLE_IMAGE", message="patient_123.png"),
    ],
)
def test_I13_the_text_of_an_error_inside_stays_inside(line, request_for, monkeypatch, caplog, capfd, error):
    def broken(*_args, **_named):
        raise error

    monkeypatch.setattr("dpfpl_client.agent.core.PromptLearner.train_round", broken)
    reply = line.call(message(request_for()))
    assert "patient" not in str(reply)
    assert type(error).__name__ not in str(reply)
    assert reply.refusal.code in ("INTERNAL", "UNREADABLE_IMAGE")
    if reply.refusal.code == "INTERNAL":
        incident = reply.refusal.message.split()[-1].rstrip(".")
        assert incident in caplog.text  # under which the site finds it
    assert line.call(message(request_for())).refusal.code == reply.refusal.code  # and the agent still answers


def test_I5_calls_without_end_wait_their_turn_and_others_are_served(line, request_for):
    """Twenty callers that never finish their message, then an honest one."""
    stop = threading.Event()

    def never():
        stop.wait(90)
        yield from ()

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(grpc.insecure_channel(line.server.address))
            connection.stream_unary("/dpfpl.v1.SiteAgent/Train").future(never(), metadata=line._header)
        time.sleep(0.3)
        began = time.monotonic()
        with Caller(line.server.address, line.folder / "agent.token", 80.0) as agent:
            reply = agent.evaluate(EvaluateRequest(request_for().experiment, 0, request_for().global_context))
        assert reply.round == 0
        assert time.monotonic() - began < 60  # they would hold it up for 90; idle it is a tenth of a second
        stop.set()


def test_I5_a_thousand_calls_at_once_get_an_answer_each(line, request_for, site):
    data = message(request_for()).SerializeToString(deterministic=True)

    def ask(_):
        try:
            return line.call(data, timeout=60).refusal.code or "answered"
        except grpc.RpcError as error:
            return error.code().name

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(ask, range(1000)))
    # UNAVAILABLE: a stream beyond the server's limit, sent before the client knew of it; no call was made.
    assert set(outcomes) <= {"answered", "BUSY", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert "answered" in outcomes
    assert len(site.charges) == 1
    with Caller(line.server.address, line.folder / "agent.token", 80.0) as agent:
        assert agent.train(request_for()).round == 1


def largest(experiment, vectors):
    prompt = dataclasses.replace(experiment.prompt, num_context=vectors, init_text="")
    big = dataclasses.replace(experiment, prompt=prompt, model=dataclasses.replace(experiment.model, width=512))
    return TrainRequest(big, 1, np.zeros(big.context_shape, "<f4"))


def test_L12_the_largest_reply_and_request_fit_in_a_mebibyte(experiment):
    request = largest(experiment, MAX_CONTEXT_BYTES // (4 * 512))
    reply = SiteReply("north", 1, request.global_context, dict.fromkeys(METRIC_NAMES, 1 / 3), signature=b"s" * 64)
    assert content_bytes(reply_content(reply, request)) <= 1 << 20
    assert content_bytes(request_content(request)) <= 1 << 20 < MAX_MESSAGE_BYTES


def test_L12_a_larger_context_is_refused_before_it_is_sent(experiment):
    with pytest.raises(PayloadError) as caught:
        request_content(largest(experiment, MAX_CONTEXT_BYTES // (4 * 512) + 1))
    assert caught.value.code == "MESSAGE_TOO_LARGE"
