"""A long life of a real federation with random kills; run by hand on a quiet machine:

    python tests/integration/soak.py --rounds 2000 --kills 60 --out runs/soak

Three sites on public digits, started by the commands that people type, experiments one after another until so many
rounds are done, and every process kind killed at random times. After a third of the rounds one site is revoked in
mid-run, after two thirds a fourth joins. Writes ``soak.json`` and ``soak.svg`` (memory, files open, disk over time).
Ends with 1 if anywhere more was released than charged or a stored release is not the recorded one, if an experiment
neither finished nor says why, or if a site stays late once it is back.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_watched import Federation

from dpfpl_client.agent.ledger.view import summarise, verify
from dpfpl_client.site.settings import load_site
from dpfpl_common.ops.guard import descendants
from dpfpl_server.runs.folder import RunFolder
from dpfpl_server.sites.admin import add_sites, revoke_site

KINDS = (
    ("server", b"sites.superlink_process"), ("server", b"sites.executor"), ("site", b"dpfpl_client\0agent"),
    ("site", b"node.warm_node"), ("server", b""), ("site", b""),
)  # fmt: skip
"""Where, and which program; an empty one is the supervisor, which is started again as a service manager would."""
ROUNDS_EACH = 40
LOOK_S = 5.0
FEW = 5
"""Rounds one after another in which a site may be late: one kill costs it one or two."""
LEAVES, JOINS = "east", "west"


def look(federation: Federation) -> dict[str, float]:
    """Resident megabytes, descriptors and megabytes on disk of everything together."""
    memory = descriptors = 0
    for process in federation.started.values():
        for pid in [process.pid, *descendants(process.pid)]:
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                memory += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
    disk = 0
    for folder, _, files in os.walk(federation.root):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # gone since
                disk += os.lstat(f"{folder}/{file}").st_size
    return {"memory": memory / 1024, "descriptors": float(descriptors), "disk": disk / 1e6}


def kill(federation: Federation, draw: random.Random) -> str:
    """Kill one process; gives what it was."""
    where, program = draw.choice(KINDS)
    name = "server" if where == "server" else draw.choice([n for n in federation.started if n != "server"])
    if not program:
        federation.started[name].kill()
        federation.started[name].wait()
        time.sleep(12.0)  # its guards end the rest
        federation.start_server() if name == "server" else federation.start_site(name)
        return f"supervisor of {name}"
    pids = federation.pids(name, program)
    if pids:
        os.kill(draw.choice(pids), signal.SIGKILL)
    return f"{name} {program.decode().replace(chr(0), ' ')}"


def restart_ended(federation: Federation) -> list[str]:
    """Start again whatever ended by itself, as a service manager does; which."""
    ended = {name: code for name, process in federation.started.items() if (code := process.poll()) is not None}
    for name in ended:
        federation.start_server() if name == "server" else federation.start_site(name)
    return [f"{name} ended with {code}; started again" for name, code in ended.items()]


def accounts(federation: Federation) -> dict[str, dict[str, Any]]:
    """By site: charges, how many of them are for scores and how many were released, and what is wrong with any."""
    found = {}
    for file in sorted(federation.root.glob("kits/*/site.toml")):
        settings = load_site(file)
        experiments = summarise(settings)["experiments"]
        found[settings.name] = {
            "experiments": len(experiments),
            "rounds": sum(entry["rounds"] for entry in experiments),
            "scores": sum(entry["scored"] for entry in experiments),
            "charges": sum(entry["charges"] for entry in experiments),
            "released": sum(entry["released"] for entry in experiments),
            "problems": verify(settings),
        }
    return found


def leave(federation: Federation) -> str:
    """Revoke a site while it trains; what its terminal said last."""
    revoke_site(federation.server, LEAVES)
    federation.started.pop(LEAVES).wait(120)
    federation.sites = tuple(site for site in federation.sites if site != LEAVES)
    return next((line for line in federation.output(LEAVES).splitlines() if "KEY_WITHDRAWN" in line), "says nothing")


def join(federation: Federation) -> str:
    """Let a new site in; the next experiment names it."""
    add_sites(federation.server, (JOINS,), federation.root / "kits")
    federation.fill_in(JOINS)
    federation.start_site(JOINS)
    federation.sites += (JOINS,)
    return f"{JOINS} started"


def soak(rounds: int, kills: int, out: Path, seed: int) -> dict[str, Any]:
    """The whole of it."""
    federation = Federation(out / "federation", ("north", "south", LEAVES), 4)
    try:
        federation.start_server()
        time.sleep(10)
        for site in federation.sites:
            federation.start_site(site)
        time.sleep(60)
        lived = live(federation, rounds, kills, random.Random(seed))
    finally:
        federation.stop()
    kept = {"accounts": accounts(federation), "experiments": ends(federation), "late": late(federation)}
    return {"seed": seed, **lived, **kept}


def live(federation: Federation, rounds: int, kills: int, draw: random.Random) -> dict[str, Any]:
    """Experiments one after another, with everything that happens in between."""
    acts = [(draw.uniform(0.02, 0.98), lambda: kill(federation, draw)) for _ in range(kills)]
    acts += [(1 / 3, lambda: leave(federation)), (2 / 3, lambda: join(federation))]
    acts.sort(key=lambda act: act[0])
    each = min(ROUNDS_EACH, max(2, rounds // 5))
    series, events, done, number = [], [], 0, 0
    began = time.monotonic()
    while done < rounds and number < 2 * rounds / each:
        number += 1
        name = f"soak-{number}"
        run = federation.begin(name, each, federation.sites, dropouts=1)
        while not run.done():
            at = time.monotonic() - began
            series.append({"at": at, "rounds": done + federation.rounds(name), **look(federation)})
            happened = restart_ended(federation)
            while acts and series[-1]["rounds"] / rounds >= acts[0][0]:
                happened.append(acts.pop(0)[1]())
            for what in happened:
                events.append({"at": at, "round": series[-1]["rounds"], "what": what})
                print(json.dumps(events[-1]), flush=True)
            time.sleep(LOOK_S)
        done += federation.rounds(name)
        print(f"{time.monotonic() - began:.0f} s: {name}: {run.exception() or 'finished'}, {done} rounds", flush=True)
    return {"rounds": done, "seconds": time.monotonic() - began, "events": events, "series": series}


def ends(federation: Federation) -> dict[str, str]:
    """How each experiment ended, in the words that its operator reads."""
    found = {}
    for path in sorted((federation.root / "runs").iterdir()):
        folder = RunFolder(path)
        last = folder.store.last_event() or {}
        found[path.name] = "finished" if folder.read_json("result.json") else str(last.get("message", ""))
    return found


def late(federation: Federation) -> dict[str, int]:
    """By site: most rounds one after another in which it had to be asked again, after half of the deadline."""
    longest: dict[str, int] = {}
    now: dict[str, int] = {}
    paths = sorted((federation.root / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    for entry in (entry for path in paths for entry in RunFolder(path).store.rounds()):
        now = {site: now.get(site, 0) + 1 for site in entry["asked_again"]}
        longest |= {site: max(count, longest.get(site, 0)) for site, count in now.items()}
    return longest


def picture(series: list[dict[str, float]], events: list[dict[str, Any]]) -> str:
    """Memory, descriptors and disk, each as a share of its largest value, over time; a grey line for every event."""
    last = series[-1]["at"] or 1.0
    parts = [
        f'<path d="M{60 + 800 * event["at"] / last:.1f} 20v300" stroke="#ccc"><title>{event["what"]}</title></path>'
        for event in events
    ]
    for place, (key, unit, colour) in enumerate(
        (("memory", "MB", "#06c"), ("descriptors", "", "#c30"), ("disk", "MB", "#080"))
    ):
        largest = max(point[key] for point in series) or 1.0
        line = " ".join(f"{60 + 800 * p['at'] / last:.1f},{320 - 300 * p[key] / largest:.1f}" for p in series)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        text = f"{key}, at most {largest:.0f} {unit}".strip()
        parts.append(f'<text x="{60 + 270 * place}" y="365" fill="{colour}">{text}</text>')
    parts += [f'<text x="10" y="{325 - 3 * share}">{share} %</text>' for share in (0, 50, 100)]
    parts.append(f'<text x="60" y="342">0</text><text x="780" y="342">{last / 60:.0f} minutes</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 380" font-family="sans-serif" font-size="14">'
        f'<rect width="880" height="380" fill="#fff"/>{"".join(parts)}</svg>'
    )


def main() -> int:
    """Run it and say how it ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    found = soak(given.rounds, given.kills, given.out, given.seed)
    (given.out / "soak.json").write_text(json.dumps(found, indent=1))
    (given.out / "soak.svg").write_text(picture(found["series"], found["events"]))
    print(json.dumps({key: found[key] for key in ("rounds", "seconds", "accounts", "experiments", "late")}, indent=1))
    over = [
        site
        for site, account in found["accounts"].items()
        if account["problems"] or account["charges"] < account["released"]
    ]
    stuck = [site for site, count in found["late"].items() if count > FEW]
    silent = [name for name, end in found["experiments"].items() if not end]
    print(
        f"released without a charge, or other than recorded: {over or 'nowhere'}; "
        f"experiments that say nothing: {silent or 'none'}; sites that stay late: {stuck or 'none'}"
    )
    return 1 if over or silent or stuck else 0


if __name__ == "__main__":
    sys.exit(main())
