"""A Docker engine for the test: the machine's own, or a private one that the test starts and ends itself."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "Engine", "engine", "run"]

ROOT = Path(__file__).resolve().parents[2]
START_S = 60


def run(*command: str, check: bool = True, timeout: float = 600, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is text, and goes into the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)  # type: ignore[call-overload]
    if check and done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done  # type: ignore[no-any-return]


class Engine:
    """The commands of an engine: ``docker``, ``compose`` (2 or 1.29), and the environment that leads to it."""

    def __init__(self, host: str | None, compose: list[str] | None = None) -> None:
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
        if host:
            self.environment["DOCKER_HOST"] = host
        # Debian's own first: a docker on PATH may be a bare client without the engine's features.
        self.docker_program = (
            "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker") or "docker"
        )
        # docker-compose 1.29 builds with the docker that it finds.
        self.environment["PATH"] = f"{Path(self.docker_program).parent}:{os.environ['PATH']}"
        self.compose_program = compose or self._find_compose()

    def docker(self, *arguments: str, check: bool = True, timeout: float = 600) -> str:
        """Output of a docker command."""
        return run(self.docker_program, *arguments, check=check, timeout=timeout, env=self.environment).stdout.strip()

    def answers(self) -> bool:
        """Whether there is an engine."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            command = [self.docker_program, "info", "--format", "{{.ServerVersion}}"]
            done = run(*command, check=False, timeout=20, env=self.environment)
            return done.returncode == 0 and bool(done.stdout.strip())
        return False

    def _find_compose(self) -> list[str]:
        given = os.environ.get("COMPOSE")
        if given:
            return given.split()
        with contextlib.suppress(OSError):
            if run(self.docker_program, "compose", "version", check=False, env=self.environment).returncode == 0:
                return [self.docker_program, "compose"]
        found = shutil.which("docker-compose")
        if found is None:
            raise RuntimeError(
                "Neither 'docker compose' nor docker-compose is installed (apt-get install docker-compose)."
            )
        return [found]


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The engine that DOCKER_HOST names or that runs here; else, as root, a private one until the block is left."""
    mine = Engine(None)
    if mine.answers():
        yield mine
        return
    program = shutil.which("dockerd")
    if program is None or os.getuid() != 0:
        raise RuntimeError(
            "No Docker engine answers, and none can be started: needs root and dockerd (apt-get install docker.io)."
        )
    alone = not Path("/sys/class/net/docker0").exists()  # else another engine is or was here, and its traces stay
    before = _packet_filter()
    # Docker's sockets have short paths only, and its data must not lie on tmpfs.
    folder = Path(tempfile.mkdtemp(prefix="dpfpl-engine-", dir="/var/tmp"))
    host = f"unix://{folder}/docker.sock"
    with (folder / "log").open("wb") as log:
        options = {
            "host": host,
            "data-root": f"{folder}/data",
            "exec-root": f"{folder}/exec",
            "pidfile": f"{folder}/pid",
        }
        command = [program, *(f"--{name}={value}" for name, value in options.items())]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        private = Engine(host, mine.compose_program)
        deadline = time.monotonic() + START_S
        while not private.answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The private engine did not start:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield private
    finally:
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(60)
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        _clear(folder)
        if alone:
            _forget_network(before)


def _clear(folder: Path) -> None:
    """Remove the engine's folder; it holds a network namespace, which dockerd leaves mounted."""
    for mounted in (folder / "exec" / "netns").glob("*"):
        run("umount", str(mounted), check=False)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise RuntimeError(f"{folder} could not be removed whole.")


def _forget_network(before: str) -> None:
    """Take away dockerd's bridge and its rules in the packet filter; everybody else's stay."""
    run("ip", "link", "del", "docker0", check=False)
    program = shutil.which("iptables-restore")
    if program is None:
        return
    policies = [line for line in _table(before, "filter") if line.startswith(":FORWARD")] or [":FORWARD ACCEPT [0:0]"]
    lines, table = [], ""
    for line in _packet_filter().splitlines():
        table = line if line.startswith("*") else table
        if "docker" not in line.lower():
            lines.append(policies[0] if table == "*filter" and line.startswith(":FORWARD") else line)
    run(program, input="\n".join(lines) + "\n", check=False)


def _packet_filter() -> str:
    """The machine's packet filter, as text; nothing where it cannot be asked."""
    program = shutil.which("iptables-save")
    return run(program, check=False).stdout if program else ""


def _table(rules: str, name: str) -> list[str]:
    """The lines of one table."""
    _, _, rest = rules.partition(f"*{name}\n")
    return rest.partition("COMMIT")[0].splitlines()
