"""Flower's side of a site: what is patched in Flower, the warm node's executor, and why a SuperNode ended for good."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from dpfpl_client.node import flower_patches, warm_node
from dpfpl_client.node.launch import end_for_good
from dpfpl_client.node.link import LinkState, link_file, write_link

# The warm node's executor: asks when it is told, ends with its SuperNode, and leaves no more bundles than it may


class Runtime:
    """The SuperNode's Runtime API with a file for its one task; every question is a byte in ``asked``."""

    def __init__(self, folder: Path) -> None:
        self.task, self.asked = folder / "task", folder / "asked"
        self.asked.touch()

    def AcquireTask(self, _request: object) -> AcquireTaskResponse:
        with self.asked.open("a") as file:
            file.write("?")
        if not self.task.exists():
            return AcquireTaskResponse()
        self.task.unlink()
        return AcquireTaskResponse(token="t", task=Task())

    def count(self) -> int:
        return self.asked.stat().st_size


class Executor:
    """The executor in a process of its own; ``tell`` is what the SuperNode writes to."""

    def __init__(self, runtime: Runtime, home: Path) -> None:
        self.heard, self.tell = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(self.heard)
            return
        os.close(self.tell)
        os.environ["FLWR_HOME"] = str(home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warm_node.RuntimeHttpClient, "from_server_address", lambda **_: runtime)
            patch.setattr(warm_node, "_run_one", lambda address, token: os._exit(0))
            patch.setattr(warm_node, "_LOOK_S", 30.0)
            warm_node._execute_tasks("nowhere", self.heard, b"secret")

    def wait(self, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Runtime, Executor]]:
    runtime = Runtime(tmp_path)
    executor = Executor(runtime, tmp_path)
    yield runtime, executor
    if executor.wait(0.0) is None:
        try:
            os.kill(executor.pid, signal.SIGKILL)
            os.waitpid(executor.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_executor_asks_when_it_is_told_and_hardly_ever_else(started: tuple[Runtime, Executor]) -> None:
    runtime, executor = started
    assert until(lambda: runtime.count() == 1), "once at the start"
    time.sleep(0.5)
    assert runtime.count() == 1
    runtime.task.touch()
    os.write(executor.tell, b"!")
    assert until(lambda: not runtime.task.exists())
    assert until(lambda: runtime.count() == 3), "and whether there is another one"


def test_the_executor_ends_with_its_supernode(started: tuple[Runtime, Executor]) -> None:
    runtime, executor = started
    assert until(lambda: runtime.count() == 1)
    os.close(executor.tell)
    assert executor.wait(5.0) == 0


def test_R7_once_a_clientapp_has_ended_only_the_newest_bundles_stay(
    started: tuple[Runtime, Executor], tmp_path: Path
) -> None:
    runtime, executor = started
    for number in range(6):
        (tmp_path / "apps" / f"bundle.{number}").mkdir(parents=True)
        os.utime(tmp_path / "apps" / f"bundle.{number}", (number, number))
    runtime.task.touch()
    os.write(executor.tell, b"!")
    assert until(lambda: len(list((tmp_path / "apps").iterdir())) == 3)
    assert sorted(path.name for path in (tmp_path / "apps").iterdir()) == ["bundle.3", "bundle.4", "bundle.5"]


# What a ClientApp leaves behind is ended with it, and nothing else is


EXECUTOR_WITH_STRAYS = """
import json, os, sys, time
from dpfpl_client.node.warm_node import adopt_orphans, clear_strays, reap

def app(seconds):
    if (pid := os.fork()) == 0:
        if os.fork() == 0:              # lets go of everything, as a daemon does
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.wait()
        if os.fork() == 0:              # an ordinary child of its own
            time.sleep(60)
        time.sleep(seconds)
        os._exit(0)
    return pid

def below():
    from dpfpl_common.ops.guard import descendants
    return len(descendants(os.getpid()))

adopt_orphans()
first, alive = app(0.3), set()
time.sleep(1.0)
before, ended = below(), reap()
second = app(30)
time.sleep(0.5)
alive = {second}
deadline = time.monotonic() + 10
while clear_strays(alive) and time.monotonic() < deadline:
    reap()
    time.sleep(0.05)
time.sleep(0.2)
reap()
goes_on = os.path.exists(f"/proc/{second}")
print(json.dumps({"ended": first in ended, "before": before, "after": below(), "second": goes_on}))
os.kill(second, 9)
reap()
clear_strays(set())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_a5_what_a_clientapp_leaves_behind_is_ended_and_running_ones_are_not(tmp_path: Path) -> None:
    script = tmp_path / "executor.py"
    script.write_text(EXECUTOR_WITH_STRAYS)
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)

    assert found["ended"]
    assert found["before"] == 2  # the daemon and the child of the one that ended
    assert found["second"]  # the running one goes on
    assert found["after"] == 2  # it and its own child; its daemon is gone, and so is all of the first's
    assert time.monotonic() - began < 30


# Flower's message loop


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Flower's message loop, to be patched for one test."""
    for name in ("_pull_and_store_message", "_push_messages"):
        monkeypatch.setattr(flower_patches.flower_loop, name, getattr(flower_patches.flower_loop, name))
    return flower_patches.flower_loop


@pytest.mark.parametrize(("run", "said"), [(5, True), (None, False)])
def test_only_a_whole_message_is_announced_and_no_executor_is_no_error(loop: Any, run: int | None, said: bool) -> None:
    loop._pull_and_store_message = lambda **arguments: run
    heard, told = os.pipe()
    flower_patches.announce_messages(told)
    assert loop._pull_and_store_message(state=1) == run
    assert bool(select.select([heard], [], [], 0)[0]) is said
    os.close(heard)
    assert loop._pull_and_store_message(state=1) == run
    os.close(told)


@pytest.mark.parametrize("lost", range(4))
def test_L6_a_reply_stays_whole_where_the_receipt_of_a_part_is_lost(loop: Any, lost: int) -> None:
    """Both ends are Flower's own. The transport repeats a call whose answer did not come; see ``wrap_stub`` there."""
    site, server = (InMemoryNodeState(InMemoryObjectStore()) for _ in range(2))
    arrays = ArrayRecord({name: Array(np.full(3, index)) for index, name in enumerate("abc")})
    question = Message(RecordDict(), metadata=Metadata(7, "q", 1, 2, "", "1", 1.0, 1e6, "train"))
    loop._insert_message(Message(RecordDict({"r": arrays}), reply_to=question), site, site.object_store)
    site.record_message_processing_start(message_id="q")
    site.record_message_processing_end(message_id="q")
    expected: list[str] = []

    def send(message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        session = server.start_session(7)
        expected.extend(server.preregister_object_tree(tree, session))
        return set(expected), session

    def push_object(run: int, session: str, part: str, content: bytes) -> None:
        stored = server.store_object(run, session, part, content)
        if part == expected[lost]:
            stored = server.store_object(run, session, part, content)
        if not stored:
            raise ObjectPushError(part, run, session)

    flower_patches.push_every_part()
    loop._push_messages(state=site, object_store=site.object_store, send=send, push_object=push_object)
    assert len(expected) >= 5
    assert [part for part in expected if not server.object_store.get(part)] == []


def test_a_reply_to_a_message_that_was_given_up_makes_no_later_reply_wait(loop: Any) -> None:
    """Flower's loop: the first message was given up, and its ClientApp answers when the second has been taken."""
    state, sent = InMemoryNodeState(InMemoryObjectStore()), []

    def answer(name: str) -> None:
        question = Message(RecordDict(), metadata=Metadata(7, name, 1, 2, "", "1", 1.0, 1e6, "train"))
        reply = Message(RecordDict(), reply_to=question)
        loop._insert_message(reply, state, state.object_store)
        state.record_message_processing_start(message_id=name)
        state.record_message_processing_end(message_id=name)

    def taken() -> int:
        answer("first")
        return 7

    turns = [lambda: None, taken, lambda: answer("second")]  # what each look for a message brings; then there is none

    def pull(**_: object) -> int | None:
        return turns.pop(0)() if turns else None

    def send(message: Message, *_: object) -> tuple[set[str], str]:
        sent.append(message.metadata.reply_to_message_id)
        return set(), ""

    loop._pull_and_store_message = pull
    flower_patches.push_late_replies()
    for _ in range(6):
        if loop._pull_and_store_message(state=state) is not None:
            loop._push_messages(state=state, object_store=state.object_store, send=send, push_object=lambda *_: None)
    assert sent == ["first", "second"]


def test_flowers_waits_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    impatient = flower_patches._Impatient(0.8)
    impatient.sleep(3)  # between two questions to the server
    for _ in range(2):
        impatient.sleep(0.5)  # for the ClientApp's reply
        for _ in range(5):
            impatient.sleep(3)
    soon = flower_patches._SOON_S
    assert slept == pytest.approx([0.8, *[soon, 0.16, 0.32, 0.64, 0.8, 0.8] * 2])


# DR12: the terminal of a site whose key was withdrawn says so; other ends of its SuperNode are tried again


@pytest.fixture
def site(tmp_path: Path) -> SimpleNamespace:
    settings = SimpleNamespace(name="north", node_folder=tmp_path)
    link_file(tmp_path).parent.mkdir()
    return settings


def node(text: str) -> SimpleNamespace:
    return SimpleNamespace(name="SuperNode of north", log_file="supernode.log", log_text=lambda: text)


def test_DR12_a_revoked_site_reads_that_it_was_revoked(site: SimpleNamespace) -> None:
    reason = "KEY_WITHDRAWN: the server does not accept this site's key any more"
    write_link(link_file(site.node_folder), LinkState(started_at=1.0, answered_at=2.0, failed_at=3.0, reason=reason))
    error = end_for_good(site, node("Traceback ..."), 1)
    assert error.code == "KEY_WITHDRAWN"
    assert "revoked" in error.message
    assert "ledger and its prompt stay" in error.message
    assert "ask the operator" in error.advice


def test_DR12_a_site_that_is_unknown_at_its_start_is_not_started_again(site: SimpleNamespace) -> None:
    assert end_for_good(site, node("Failed to activate SuperNode"), 1).code == "SITE_UNKNOWN"


@pytest.mark.parametrize("reason", ["", "UNREACHABLE: no connection to the server"])
def test_DR2_a_killed_supernode_is_started_again(site: SimpleNamespace, reason: str) -> None:
    write_link(link_file(site.node_folder), LinkState(started_at=1.0, reason=reason))
    assert end_for_good(site, node("INFO : ... Connection attempt failed"), 137) is None
