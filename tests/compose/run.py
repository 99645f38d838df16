"""``make compose-test``: build the images, run the simulation, look, break, mend, take everything down.

    python tests/compose/run.py [--skip-build] [--only WORD ...] [--parts PART ...]

Uses the engine that answers, or starts a private one where it is root and dockerd is installed. Prints a line a check,
the output of ``up --build`` and, last, how many passed, and keeps the same in runs/compose-test.log. COMPOSE names
another compose command, PIP_ARGS goes to the builds.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checks
import faults
import secure
from engine import ROOT, Engine, engine, run
from federation import EXPERIMENT, Federation, wait_for
from pilot import pilot

BASE = "python:3.11-slim-bookworm"
IMAGES = {
    "dpfpl-server": ("server.Dockerfile", None),
    "dpfpl-client": ("client.Dockerfile", "client"),
    "dpfpl-agent": ("client.Dockerfile", "agent"),
    "dpfpl-supernode": ("client.Dockerfile", "supernode"),
}
NEWER = "dpfpl-client:newer"
PARTS = ["simulation", "hardened", "link", "disk", "production", "secure"]
VERSION = tomllib.loads((ROOT / "common/pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
KEPT = ROOT / "runs" / "compose-test.log"


class Log:
    """Prints outcomes, keeps them in a file and counts them."""

    def __init__(self, only: list[str]) -> None:
        self.passed, self.failed, self._only, self._began = 0, 0, only, time.monotonic()
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text("", encoding="utf-8")

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        self.line(f"[{time.monotonic() - self._began:5.0f} s] {text}")

    def line(self, text: str) -> None:
        """A line as it is."""
        print(text, flush=True)
        with KEPT.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def end(self) -> int:
        """Say how many checks passed; the exit code."""
        self.say("everything taken down")
        self.line(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0

    def check(self, name: str, act: Callable[[], str]) -> None:
        """Run one check; its failure is printed and does not stop the others."""
        if self._only and not any(word in name for word in self._only):
            return
        began = time.monotonic()
        try:
            outcome = act()
        except Exception as error:  # noqa: BLE001  the next check shall run
            self.failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.say(f"FAIL {name}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}")
        else:
            self.passed += 1
            self.say(f"ok   {name} ({time.monotonic() - began:.0f} s): {outcome}")


def pip_args() -> str:
    """What the builds give to pip: no index where there are wheels."""
    return os.environ.get("PIP_ARGS", "--no-index" if any((ROOT / "deploy/wheels").glob("*.whl")) else "")


def build(docker: Engine, log: Log) -> None:
    """The base image, or its stand-in, and ours; says their sizes."""
    environment = {**docker.environment, "DOCKER": docker.docker_program}
    if not docker.docker("images", "-q", BASE):
        pulled = run(docker.docker_program, "pull", "-q", BASE, check=False, env=docker.environment, timeout=300)
        if pulled.returncode:
            log.say(run(str(ROOT / "deploy/base-image.sh"), BASE, env=environment).stdout.strip())
    revision = run("git", "-C", str(ROOT), "rev-parse", "HEAD", check=False).stdout.strip() or "unknown"
    created = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    arguments = (f"PIP_ARGS={pip_args()}", f"VERSION={VERSION}", f"REVISION={revision}", f"CREATED={created}")
    for name, (file, target) in IMAGES.items():
        began = time.monotonic()
        docker.docker(
            "build", "-q", "-f", str(ROOT / "deploy" / file), *(("--target", target) if target else ()),
            *(f"--build-arg={argument}" for argument in arguments),
            "-t", name, "-t", f"{name}:{VERSION}", str(ROOT), timeout=1800,
        )  # fmt: skip
        size = int(docker.docker("image", "inspect", "-f", "{{.Size}}", name)) / 1e6
        packages = json.loads(inside(docker, name, "cat /opt/dpfpl/sbom.json"))
        log.say(
            f"image {name}: {size:.0f} MB, {len(packages['components'])} packages in its SBOM, built in "
            f"{time.monotonic() - began:.0f} s"
        )


def inside(docker: Engine, image: str, look: str) -> str:
    """What a shell command prints in a container of an image, as no user of ours and without a network."""
    options = ("--rm", "--network", "none", "--user", "10001", "--entrypoint", "sh")
    return docker.docker("run", *options, image, "-c", look)


def no_package_manager(docker: Engine) -> str:
    """Nothing in an image installs software, and nothing runs as its owner."""
    look = (
        "command -v apt apt-get dpkg pip pip3 uv gcc; python3 -c 'import pip' 2>/dev/null && echo pip; "
        "find / -xdev -perm /6000 -type f 2>/dev/null; true"
    )
    for name in IMAGES:
        found = inside(docker, name, look)
        assert found == "", f"{name}: {found}"
    torch = inside(docker, "dpfpl-supernode", "ls /opt/dpfpl/lib/python3*/site-packages | grep -c '^torch$' || true")
    assert torch == "0", torch
    return "no apt, dpkg, pip, uv or compiler in any image, no setuid file; no torch beside the SuperNode"


def simulation(docker: Engine, project: str, log: Log) -> None:
    """The first command that a user types, ``up --build``, to the end, with its exit code."""
    fed = Federation(docker, project, ROOT / "docker-compose.yml", PIP_ARGS=pip_args())
    for name in IMAGES:  # so that it builds them; its layers are there
        docker.docker("rmi", f"{name}:{VERSION}", check=False)

    def whole() -> str:
        began = time.monotonic()
        with checks.packets(fed, "dpfpl-server") as listener:
            started = fed.compose("up", "--build", "--detach", check=False, timeout=1800)
            log.line(f"{started.stdout}{started.stderr}".strip())
            assert started.returncode == 0, "see above"
            code = docker.docker("wait", fed.container("experiment"), timeout=1800)
            took = time.monotonic() - began
            said = docker.docker("logs", fed.container("experiment"))
            log.line(said)
            assert code == "0", f"exit code {code}"
            ended = fed.state("provision")["State"]
            assert (ended["Status"], ended["ExitCode"]) == ("exited", 0), ended
        with tempfile.TemporaryDirectory(prefix="dpfpl-report-") as folder:
            report = Path(folder) / "report"
            docker.docker("cp", f"{fed.container('experiment')}:/var/lib/dpfpl/runs/simulation", str(report))
            result = json.loads((report / "result.json").read_text())
            assert (report / "report.html").stat().st_size > 10_000
            assert result["transport"] == "grpc+tls"
            assert len(result["rounds"]) == 6
            assert all(len(entry["sites"]) == 3 for entry in result["rounds"]), result["rounds"]
            assert all(entry["epsilon"] != "infinite" for entry in result["privacy"]["epsilons"])
        log.check("S4 telemetry", lambda: checks.s4_telemetry(fed, listener))
        return (
            f"exit code 0 after {took:.0f} s, report copied out, {scored(result)}, epsilons "
            f"{[round(e['epsilon'], 2) for e in result['privacy']['epsilons']]}"
        )

    try:
        log.check("simulation: up", whole)
    finally:
        fed.down()


def scored(result: dict[str, Any]) -> str:
    """The released scores of the prompt that the sites use, of all sites together."""
    row = result["scores"][-1]
    assert row["sites"] == len(result["sites"]), row
    low, high = row["interval"]
    return f"{row['candidate']} right {row['value']:.2f} ({low:.2f} to {high:.2f})"


def bring_up(fed: Federation, log: Log) -> None:
    """Start everything but the experiment, and say how long it took and what it weighs."""
    began = time.monotonic()
    services = list(checks.SERVICES)
    fed.compose("up", "-d", "--no-build", *services)
    wait_for("all containers to be healthy", lambda: all(fed.running(name) for name in services), 400, 1.0)
    up = time.monotonic() - began
    used = fed.engine.docker(
        "stats", "--no-stream", "--format", "{{.MemUsage}}", *(fed.container(name) for name in services)
    )
    log.say(
        f"up: {len(services)} containers healthy after {up:.0f} s; memory "
        f"{', '.join(line.split(' / ')[0] for line in used.splitlines())}"
    )


def hardened(docker: Engine, project: str, log: Log, attach: bool = False) -> None:
    """Live checks and faults in one long-lived federation; one that is up already is left up."""
    fed = Federation(docker, project, ROOT / "docker-compose.yml")
    try:
        if not attach:
            bring_up(fed, log)
        log.check("S1 hardened", lambda: checks.s1_hardened(fed))
        log.check("S2 no way out", lambda: checks.s2_no_way_out(fed, "dpfpl-server"))
        log.check("S3 mounts", lambda: checks.s3_mounts(fed))
        log.check("F16 kill -9 SuperNode", lambda: faults.f16_kill_supernode(fed))
        log.check("S5 flower home", lambda: checks.s5_flower_home(fed))
        log.check("S9 tokens", lambda: checks.s9_tokens(fed))
        log.check("kill -9 agent", lambda: faults.kill_agent(fed))
        log.check("kill -9 ServerApp", lambda: faults.kill_serverapp(fed))
        log.check("L1 kill -9 SuperLink", lambda: faults.l1_kill_superlink(fed))
        log.check("DR2 kill -9 executor", lambda: faults.kill_executor(fed))
        log.check("F15 docker stop while training", lambda: faults.f15_stop_while_training(fed))
        log.check("network cut", lambda: faults.network_cut(fed))

        def hostile() -> str:
            with checks.outside(docker, "dpfpl-server", f"{project}-outside") as address:
                return faults.a5_hostile_app(fed, f"{address}:{checks.OUTSIDE_PORT}")

        log.check("A5 hostile operator's code", hostile)
    finally:
        if not attach:
            fed.down()


def changed(docker: Engine, project: str, file: str, log: Log, name: str, fault: Callable[[Federation], str]) -> None:
    """One fault that needs a changed federation."""
    here = Path(__file__).resolve().parent
    fed = Federation(docker, project, ROOT / "docker-compose.yml", here / file, DPFPL_TEST_FOLDER=str(here))

    def act() -> str:
        bring_up(fed, log)
        return fault(fed)

    try:
        log.check(name, act)
    finally:
        fed.down()


def production(docker: Engine, project: str, log: Log) -> None:
    """The files that operator and sites copy, with their quick starts; upgrade, backup, restore, rollback."""
    with (
        tempfile.TemporaryDirectory(prefix="dpfpl-pilot-", dir="/var/tmp") as folder,
        pilot(docker, Path(folder), project) as made,
    ):
        fingerprint = tomllib.loads(EXPERIMENT)["model"]["fingerprint"]
        archive = Path(folder) / "backup"

        def quick_start() -> str:
            made.quick_start_operator()
            made.quick_start_sites()
            result = made.experiment("first", fingerprint)
            assert [site["name"] for site in result["sites"]] == ["hospital-a", "hospital-b"]
            return (
                "operator, a site in one container and a split site, their own images in folders: finished, "
                f"{scored(result)}"
            )

        def upgrade() -> str:
            run(
                docker.docker_program, "build", "-q", "-t", NEWER, "-",
                input="FROM dpfpl-client\nLABEL release=newer\n", env=docker.environment,
            )  # fmt: skip
            text = made.upgrade("dpfpl-client", NEWER)
            made.experiment("after-upgrade", fingerprint)
            return f"{text}; the next experiment ran"

        def backup() -> str:
            made.back_up(archive)
            before = made.ledger()
            made.restore(archive)
            site = made.sites["hospital-a"]
            wait_for("hospital-a", lambda: site.running("client"), 240)
            assert made.ledger() == before
            assert site.ledger_problems("client") == []
            return "stopped, packed, removed, unpacked, started: same ledger, in order"

        def rollback() -> str:
            made.experiment("after-backup", fingerprint)
            spent = made.ledger()["spent_epsilon"]
            began = time.monotonic()
            made.restore(archive)
            text = made.refusal()
            noticed = time.monotonic() - began
            charged = made.accept_rollback()
            after = made.ledger()["spent_epsilon"]
            assert after >= spent > 0, f"epsilon {after} after it was {spent}: something was given back"
            made.experiment("after-rollback", fingerprint)
            site = made.sites["hospital-a"]
            assert site.ledger_problems("client") == []
            return (
                f"an old copy put back is refused after {noticed:.0f} s: {text[:110]}; accept-rollback charged for "
                f"{charged}, epsilon {spent:.2f} before and {after:.2f} after; the next experiment ran"
            )

        log.check("quick starts (production files)", quick_start)
        log.check("S3 images", made.images_are_private)
        log.check("upgrade", upgrade)
        log.check("backup and restore", backup)
        log.check("rollback", rollback)
        docker.docker("rmi", NEWER, check=False)


def secured(docker: Engine, project: str, log: Log) -> None:
    """Secure aggregation with the production files."""
    with (
        tempfile.TemporaryDirectory(prefix="dpfpl-secure-", dir="/var/tmp") as folder,
        pilot(docker, Path(folder), project, secure.FILES) as made,
    ):
        fingerprint = tomllib.loads(EXPERIMENT)["model"]["fingerprint"]
        log.check("secure: enrol", lambda: secure.enrol(made))
        log.check("secure: kill", lambda: secure.killed_with_its_masks_on(made, fingerprint))


def main() -> int:
    """Everything; exit code 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-build", action="store_true", help="use the images that are there")
    parser.add_argument("--attach", metavar="PROJECT", help="for part hardened: a federation that is up, and stays up")
    parser.add_argument("--only", nargs="*", default=[], help="checks whose name holds one of these words")
    parser.add_argument("--parts", nargs="*", default=PARTS)
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))  # through every finally: nothing stays up
    log, project = Log(options.only), f"dpfpltest{os.getpid()}"
    with engine() as docker:
        version = docker.docker("info", "--format", "Docker {{.ServerVersion}}, {{.Driver}}, {{.NCPU}} cores")
        log.say(
            f"engine: {version}; "
            f"{run(*docker.compose_program, 'version', '--short', env=docker.environment).stdout.strip()}"
        )
        if not options.skip_build:
            build(docker, log)
        parts = {
            "simulation": lambda: simulation(docker, f"{project}s", log),
            "hardened": lambda: hardened(docker, options.attach or f"{project}h", log, bool(options.attach)),
            "link": lambda: changed(docker, f"{project}l", "bad-link.yml", log, "L6 bad link", faults.l6_bad_link),
            "disk": lambda: changed(
                docker, f"{project}d", "small-disk.yml", log, "disk full at an agent", faults.disk_full
            ),
            "production": lambda: production(docker, f"{project}p", log),
            "secure": lambda: secured(docker, f"{project}m", log),
        }
        log.check("no package manager", lambda: no_package_manager(docker))
        for name in options.parts:
            try:
                parts[name]()
            except Exception as error:  # noqa: BLE001  the next part shall run
                log.failed += 1
                log.say(f"FAIL {name}: {error}")
    return log.end()


if __name__ == "__main__":
    sys.exit(main())
