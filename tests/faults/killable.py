"""Starts and kills real agents, talks to them and reads what they left on disk; for the tests in this folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from agent_driver import open_ledger
from storage_shim import Shim, missing_tools
from wire_samples import Caller

from dpfpl_client.agent.ledger.book import SCORES
from dpfpl_client.agent.store import DiskStore
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.ops.processes import child_environment
from dpfpl_common.wire.payloads import TrainRequest

DRIVER = Path(__file__).with_name("agent_driver.py")
WIDTH = 128
"""Of the embedded model's text tower."""


class Driver:
    """The parent process; see ``agent_driver.py``. What its agents do to their disk can be watched and disturbed.

    Args:
        folder: for the shim that does so; none is made where its tools are missing.
    """

    def __init__(self, folder):
        self._root = tempfile.TemporaryDirectory(prefix="dpfpl")  # short: a socket's path may have a hundred bytes
        self.root = Path(self._root.name)
        self.shim = None if missing_tools() else Shim(folder, self.root)
        environment = self.shim.environment if self.shim else {}
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=child_environment({"OMP_NUM_THREADS": "1", **environment}, offline=True),
        )
        assert self.line() == "ready"

    def folder(self):
        """A new one, which the shim sees."""
        return Path(tempfile.mkdtemp(dir=self.root, prefix="s"))

    def line(self):
        return self.process.stdout.readline().strip()

    def start(self, state, *, wait=True, **settings):
        """Fork an agent on the state folder; gives its process id once it answers."""
        self.process.stdin.write(json.dumps({"state": str(state), **settings}) + "\n")
        pid = json.loads(self.line())["pid"]
        if wait:
            line = self.line()
            assert line == "listens", line
        return pid

    def wait(self):
        """The exit status of the agent that ran; negative for a signal."""
        while not (line := self.line()).startswith('{"exit"'):
            assert self.process.poll() is None
        return json.loads(line)["exit"]

    def send(self, pid, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self, pid, number=signal.SIGKILL):
        self.send(pid, number)
        return self.wait()

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:  # a machine under load; nothing of it is needed any more
            self.process.kill()
            self.process.wait(60)
        self._root.cleanup()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Site:
    """A state folder, the agents that live on it one after the other, and a client of theirs."""

    def __init__(self, driver, folder):
        self.driver, self.state = driver, folder / "state"
        self.store = DiskStore(self.state)

    @contextlib.contextmanager
    def agent(self, **settings):
        """An agent that is killed at the end of the block, unless it is gone by then."""
        pid = self.driver.start(self.state, **settings)
        try:
            yield pid
        finally:
            self.driver.kill(pid)

    def train(self, request, deadline_s=60.0, wait_s=30.0):
        """Ask the agent that runs, waiting for it as long as a ClientApp does."""
        address, token = f"unix:{self.state}/agent.sock", self.state / "agent.token"
        with Caller(address, token, deadline_s, wait_s=wait_s) as agent:
            return agent.train(request)

    def train_until_death(self, request, pid):
        """Ask an agent that dies of it."""
        until = time.monotonic() + 60
        while is_alive(pid):
            assert time.monotonic() < until, "it lives on"
            with contextlib.suppress(RefusedError):  # AGENT_UNAVAILABLE, dead or only slow
                self.train(request, wait_s=0.1)

    @property
    def charges(self):
        """As the file tells it, through a connection of its own."""
        if not (self.state / "ledger.sqlite").exists():
            return []
        ledger = open_ledger(self.state, observe=True)
        try:
            return ledger.charges()
        finally:
            ledger.close()

    def prompts_are_whole(self):
        """Every record of every experiment reads back, and the committed ones are what the ledger says."""
        committed = {(c.experiment, c.round): c.release_digest for c in self.charges if c.release_digest}
        for name, number in [key for key in committed if key[1] == SCORES]:
            assert self.store.read_scores(name, committed.pop((name, number)))
        for name in self.store.experiments():
            for number in self.store.rounds(name):
                record = self.store.read(name, number)
                assert np.all(np.isfinite(record.state.context))
                assert committed.pop((name, number), record.digest()) == record.digest()
        assert committed == {}, "a committed release is gone"


def make_experiment(name="pilot", rounds=3, **privacy):
    return Experiment(
        name=name,
        classes=("cat", "dog", "bird"),
        sites=("north", "south"),
        model=ModelSettings(width=WIDTH),
        prompt=PromptSettings(num_context=4, rank=2),
        privacy=PrivacySettings(
            **{"mechanism": "per_step", "noise_multiplier": 20.0, "nominal_site_size": 12, **privacy}
        ),
        rounds=RoundSettings(number=rounds, local_steps=1),
    )


def train_request(number=1, of=None, value=0.0, evaluate=False):
    of = of or make_experiment()
    return TrainRequest(of, number, np.full(of.context_shape, value, "<f4"), evaluate)
