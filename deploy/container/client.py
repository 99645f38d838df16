"""First process of the client container: agent and SuperNode of one site, as two users who cannot read each other.

``python client.py`` runs both until the container is stopped; ``python client.py check`` (or another subcommand of
``dpfpl-client``) runs that one as the agent's user.

The container starts as root with no capability but SETUID and SETGID, and stays root for the first seconds: it forks
one supervisor for each of the two users and then becomes the agent's user itself. From then on no process of the
container is root or holds a capability, and no-new-privileges keeps it so.

The agent's user is whoever owns the site's folder on the host, so that files need no change of owner. The SuperNode's
is 10002, which must own nothing. ``/private`` (mode 0710, group 10003) stands before the site's folder and the images,
and only the agent is in that group: whatever the modes behind it, the SuperNode cannot pass.

The SuperNode gets copies of the node key, the authority's certificate and the agent's token, in a tmpfs of its own.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]

SITE = Path("/private/site")
NODE_FOLDER = Path("/run/node")
AGENT_ADDRESS = "127.0.0.1:7070"
NODE_ID, PRIVATE_GROUP = 10002, 10003
HERE = Path(__file__).resolve().parent
AGENT = [sys.executable, "-m", "dpfpl_client", "agent", "--site", f"{SITE}/site.toml", "--address", AGENT_ADDRESS]
STOP_S = 20.0
_REFUSED = 2
"""Exit code of our programs when something is wrong that a restart does not mend."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 38, 1


@dataclass(frozen=True)
class User:
    """Whom a process becomes."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def become(self) -> None:
        """Give up everything else, for good."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class Refused(Exception):  # noqa: N818  reads as a sentence
    """The container cannot start as it was set up; the text says what to do."""


def main(arguments: list[str]) -> int:
    """Run both halves, or one subcommand as the agent's user."""
    os.umask(0o077)
    try:
        agent = _agent_user()
        if arguments:
            _become_command(agent, arguments)
        _check_node_folder()
        handed = _in_child(agent, _prepare)
    except Refused as error:
        print(f"client container: {error}", file=sys.stderr)
        return _REFUSED
    node = User(NODE_ID, NODE_ID)
    _in_child(node, lambda: _store_for_node(handed))
    ours = [
        _supervise(agent, AGENT),
        _supervise(node, [sys.executable, str(HERE / "supernode.py"), str(NODE_FOLDER)]),
    ]
    agent.become()
    return _wait(ours)


def _agent_user() -> User:
    """The owner of the site's folder."""
    try:
        state = SITE.stat()
    except OSError as error:
        raise Refused(f"{SITE}: {error.strerror}. Mount the site's folder (the operator's kit) there.") from None
    if state.st_uid in (0, NODE_ID):
        raise Refused(
            f"the site's folder belongs to user {state.st_uid}, as whom the agent must not run. On the host: "
            "chown -R 10001:10001 FOLDER, or give it to your own user."
        )
    if os.getuid() != 0:
        raise Refused("started as an ordinary user. Use the targets agent and supernode, in two containers, for that.")
    return User(state.st_uid, state.st_gid, (PRIVATE_GROUP,))


def _check_node_folder() -> None:
    state = NODE_FOLDER.stat()
    if state.st_uid != NODE_ID or state.st_mode & 0o077:
        raise Refused(f"{NODE_FOLDER} must be a tmpfs with uid={NODE_ID},mode=0700; see deploy/site/compose.yml.")


def _prepare() -> str:
    """As the agent's user: read what the SuperNode needs, and make the token with which it calls the agent."""
    from dpfpl_client.agent.endpoint import Credential, read_token
    from dpfpl_client.site.settings import load_site
    from dpfpl_common.errors import DpfplError

    try:
        settings = load_site(SITE / "site.toml")
        settings.state_folder.mkdir(mode=0o700, exist_ok=True)
        Credential(settings.token_file)
        return json.dumps(
            {
                "site": settings.name,
                "server": settings.server.address,
                "agent": AGENT_ADDRESS,
                "token": read_token(settings.token_file),
                "ca.crt": settings.path(settings.server.ca_certificate).read_text(encoding="ascii"),
                "node.key": settings.path(settings.server.node_key).read_text(encoding="ascii"),
            }
        )
    except DpfplError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}. Is the kit complete?") from None


def _store_for_node(handed: str) -> str:
    """As the SuperNode's user: keep what was handed over."""
    (NODE_FOLDER / "handed.json").write_text(handed, encoding="utf-8")
    return ""


def _in_child(user: User, act: Callable[[], str]) -> str:
    """What ``act`` returns when it runs as that user, in a process of its own."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        status, text = 0, ""
        try:
            user.become()
            text = act()
        except Refused as error:
            status, text = 1, str(error)
        os.write(writer, text.encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        text = stream.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise Refused(text or "a preparing process died")
    return text


def _become_command(agent: User, arguments: list[str]) -> NoReturn:
    agent.become()
    os.chdir(SITE)
    os.execv(str(Path(sys.executable).with_name("dpfpl-client")), ["dpfpl-client", *arguments])  # noqa: S606


def _supervise(user: User, command: list[str]) -> tuple[int, socket.socket]:
    """Fork a process that keeps ``command`` running as ``user``; closing the returned socket ends it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    user.become()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os._exit(_keep_running(command, theirs))


def _keep_running(command: list[str], asked: socket.socket) -> int:
    """Start the command again whenever it dies, more and more slowly; a refusal (exit code 2) is final."""
    asked.setblocking(False)
    pause = 1.0
    while True:
        began = time.monotonic()
        pid = os.spawnv(os.P_NOWAIT, command[0], command)  # noqa: S606
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if _closed(asked):
                return _stop(pid)
            time.sleep(0.1)
        code = os.waitstatus_to_exitcode(ended[1])
        if code in (0, _REFUSED):
            return code
        pause = 1.0 if time.monotonic() - began > 60.0 else min(2 * pause, 30.0)
        print(f"{' '.join(command[1:4])} ended ({code}); again in {pause:.0f} s", file=sys.stderr, flush=True)
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if _closed(asked):
                return 0
            time.sleep(0.1)


def _stop(pid: int) -> int:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return 0
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return 1


def _closed(stream: socket.socket) -> bool:
    try:
        return stream.recv(1) == b""
    except BlockingIOError:
        return False


def _wait(ours: list[tuple[int, socket.socket]]) -> int:
    """As the first process: collect the dead until a supervisor ends or the container is stopped, then end both."""
    stopping: list[float] = []

    def stop(*_: object) -> None:
        if not stopping:
            stopping.append(time.monotonic() + STOP_S + 2.0)
            for _, stream in ours:
                stream.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    left, status = {pid for pid, _ in ours}, 0
    while left:
        pid, raw = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if stopping and time.monotonic() > stopping[0]:
                break
            time.sleep(0.1)
        elif pid in left:
            left.discard(pid)
            if not stopping:
                status = max(os.waitstatus_to_exitcode(raw), 1)
                stop()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
