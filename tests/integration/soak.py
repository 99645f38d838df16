"""A long life of a real federation with random kills; run by hand on a quiet machine:

    python tests/integration/soak.py --rounds 2000 --kills 60 --out runs/soak

Two sites on public digits, started by the commands that people type, experiments one after another until so many rounds
are done, and every process kind killed at random times. Writes ``soak.json`` and ``soak.svg`` (memory, files open, disk
over time). Ends with 1 if anywhere more was released than charged, or an experiment neither finished nor says why.
A site that leaves and one that joins are not part of it yet.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_watched import Federation

from dpfpl_client.agent.ledger.view import observed_ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.site.settings import load_site
from dpfpl_common.ops.guard import descendants
from dpfpl_server.report.charts import Frame, Line, line_chart
from dpfpl_server.runs.folder import RunFolder

KINDS = (
    ("server", b"sites.superlink_process"), ("server", b"sites.executor"), ("site", b"dpfpl_client\0agent"),
    ("site", b"node.warm_node"), ("server", b""), ("site", b""),
)  # fmt: skip
"""Where, and which program; an empty one is the supervisor, which is started again as a service manager would."""
ROUNDS_EACH = 40
LOOK_S = 30.0


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
    disk = sum(file.lstat().st_size for file in federation.root.rglob("*") if file.is_file())
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


def accounts(federation: Federation) -> dict[str, dict[str, int]]:
    """By site, how many releases were charged and how many exist."""
    found = {}
    for file in sorted(federation.root.glob("kits/*/site.toml")):
        settings = load_site(file)
        if not (settings.state_folder / "ledger.sqlite").exists():
            continue
        ledger, store = observed_ledger(settings), DiskStore(settings.state_folder)
        charged = {(charge.experiment, charge.round) for charge in ledger.charges()}
        released = {(name, number) for name in store.experiments() for number in store.rounds(name)}
        found[settings.name] = {
            "charges": len(ledger.charges()), "charged": len(charged), "released": len(released),
            "uncharged": len(released - charged),
        }  # fmt: skip
        ledger.close()
    return found


def soak(rounds: int, kills: int, out: Path, seed: int) -> dict[str, Any]:
    """The whole of it."""
    draw, federation = random.Random(seed), Federation(out / "federation")
    federation.start_server()
    time.sleep(10)
    for file in federation.root.glob("kits/*/site.toml"):
        federation.start_site(file.parent.name)
    time.sleep(60)
    moments = sorted(draw.uniform(0.02, 0.98) for _ in range(kills))
    series, events, done, number = [], [], 0, 0
    began = time.monotonic()
    while done < rounds:
        number += 1
        run = federation.run(f"soak-{number}", ROUNDS_EACH)
        while run.poll() is None:
            series.append({"at": time.monotonic() - began, **look(federation)})
            now = done + federation.rounds(f"soak-{number}")
            while moments and now / rounds >= moments[0]:
                moments.pop(0)
                events.append({"at": time.monotonic() - began, "killed": kill(federation, draw)})
            time.sleep(LOOK_S)
        done += federation.rounds(f"soak-{number}")
    ends = {}
    for path in sorted((federation.root / "runs").iterdir()):
        folder = RunFolder(path)
        last = folder.store.last_event() or {}
        ends[path.name] = "finished" if folder.read_json("result.json") else str(last.get("message", ""))
    federation.stop()
    return {
        "seed": seed, "rounds": done, "seconds": time.monotonic() - began, "events": events, "series": series,
        "accounts": accounts(federation), "experiments": ends,
    }  # fmt: skip


def picture(series: list[dict[str, float]]) -> str:
    """Each quantity as a share of its largest value, over minutes."""
    lines = []
    for style, key in enumerate(("memory", "descriptors", "disk")):
        largest = max(point[key] for point in series) or 1.0
        points = {int(point["at"] // 60): point[key] / largest for point in series}
        lines.append(Line(f"{key} (largest {largest:.0f})", points, style))
    return line_chart("Share of the largest, by minutes", lines, Frame.around(lines, max(max(e.points) for e in lines)))


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
    (given.out / "soak.svg").write_text(picture(found["series"]))
    print(json.dumps({key: found[key] for key in ("rounds", "seconds", "accounts", "experiments")}, indent=1))
    over = [site for site, account in found["accounts"].items() if account["uncharged"]]
    silent = [name for name, end in found["experiments"].items() if not end]
    print(f"released without a charge: {over or 'nowhere'}; experiments that say nothing: {silent or 'none'}")
    return 1 if over or silent else 0


if __name__ == "__main__":
    sys.exit(main())
