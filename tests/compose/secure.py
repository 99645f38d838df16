"""Secure aggregation in containers: sites that made their keys there, and one of them dies with its masks on."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from federation import wait_for
from pilot import SERVER, WHOLE, Pilot

__all__ = ["FILES", "enrol", "killed_with_its_masks_on"]

FILES = dict.fromkeys(("hospital-a", "hospital-b", "hospital-c"), WHOLE)
PRIVACY = "trust = 'secure'\ntarget_epsilon = 8.0"
ROUNDS = 2
KILLED, LATE = "hospital-a", "hospital-b"
DELIVERED_S = 5.0
"""Until a reply that the agent has made is at the server; nobody asks for the next step meanwhile."""


def enrol(made: Pilot) -> str:
    """As the guides say: every site makes its keys, gets a kit without any, and pins the others' by telephone."""
    made.server.compose("run", "--rm", "server", "provision", "--address", SERVER, "--port", made.port)
    made.server.compose("up", "-d")
    wait_for("the server to be healthy", lambda: made.server.running("server"), 240)
    told = {}
    for name, site in made.sites.items():
        kit = made.folder / name / "kit"
        made.own(kit)
        made_keys = json.loads(site.compose("run", "--rm", "client", "enroll", "--name", name, "--json").stdout)
        told[name] = made_keys["fingerprints"]["aggregation_key"]
        experiments = made.folder / "operator" / "experiments"  # the one folder of the operator's that is read here
        shutil.copy(kit / f"{name}.public.json", experiments)
        made.own(experiments)
        made.server.execute(
            "server", "dpfpl-server", "sites", "add", name, "--public-key", f"experiments/{name}.public.json",
            "--out", "/kits", "--archive", "tar.gz",
        )  # fmt: skip
        shutil.copy(made.folder / "operator" / "kits" / f"{name}.tar.gz", kit)
        made.own(kit)
        site.compose(
            "run", "--rm", "client", "init", "--kit", f"{name}.tar.gz", "--into", ".", "--data", "/private/data"
        )
        site.compose("run", "--rm", "client", "policy", "accept", "--rule", "trust")  # the kit's, which has secure
    for name, site in made.sites.items():
        for peer in sorted(set(told) - {name}):
            site.compose("run", "--rm", "client", "peers", "pin", peer, told[peer], "--yes")
        text = site.compose("run", "--rm", "client", "check", check=False).stdout
        assert "Ready." in text, text
        site.compose("up", "-d")
    for name, site in made.sites.items():
        wait_for(name, lambda site=site: site.running("client"), 240)
    return f"{len(told)} sites made their keys in their containers, got kits without keys and pinned each other"


def killed_with_its_masks_on(made: Pilot, fingerprint: str) -> str:
    """One site dies after its masked rows arrived and before the masks come off: one sum, of all sites, paid once."""
    engine = made.engine
    killed, late = (made.sites[name].container("client") for name in (KILLED, LATE))
    engine.docker("update", "--cpu-quota", "10000", late)  # a tenth of a processor: every step waits for it
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(made.experiment, "summed", fingerprint, PRIVACY)
        wait_for("shares", lambda: run.done() or "shares" in _steps(made, LATE), 300, 0.02)
        engine.docker("update", "--cpu-quota", "5000", late)  # half of it goes into polls: its masks take ten seconds
        wait_for("masked rows", lambda: run.done() or "masked" in _steps(made, KILLED), 300, 0.02)
        if run.done():
            run.result()  # says why
        engine.docker("update", "--cpu-quota", "1000", late)  # it polls and no more; a slowed one cannot be paused
        try:
            assert _steps(made, LATE) == ["keys", "shares"], f"it was not late: {_steps(made, LATE)}"
            time.sleep(DELIVERED_S)
            engine.docker("kill", killed)
        finally:
            engine.docker("update", "--cpu-quota", "-1", late)
        wait_for("the last step at the others", lambda: run.done() or "unmask" in _steps(made, LATE), 120, 0.1)
        assert _steps(made, KILLED) == ["keys", "shares", "masked"], "it was not killed between the two"
        began = time.monotonic()
        engine.docker("start", killed)
        result = run.result(600)
    back = time.monotonic() - began
    assert [len(entry["sites"]) for entry in result["rounds"]] == [3] * ROUNDS, result["rounds"]
    assert {row["sites"] for row in result["scores"]} == {3}, result["scores"]
    assert len({row["epsilon"] for row in result["privacy"]["epsilons"]}) == 1, result["privacy"]
    for name, site in made.sites.items():
        assert _steps(made, name)[:3] == ["keys", "shares", "masked"], "a second attempt, with other masks"
        (paid,) = made.ledger(name)["experiments"]
        assert paid["charges"] == paid["released"] == ROUNDS + 3, (name, paid)
        assert site.ledger_problems("client") == [], name
    return (
        f"{KILLED} killed after its masked rows and started again when {LATE} had told its shares; finished "
        f"{back:.0f} s later in the same attempt, 3 sites in every sum, at each {ROUNDS + 3} charges and releases, "
        f"epsilon {result['privacy']['epsilons'][0]['epsilon']:.2f} towards operator, sites and recipients alike"
    )


def _steps(made: Pilot, name: str) -> list[str]:
    """What the site's audit says it has done for the sum of rows."""
    file: Path = made.folder / name / "kit" / "state" / "audit.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [one["step"] for one in entries if (one["event"], one.get("request")) == ("summed", "rows")]
