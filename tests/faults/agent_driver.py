"""A real agent process that is cheap to kill: a parent imports torch and the model once and forks a child per start.

Run as a program; reads one JSON object a line from stdin, forks an agent for it, prints ``listens`` when that answers
and ``{"exit": status}`` when it has ended. The agent is the product's: SiteAgent, Ledger, DiskStore and the gRPC
server, on random image features. Kill points are wrappers around what SiteAgent is given, so that the product has none:
no environment variable and no switch of ours can make a site's agent stop anywhere.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.anchor import Registry, StateLock
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.service import serve
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.policy import Policy
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon

CLASSES = ("cat", "dog", "bird")
CLOSED = Policy(experiments=(), max_epsilon_per_experiment=50.0, max_epsilon_lifetime=100.0)
"""Approves nothing: what an agent computes under it, it computed before it asked."""
MANY = {"max_rounds_per_hour": 10**6, "max_experiments_per_day": 10**6, "max_repeats": 10**6, "reply_slot": 0.001}
KIT = Policy(("*",), 10.0, 20.0, max_experiments_per_day=1000, reply_slot=0.001)
"""What a kit starts with, but for a day's experiments and the time of an answer."""
POLICY = Policy(("*",), 50.0, 100.0, metrics="exact", **MANY)
CRASH_POINTS = (
    "before_reserve",
    "after_reserve",
    "before_noise",
    "after_noise",
    "within_record",
    "record_renamed",
    "after_record",
    "after_commit",
    "before_reply",
)
DROPPED = "dropped.bin"
"""What was noised when a crash struck, written beside the state by this program for the test to compare with."""


class Hook:
    """Ends the process at one named point, as kill -9 would; or computes slowly, or fails there once."""

    def __init__(self, settings):
        self.crash_at = settings.get("crash_at", "")
        self.fail_at = settings.get("fail_at", "")
        self.slow = settings.get("slow_s", 0.0)

    def at(self, point):
        if point == self.crash_at:
            os._exit(137)
        if point == self.fail_at:
            self.fail_at = ""
            raise RuntimeError("CUDA error: out of memory in patient_123.png")
        if point == "before_noise" and self.slow:
            print("computing", flush=True)
            time.sleep(self.slow)


class HookedLedger(Ledger):
    hook: Hook

    def reserve(self, *args, **more):
        self.hook.at("before_reserve")
        result = super().reserve(*args, **more)
        self.hook.at("after_reserve")
        return result

    def commit(self, *args, **more):
        result = super().commit(*args, **more)
        self.hook.at("after_commit")
        return result


class HookedStore(DiskStore):
    hook: Hook

    def write(self, experiment, round_number, record):
        if self.hook.crash_at == "after_noise":
            (self._folder.parent / DROPPED).write_bytes(record.reply.update.tobytes())
        self.hook.at("after_noise")
        replace = Path.replace

        def hooked(path, target):
            self.hook.at("within_record")
            replace(path, target)
            self.hook.at("record_renamed")

        Path.replace = hooked
        try:
            super().write(experiment, round_number, record)
        finally:
            Path.replace = replace
        self.hook.at("after_record")


class HookedRandomness(SystemRandomness):
    def __init__(self, hook):
        self.hook = hook

    def for_round(self, site, round_number):
        self.hook.at("before_noise")
        return super().for_round(site, round_number)


class HookedAgent:
    def __init__(self, agent, hook):
        self.agent, self.hook = agent, hook

    def train(self, request):
        reply = self.agent.train(request)
        self.hook.at("before_reply")
        return reply

    def evaluate(self, request):
        return self.agent.evaluate(request)


def site_features(backbone):
    def images(count, seed):
        vectors = torch.randn((count, backbone.feature_size), generator=torch.Generator().manual_seed(seed))
        return LabelledFeatures(torch.nn.functional.normalize(vectors, dim=1), torch.arange(count) % len(CLASSES))

    return SiteFeatures(images(12, 0), images(6, 1), images(6, 2), CLASSES)


def open_ledger(state, kind=Ledger, **more):
    """The ledger of a state folder, with the registry beside that."""
    return kind(state / "ledger.sqlite", Registry(state.parent / "registry"), **more)


def build(state, backbone, features, settings):
    """The agent of a site on ``state``, with its hooks."""
    hook = Hook(settings)
    ledger, store = open_ledger(state, HookedLedger), HookedStore(state)
    ledger.hook = store.hook = hook
    policy = {"closed": CLOSED, "kit": KIT}.get(settings.get("policy"), POLICY)
    agent = SiteAgent("north", backbone, features, policy, ledger, store, HookedRandomness(hook))
    return HookedAgent(agent, hook)


def run_agent(backbone, features, settings):
    state = Path(settings["state"])
    lock = StateLock(state)
    serve(
        build(state, backbone, features, settings),
        f"unix:{state}/agent.sock",
        state / "agent.token",
        grace_s=settings.get("grace_s", 8.0),
        on_ready=lambda _: print("listens", flush=True),
    )
    lock.release()


def main():
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    features = site_features(backbone)
    epsilon([PrivacyEvent("", "per_step", 20.0, 0.1, 3)], 1e-5)  # imports what it needs, once for all forks
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                print(json.dumps({"pid": os.getpid()}), flush=True)
                run_agent(backbone, features, json.loads(line))
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"exit": status}), flush=True)


if __name__ == "__main__":
    main()
