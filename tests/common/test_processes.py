"""Processes live and die together: nothing started by a group outlives it, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Mark, alive, marked

from dpfpl_common.errors import DeploymentError
from dpfpl_common.ops.processes import (
    ManagedProcess,
    ProcessGroup,
    child_environment,
    free_port,
    free_ports,
    installed_command,
    wait_until,
)

pytestmark = pytest.mark.processes

# A program that is as nasty as Flower can be: a helper in a session of its own that ignores SIGTERM, then itself.
NASTY = """
import signal, subprocess, sys, time
helper = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('helper up', flush=True); time.sleep(60)"
)
subprocess.Popen([sys.executable, "-c", helper], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
LAUNCHER = """
import sys, time
from pathlib import Path
from dpfpl_common.ops.processes import ProcessGroup, child_environment, wait_until
with ProcessGroup() as group:
    nasty = group.start("nasty", [sys.executable, "-c", sys.argv[2]], log_file=Path(sys.argv[1]), grace_s=1.0)
    wait_until(lambda: "helper up" in nasty.log_text(), timeout_s=20, what="the helper", processes=[nasty])
    print("ready", flush=True)
    time.sleep(60)
"""


def gone(mark: Mark, timeout_s: float = 6.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(mark)


@pytest.fixture
def mark() -> Iterator[Mark]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    mark = marked()
    yield mark
    for pid in alive(mark):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path, mark: Mark) -> Callable[..., ManagedProcess]:
    def start(program: str, **options: object) -> ManagedProcess:
        return ManagedProcess(
            "subject",
            [sys.executable, "-c", program],
            log_file=tmp_path / "logs" / "subject.log",
            environment=child_environment(mark),
            **options,
        )

    return start


def test_exit_status_and_output_come_through(start: Callable[..., ManagedProcess]) -> None:
    process = start("import sys; print('hello'); print('oh', file=sys.stderr); sys.exit(7)")
    assert process.wait(10) == 7
    assert process.log_text().split() == ["hello", "oh"]


def test_the_log_is_appended_but_only_this_start_is_read(start: Callable[..., ManagedProcess]) -> None:
    start("print('first')").wait(10)
    second = start("print('second')")
    second.wait(10)
    assert second.log_text().split() == ["second"]
    assert second.log_file.read_text().split() == ["first", "second"]


def test_death_by_signal_is_reported_as_128_plus_n(start: Callable[..., ManagedProcess]) -> None:
    assert start("import os; os.kill(os.getpid(), 9)").wait(10) == 137


def test_a_missing_program_is_an_exit_status_with_a_reason(tmp_path: Path) -> None:
    process = ManagedProcess("x", ["/nonexistent/program"], log_file=tmp_path / "x.log")
    assert process.wait(10) == 127
    assert "/nonexistent/program" in process.log_text()


def test_stopping_takes_helpers_in_other_sessions_along(start: Callable[..., ManagedProcess], mark: Mark) -> None:
    process = start(NASTY, grace_s=1.0)
    wait_until(lambda: "helper up" in process.log_text(), timeout_s=20, what="helper", processes=[process])
    assert len(alive(mark)) == 3  # guard, program, helper
    process.stop()
    assert alive(mark) == {}


def test_helpers_die_when_the_program_ends_by_itself(start: Callable[..., ManagedProcess], mark: Mark) -> None:
    process = start(NASTY.replace("time.sleep(60)\n", "time.sleep(0.3)\n"))
    assert process.wait(15) == 0
    assert alive(mark) == {}


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(
    start: Callable[..., ManagedProcess], mark: Mark
) -> None:
    process = start(STUBBORN, grace_s=0.3)
    wait_until(lambda: "up" in process.log_text(), timeout_s=20, what="program", processes=[process])
    before = time.monotonic()
    assert process.stop() == 137
    assert 0.25 < time.monotonic() - before < 4.0
    assert alive(mark) == {}


def test_a_killed_guard_leaves_no_program(start: Callable[..., ManagedProcess], mark: Mark) -> None:
    process = start(STUBBORN)
    wait_until(lambda: "up" in process.log_text(), timeout_s=20, what="program", processes=[process])
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)
    assert gone(mark)


def test_a_second_signal_while_stopping_ends_everything_at_once(tmp_path: Path, mark: Mark) -> None:
    slow = LAUNCHER.replace("grace_s=1.0", "grace_s=30.0").replace("helper up", "up")
    launcher = subprocess.Popen(
        [sys.executable, "-c", slow, str(tmp_path / "stubborn.log"), STUBBORN],
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    before = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    launcher.wait(10)
    assert time.monotonic() - before < 3.5
    launcher.stdout.close()
    assert gone(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_outlives_a_launcher_that_is_ended_by_a_signal(tmp_path: Path, mark: Mark, number: int) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path / "nasty.log"), NASTY],
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    assert len(alive(mark)) == 4
    launcher.send_signal(number)
    launcher.wait(15)
    launcher.stdout.close()
    assert gone(mark)
    assert "helper up" in (tmp_path / "nasty.log").read_text()  # logs are kept


def test_a_group_stops_all_politely_also_on_an_error(tmp_path: Path, mark: Mark) -> None:
    program = (
        "import signal, sys, time\n"
        "def bye(*_): print('bye', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, bye); print('up', flush=True); time.sleep(60)"
    )
    environment = child_environment(mark)
    processes: list[ManagedProcess] = []

    def federation() -> None:
        with ProcessGroup() as group:
            for name in ("first", "second"):
                command = [sys.executable, "-c", program]
                processes.append(group.start(name, command, log_file=tmp_path / name, environment=environment))
            wait_until(lambda: all("up" in p.log_text() for p in processes), timeout_s=20, what="both")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        federation()
    assert alive(mark) == {}
    assert all("bye" in p.log_text() for p in processes)


def test_a_group_notices_a_process_that_ended(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        process = group.start("short", [sys.executable, "-c", "print('my last words')"], log_file=tmp_path / "log")
        process.wait(10)
        with pytest.raises(DeploymentError, match="my last words") as caught:
            group.check()
    assert caught.value.code == "PROCESS_ENDED"


def test_a_group_restores_the_signal_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ProcessGroup():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_waiting_ends_early_when_the_process_dies(start: Callable[..., ManagedProcess]) -> None:
    process = start("print('no such file')")
    before = time.monotonic()
    with pytest.raises(DeploymentError, match="no such file"):
        wait_until(lambda: False, timeout_s=30, what="nothing", processes=[process])
    assert time.monotonic() - before < 10


def test_waiting_says_what_for_and_shows_the_log(start: Callable[..., ManagedProcess]) -> None:
    process = start("import time; print('still thinking', flush=True); time.sleep(60)")
    wait_until(lambda: "still" in process.log_text(), timeout_s=20, what="output")
    with pytest.raises(DeploymentError, match="the moon") as caught:
        wait_until(lambda: False, timeout_s=0.2, what="the moon", processes=[process])
    assert "still thinking" in str(caught.value)
    assert caught.value.code == "TIMED_OUT"
    process.stop()


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_children_find_our_commands_and_use_no_proxy_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = child_environment({"FLWR_HOME": "/x"})
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1"
    assert environment["FLWR_HOME"] == "/x"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(DeploymentError, match="no-such-command"):
        installed_command("no-such-command")
