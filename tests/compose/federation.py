"""The federation of docker-compose.yml under test: what its containers say and what is done to them."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import ROOT, Engine, run

__all__ = ["EXPERIMENT", "Federation", "wait_for"]

HERE = Path(__file__).resolve().parent
EXPERIMENT = (ROOT / "deploy" / "simulation" / "experiment.toml").read_text(encoding="utf-8")
AGENT, NODE = "10001:10003", "10002:10002"


def wait_for(what: str, holds: Callable[[], Any], seconds: float, pause: float = 0.5) -> Any:
    """What ``holds`` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(pause)
    return value


class Federation:
    """A compose project.

    Args:
        engine: where it runs.
        project: its name, unlike any other on the engine.
        files: compose files.
        folder: where relative paths of the files start.
    """

    def __init__(self, engine: Engine, project: str, *files: Path, folder: Path = ROOT, **environment: str) -> None:
        self.engine, self.project, self.folder = engine, project, folder
        self._tag = f"{int(time.time()) % 100_000:05}"  # so that a federation can be asked the same twice
        self._files = [part for file in files for part in ("-f", str(file))]
        self._environment = {**engine.environment, **environment}

    def compose(self, *arguments: str, check: bool = True, timeout: float = 900) -> Any:
        """Run a compose command."""
        command = [*self.engine.compose_program, "-p", self.project, *self._files, *arguments]
        return run(*command, check=check, timeout=timeout, env=self._environment, cwd=self.folder)

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        found = self.engine.docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
            "--filter", "label=com.docker.compose.oneoff=False",
        ).split()  # fmt: skip
        assert len(found) == 1, f"{service} has {len(found)} containers"
        return found[0]

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says about a service's container."""
        return dict(json.loads(self.engine.docker("inspect", self.container(service)))[0])

    def running(self, service: str) -> bool:
        """Whether the container runs and, where it has a health check, is healthy."""
        state = self.state(service)["State"]
        return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"

    def execute(
        self, service: str, *command: str, user: str | None = None, check: bool = True, timeout: float = 600
    ) -> str:
        """Output of a command in a service's container."""
        return self.engine.docker(
            "exec", *(("-u", user) if user else ()), self.container(service), *command, check=check, timeout=timeout
        )

    def python(self, service: str, code: str, user: str | None = None, check: bool = True) -> str:
        """Output of Python code in a service's container."""
        return self.execute(service, "python3", "-c", code, user=user, check=check)

    def processes(self, service: str) -> list[dict[str, Any]]:
        """Every process of the container but those that were brought in from outside (health checks, this question)."""
        return list(json.loads(self.python(service, (HERE / "processes.py").read_text(encoding="utf-8"))))

    def kill(self, service: str, program: str, *, youngest: bool = False) -> int:
        """SIGKILL to the container's oldest (or youngest) process that runs ``program``, sent as its own user."""
        found = [
            p for p in reversed(self.processes(service)) if program in p["command"] and "guard.py" not in p["command"]
        ]
        assert found, f"{service} runs no {program}: {[p['command'][:80] for p in self.processes(service)]}"
        pid = int(found[-1 if youngest else 0]["pid"])
        self.execute(service, "sh", "-c", f"kill -9 {pid}", user=str(found[0]["uid"]))
        return pid

    # The operator.

    def write_experiment(self, name: str, **changes: Any) -> str:
        """Put an experiment's file into the server's container and return its path there."""
        text = EXPERIMENT.replace('"simulation"', json.dumps(name))
        for key, value in changes.items():
            text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", text)
            assert found == 1, f"{key} is there {found} times"
        path = f"/tmp/{name}.toml"
        self.execute("server", "sh", "-c", f"cat > {path} <<'END'\n{text}\nEND")
        return path

    def begin(self, name: str, **changes: Any) -> None:
        """Start an experiment and return at once."""
        name = self._tagged(name)
        path = self.write_experiment(name, **changes)
        self._detached(f"dpfpl-server run {path} > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code")

    def resume(self, name: str) -> None:
        """Resume an experiment and return at once."""
        name = self._tagged(name)
        self._detached(f"dpfpl-server resume {name} > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code")

    def _detached(self, line: str) -> None:
        self.engine.docker("exec", "-d", self.container("server"), "sh", "-c", line)

    def round(self, name: str) -> int:
        """The round that the experiment's strategy said last it was training; 0 before the first."""
        code = (
            "import sqlite3, json, sys\n"
            f"db = sqlite3.connect('file:/var/lib/dpfpl/runs/{self._tagged(name)}/run.sqlite?mode=ro', uri=True)\n"
            "rounds = [json.loads(body).get('round') or 0 for (body,) in db.execute('select body from events')]\n"
            "print(max(rounds, default=0))"
        )
        return int(self.python("server", code, check=False) or 0)

    def wait_for_round(self, name: str, number: int, seconds: float = 240) -> None:
        """Wait until that round is on its way."""
        wait_for(f"round {number} of {name}", lambda: self.round(name) >= number, seconds, 0.2)

    def finish(self, name: str, seconds: float = 600) -> dict[str, Any]:
        """Wait for the end of an experiment and return its result."""
        code = wait_for(f"the end of {name}", lambda: self.tell(name, "code"), seconds, 1.0)
        log = self.tell(name, "log")
        assert code == "0", f"{name} ended with {code}:\n{log}"
        return self.result(name)

    def result(self, name: str) -> dict[str, Any]:
        """result.json of an experiment."""
        return dict(json.loads(self.execute("server", "cat", f"/var/lib/dpfpl/runs/{self._tagged(name)}/result.json")))

    def tell(self, name: str, what: str) -> str:
        """What ``dpfpl-server run`` has written so far (``log``), or its exit code once it has ended (``code``)."""
        return self.execute("server", "tail", "-n", "25", f"/tmp/{self._tagged(name)}.{what}", check=False)

    def _tagged(self, name: str) -> str:
        return f"{name}-{self._tag}"

    # The sites.

    def ledger(self, service: str, name: str) -> dict[str, Any]:
        """What the site's ledger says about an experiment: rounds, charges, released."""
        shown = self._ledger(service, "show")["experiments"]
        found = [entry for entry in shown if entry["experiment"] == self._tagged(name)]
        return dict(found[0]) if found else {"rounds": 0, "charges": 0, "released": 0}

    def ledger_problems(self, service: str) -> list[str]:
        """What ``ledger verify`` finds wrong."""
        return list(self._ledger(service, "verify", check=False)["problems"])

    def _ledger(self, service: str, command: str, check: bool = True) -> Any:
        program = "cd /private/site && dpfpl-client" if service.endswith("-agent") else "site"
        return json.loads(self.execute(service, "sh", "-c", f"{program} ledger {command} --json", check=check))

    def down(self) -> None:
        """Take everything down, with volumes."""
        self.compose("down", "--volumes", "--timeout", "20", check=False)
