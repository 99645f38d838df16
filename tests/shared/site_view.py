"""All that an operator sees of one site, byte by byte, while the noised payloads are the same whatever the data.

Two sites whose data differ in one example must then look the same: what still differs left around the mechanism.
Nothing here waits: neither for the fixed time of an answer, which rows NI5 hold, nor for a disk.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import tempfile
import time
from dataclasses import dataclass

import grpc
import numpy as np

from dpfpl_client.agent import build, core
from dpfpl_client.agent.endpoint import HEADER, read_token
from dpfpl_client.agent.service import AgentServer
from dpfpl_client.learning import step as randomness
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DpfplError
from dpfpl_common.privacy.sampling import SystemSampler
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import EvaluateRequest, SumRequest, TrainRequest

SERVICE = "/dpfpl.v1.SiteAgent/"


class SamePayload:
    """A noise source whose release does not depend on the sum: the mechanism, seen as a black box with equal output."""

    is_private = True

    def __init__(self, seed):
        self._generator = np.random.default_rng(seed)

    def add(self, total, noise_stddev):
        return self._generator.normal(0.0, noise_stddev, np.shape(total))


def same_payloads(monkeypatch):
    """Replace the noised outputs of every mechanism; sampling, clipping and all bookkeeping stay real."""

    def for_round(_self, _site, number):
        factors = np.random.default_rng(number)
        return randomness.Randomness(SamePayload(number), SystemSampler(os.urandom), factors)

    monkeypatch.setattr(randomness.SystemRandomness, "for_round", for_round)


class _AtOnce:
    """In place of ``Pace``: an answer leaves when it is ready."""

    def __init__(self, _store):
        pass

    def start(self):
        pass

    def rehearse(self, *_):
        pass

    def slot(self, _least):
        return 0.0

    def due(self, *_):
        return 0.0, False


@functools.cache
def _loaded(model, compute, *, offline):
    """A frozen model, loaded once for all sites: what it is cannot depend on their data."""
    return _LOAD(model, compute, offline=offline)


_LOAD = build.load_computing


def no_waiting(monkeypatch):
    """Leave out what takes time and shows in no byte: the fixed time of answers, fsync, loading the same model."""
    monkeypatch.setattr(core, "Pace", _AtOnce)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(build, "load_computing", _loaded)


@dataclass(frozen=True)
class Seen:
    """One answer: what was asked, gRPC's status and text, the reply's bytes, and how long it took."""

    asked: str
    status: str
    text: str
    data: bytes
    seconds: float

    def shown(self):
        """The reply in words, for a failed comparison; the signature follows from the rest."""
        words = f"{self.status} {self.text}".strip()
        if self.data:
            reply = agent_pb2.Reply.FromString(self.data)
            if reply.HasField("reply"):
                reply.reply.signature = b""
                update = reply.reply.update.data
                reply.reply.update.data = hashlib.sha256(update).hexdigest()[:12].encode() if update else b""
            words += " " + " ".join(str(reply).split())
        return words


class View:
    """Starts a site's agent as often as asked, and notes everything that comes out of its socket."""

    def __init__(self, site_file):
        self.site_file = site_file
        self.seen = []
        self.width = self.fingerprint = None

    @contextlib.contextmanager
    def agent(self):
        """A running agent; a start that fails is seen by its code alone."""
        try:
            built = build.build_agent(load_site(self.site_file))
        except DpfplError as error:
            self._note("start", error.code)
            yield None
            return
        self._note("start", "started")
        self.width, self.fingerprint = built.backbone.width, built.backbone.fingerprint
        self.feature_size = getattr(built.backbone, "feature_size", 0)
        token = self.site_file.parent / "agent.token"
        with tempfile.TemporaryDirectory(prefix="a") as folder:  # a socket's path has to be short
            server = AgentServer(built.endpoint, f"unix:{folder}/a.sock", token)
            server.start()
            try:
                with grpc.insecure_channel(server.address) as channel:
                    self._channel, self._token = channel, read_token(token)
                    yield built
            finally:
                server.stop(1.0)
                built.lock.release()

    def train(self, asked, experiment, number, context=None, *, evaluate=True, **evidence):
        context = _zeros(experiment) if context is None else context
        request = TrainRequest(experiment, number, context, evaluate, **evidence)
        self.call(asked, "Train", wire.encode_request(request).SerializeToString(deterministic=True))

    def evaluate(self, asked, experiment, number, context=None, **evidence):
        context = _zeros(experiment) if context is None else context
        request = EvaluateRequest(experiment, number, context, **evidence)
        self.call(asked, "Evaluate", wire.encode_request(request).SerializeToString(deterministic=True))

    def add_up(self, asked, experiment, name, attempt, step, content, **more):
        """One step of a secure sum. What it returns is seen by its length: keys, seals and masks are random."""
        request = SumRequest(experiment, name, attempt, step, content, **more)
        self.call(asked, "AddUp", wire.encode_request(request).SerializeToString(deterministic=True))
        reply = agent_pb2.Reply.FromString(self.seen[-1].data)
        content = reply.sum.content
        if content:
            reply.sum.content, reply.sum.signature = bytes(len(content)), b""
            self.seen[-1] = dataclasses.replace(self.seen[-1], data=reply.SerializeToString(deterministic=True))
        return content

    def call(self, asked, method, data):
        """Any bytes to any method."""
        started = time.monotonic()
        call = self._channel.unary_unary(SERVICE + method)
        try:
            reply, status = call.with_call(data, timeout=60, metadata=((HEADER, f"Bearer {self._token}"),))
            status_name, text = status.code().name, str(status.details() or "")
            metadata = (*status.initial_metadata(), *status.trailing_metadata())
            text += "".join(sorted(f" {key}={value}" for key, value in metadata))
        except grpc.RpcError as error:
            reply, status_name, text = b"", error.code().name, str(error.details())
        self.seen.append(Seen(asked, status_name, text, reply, time.monotonic() - started))

    def _note(self, asked, text):
        self.seen.append(Seen(asked, "", text, b"", 0.0))


def differences(one, other):
    """What tells two views apart, in words; empty where nothing does. Times are compared on their own."""
    found = []
    if [seen.asked for seen in one] != [seen.asked for seen in other]:
        return [f"the order of what was seen: {[s.asked for s in one]} and {[s.asked for s in other]}"]
    for left, right in zip(one, other, strict=True):
        if dataclasses.replace(left, seconds=0.0) != dataclasses.replace(right, seconds=0.0):
            found.append(f"{left.asked}\n  - {left.shown()}\n  + {right.shown()}")
    return found


def _zeros(experiment):
    return np.zeros(experiment.context_shape, "<f4")
