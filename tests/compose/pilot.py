"""An operator and two sites with the production files, as their quick starts say; upgrade, backup, rollback."""

import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checks import host_address
from engine import ROOT, Engine
from federation import NODE, Federation, wait_for

__all__ = ["SERVER", "WHOLE", "Pilot", "pilot"]

SERVER = "fl.example.test"
OWNER = 12345
"""Who owns the files of operator and sites: somebody whom no image knows."""
IMAGES = {"ring": 40, "bar": 40}
WHOLE = "compose.yml"
FILES = {"hospital-a": WHOLE, "hospital-b": "compose.split.yml"}
PER_STEP = "mechanism = 'per_step'\ntarget_epsilon = 2.0"


def _png(path: Path, rows: list[bytes]) -> None:
    """A small grey picture, without an imaging library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    size = len(rows)
    raw = b"".join(b"\0" + row for row in rows)
    head = struct.pack("!IIBBBBB", size, size, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def write_images(folder: Path, seed: int) -> None:
    """Two classes of pictures, each a little different."""
    size = 32
    for label, count in IMAGES.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            shift, grey = (number * 7 + seed) % 9, 120 + (number * 13 + seed * 5) % 120
            rows = [bytes(_pixel(label, x, y, shift, grey) for x in range(size)) for y in range(size)]
            _png(folder / label / f"{number:03}.png", rows)


def _pixel(label: str, x: int, y: int, shift: int, grey: int) -> int:
    """One pixel of a bar or a ring that lies and shines a little differently in every picture."""
    if label == "bar":
        return grey if abs(x - 12 - shift) < 3 else 10
    distance = ((x - 16) ** 2 + (y - 16) ** 2) ** 0.5
    return grey if abs(distance - 6 - shift / 2) < 2 else 10


class Pilot:
    """An operator and its sites, each in a folder of their own, as on machines of their own.

    Args:
        engine: where they run.
        folder: for their folders.
        project: their projects' names begin with it.
        files: by site, its compose file in deploy/site.
    """

    def __init__(self, engine: Engine, folder: Path, project: str, files: Mapping[str, str] = FILES) -> None:
        self.engine, self.folder = engine, folder
        self.gateway = host_address(engine, "dpfpl-server")
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = str(free.getsockname()[1])
        owner = {"DPFPL_UID": str(OWNER), "DPFPL_GID": str(OWNER), "DPFPL_PORT": self.port, "DPFPL_SERVER": SERVER}
        self.server = self._party("operator", f"{project}-operator", [ROOT / "deploy/server/compose.yml"], **owner)
        for name in ("server", "runs", "kits", "experiments"):
            self.own(folder / "operator" / name)
        # No name server knows fl.example.test: the gates are told its address, as a hosts file would.
        hosts = folder / "hosts.yml"
        hosts.write_text(json.dumps({"services": {"gate": {"extra_hosts": [f"{SERVER}:{self.gateway}"]}}}))
        self.sites, self.setups = {}, {}
        for number, (name, file) in enumerate(files.items()):
            write_images(folder / name / "images", number)
            given = {"DPFPL_DATA": str(folder / name / "images"), "DPFPL_KIT": str(folder / name / "kit"), **owner}
            paths = [ROOT / "deploy/site" / file, hosts]
            self.sites[name] = self.setups[name] = self._party(name, f"{project}-{name}", paths, **given)
            if file != WHOLE:  # it is prepared with the one-container file, as its quick start says
                paths[0] = ROOT / "deploy/site" / WHOLE
                self.setups[name] = self._party(name, f"{project}-{name}-setup", paths, **given)

    def own(self, folder: Path) -> None:
        """What 'as your own user' does: make it, and give it to whom the containers run as."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, OWNER, OWNER)

    def _party(self, name: str, project: str, files: list[Path], **environment: str) -> Federation:
        (self.folder / name).mkdir(exist_ok=True)
        copied = [Path(shutil.copy(file, self.folder / name)) for file in files]  # as a new user does
        return Federation(self.engine, project, *copied, folder=self.folder / name, **environment)

    def quick_start_operator(self) -> str:
        """Provision and start."""
        out = self.server.compose(
            "run", "--rm", "server", "provision", "--site", "hospital-a", "--site", "hospital-b",
            "--address", SERVER, "--port", self.port, "--out", "/kits",
        ).stdout  # fmt: skip
        self.server.compose("up", "-d")
        wait_for("the server to be healthy", lambda: self.server.running("server"), 240)
        return str(out)

    def quick_start_sites(self) -> dict[str, str]:
        """Kit, init, check, up, at both sites; the checks' texts."""
        texts = {}
        for name, site in self.sites.items():
            kit = self.folder / name / "kit"
            shutil.copytree(self.folder / "operator" / "kits" / name, kit)
            (kit / "state").mkdir(mode=0o700)
            self.own(kit)
            setup = self.setups[name]
            setup.compose("run", "--rm", "client", "init", "--data", "/private/data")
            texts[name] = setup.compose("run", "--rm", "client", "check", check=False).stdout
            assert "Ready." in texts[name], texts[name]
            if setup is not site:
                setup.down()
            site.compose("up", "-d")
        wait_for("hospital-a", lambda: self.sites["hospital-a"].running("client"), 240)
        wait_for("hospital-b", lambda: self.sites["hospital-b"].running("supernode"), 240)
        return texts

    def experiment(self, name: str, fingerprint: str, privacy: str = PER_STEP) -> dict[str, Any]:
        """Run an experiment to its end, as an operator types it."""
        (self.folder / "operator" / "experiments" / f"{name}.toml").write_text(
            f'name = "{name}"\nclasses = ["bar", "ring"]\n\n[model]\nwidth = 128\nfingerprint = "{fingerprint}"\n\n'
            f"[privacy]\n{privacy}\ntarget_delta = 1e-5\nnominal_site_size = 60\n\n"
            "[rounds]\nnumber = 2\nlocal_steps = 3\n"
        )
        self.server.execute("server", "dpfpl-server", "run", f"experiments/{name}.toml")
        return dict(json.loads((self.folder / "operator" / "runs" / name / "result.json").read_text()))

    def ledger(self, name: str = "hospital-a") -> dict[str, Any]:
        """A site's whole ledger."""
        return dict(json.loads(self.sites[name].execute("client", "site", "ledger", "show", "--json")))

    def images_are_private(self) -> str:
        """S3 with real images: read-only, and for the agent alone."""
        site = self.sites["hospital-a"]
        (data,) = (m for m in site.state("client")["Mounts"] if m["Destination"] == "/private/data")
        assert not data["RW"]
        out = site.execute(
            "client", "sh", "-c", "ls /private/data 2>&1; cat /private/data/bar/000.png 2>&1", user=NODE, check=False
        )
        assert out.count("ermission denied") == 2, out
        for service in ("supernode", "gate"):
            mounts = {m["Destination"] for m in self.sites["hospital-b"].state(service)["Mounts"]}
            assert not any(place.startswith("/private") for place in mounts), mounts
        agent = {m["Destination"]: m["RW"] for m in self.sites["hospital-b"].state("agent")["Mounts"]}
        assert agent["/private/data"] is False, agent
        assert not any("node.key" in place for place in agent), agent
        return (
            "images mounted read-only, in the agent's containers only, and closed to the SuperNode's user; "
            "node key not in the split agent's"
        )

    def upgrade(self, image: str, newer: str) -> str:
        """Replace the client's image; the ledger stays and binds."""
        before = self.ledger()
        site = self.sites["hospital-a"]
        site._environment["DPFPL_CLIENT_IMAGE"] = newer
        site.compose("up", "-d")
        wait_for("hospital-a on the new image", lambda: site.running("client"), 240)
        assert site.state("client")["Config"]["Image"] == newer
        assert self.ledger() == before, "the ledger changed with the image"
        assert site.ledger_problems("client") == []
        return (
            f"{image} to {newer}: ledger the same ({len(before['experiments'])} experiments, epsilon "
            f"{before['spent_epsilon']:.2f})"
        )

    def back_up(self, archive: Path) -> None:
        """As docs/howto/site.md says: the site stopped, its folder packed."""
        site = self.sites["hospital-a"]
        site.compose("stop", "client")
        shutil.make_archive(str(archive), "tar", self.folder / "hospital-a", "kit")
        site.compose("start", "client")
        wait_for("hospital-a", lambda: site.running("client"), 240)

    def restore(self, archive: Path) -> None:
        """Put a packed folder back, and start."""
        site = self.sites["hospital-a"]
        site.compose("stop", "client")
        shutil.rmtree(self.folder / "hospital-a" / "kit" / "state")
        shutil.unpack_archive(f"{archive}.tar", self.folder / "hospital-a", filter="data")
        self.own(self.folder / "hospital-a" / "kit")
        site.compose("start", "client")

    def refusal(self) -> str:
        """What hospital-a's agent says when it refuses its ledger; the container must not count as healthy."""
        site = self.sites["hospital-a"]

        def said() -> str:
            log = site.compose("logs", "--tail", "30", "client", check=False).stdout
            return next((line for line in reversed(log.splitlines()) if "LEDGER_ROLLED_BACK" in line), "")

        text = str(wait_for("the agent to notice", said, 240)).strip()
        assert not site.running("client")
        return text[text.index("LEDGER_ROLLED_BACK") :]

    def accept_rollback(self) -> list[str]:
        """As docs/howto/deployment.md says: stop, accept, start; the experiments that were charged again."""
        site = self.sites["hospital-a"]
        site.compose("stop", "client")
        shown = site.compose("run", "--rm", "client", "ledger", "accept-rollback", "--yes", "--json").stdout
        charged = [row["experiment"] for row in json.loads(shown[shown.index("{") :])["charged"]]
        site.compose("up", "-d")
        wait_for("hospital-a", lambda: site.running("client"), 240)
        return sorted(charged)

    def down(self) -> None:
        """Take everything down."""
        for party in {*self.sites.values(), *self.setups.values(), self.server}:
            party.down()


@contextmanager
def pilot(engine: Engine, folder: Path, project: str, files: Mapping[str, str] = FILES) -> Iterator[Pilot]:
    """A pilot that is taken down at the end, whatever happened."""
    made = Pilot(engine, folder, project, files)
    try:
        yield made
    finally:
        made.down()
