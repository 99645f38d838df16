"""Loss of power at any moment: what was not synced is gone, torn sectors included, and still charged >= released."""

import random
import signal

import numpy as np
import pytest
from agent_driver import open_ledger
from killable import Driver, Site, make_experiment, train_request
from storage_shim import Disk, Shim, missing_tools
from wire_samples import Caller

from dpfpl_client.agent.ledger.book import SCORES
from dpfpl_client.agent.store import DiskStore
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = [
    pytest.mark.processes,
    pytest.mark.privacy,
    pytest.mark.skipif(bool(missing_tools()), reason=missing_tools()),
]


class Recording:
    """What two agents, one after the other, did to a fresh state folder, and what they released meanwhile."""

    def __init__(self, shim, site):
        self.released = {}
        shim.set(record=True)
        for number, of in ((1, make_experiment("one")), (1, make_experiment("two"))):
            pid = site.driver.start(site.state)
            for more in range(3):
                reply = site.train(train_request(number + more, of))
                self.released[of.name, number + more] = reply.update.tobytes()
            with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 30.0) as agent:
                agent.evaluate(EvaluateRequest(of, 3, np.zeros(of.context_shape, "<f4")))
            assert site.driver.kill(pid, signal.SIGTERM) == 0
        shim.set()
        self.operations = shim.operations()
        self.sent = {}
        for at, operation in enumerate(self.operations):
            for key, update in self.released.items():
                if operation.kind == "X" and update in operation.one:
                    self.sent.setdefault(key, at)

    def disks(self, root):
        """After each operation: its index, the disk, and what had been released by then."""
        disk = Disk(root)
        for at, operation in enumerate(self.operations):
            disk.apply(operation)
            yield at, operation, disk, [key for key, when in self.sent.items() if when <= at]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shim")
    shim = Shim(folder, folder / "d")
    driver = Driver(shim.environment)
    (folder / "d").mkdir()
    site = Site(driver, folder / "d")
    made = Recording(shim, site)
    yield made, folder / "d", driver
    driver.close()


def test_the_recording_is_complete(recorded):
    """The replayed disk without any loss is the real one: nothing that the agent does to its files escapes."""
    made, root, _ = recorded
    assert made.sent.keys() == made.released.keys()
    for _ in made.disks(root):
        pass
    disk = Disk(root)
    for operation in made.operations:
        disk.apply(operation)
    real = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.endswith(("-shm", ".lock"))}
    told = {path: disk.files[file] for path, file in disk.names.items() if file is not None}
    assert {path: told.get(path) for path in real} == real


def test_F8_the_ledger_is_synced_before_the_release_is_sent(recorded, tmp_path):
    made, root, _ = recorded
    sends = set(made.sent.values())
    seen = 0
    for at, _operation, disk, _ in made.disks(root):
        if at in sends:
            seen += 1
            waiting = {path for path in disk.unsynced() if not path.endswith((".lock", ".sock"))}
            assert waiting == set(), "sent before it was durable"
    assert seen == 6
    assert any(operation.kind == "S" and "ledger.sqlite-wal" in operation.path for operation in made.operations)
    (tmp_path / "state").mkdir()
    ledger = open_ledger(tmp_path / "state")
    assert ledger._file.execute("PRAGMA synchronous").fetchall() == [(2,)]  # FULL; Flower's own databases use NORMAL
    ledger.close()


def held(image, made, released):
    """What must be true of a disk that lost power after these releases had been sent."""
    store = DiskStore(image)
    charges = []
    if (image / "ledger.sqlite").exists():
        ledger = open_ledger(image)
        assert ledger.damage() == []
        charges = ledger.charges()
        ledger.close()
    charged = {(c.experiment, c.round): c for c in charges}
    for key in released:
        assert key in charged, f"{key} was released and is not charged"
        assert store.read(*key).reply.update.tobytes() == made.released[key], "a retry would get other bytes"
    for name in store.experiments():
        for number in store.rounds(name):
            record = store.read(name, number)  # whole, or an error
            assert charged[name, number].release_digest in ("", record.digest())
    for key, charge in charged.items():
        if charge.release_digest and charge.round == SCORES:
            assert store.read_scores(charge.experiment, charge.release_digest), "committed, but gone"
        else:
            assert not charge.release_digest or store.read(*key) is not None, "committed, but gone"


@pytest.mark.parametrize(("names", "tear"), [("durable", False), ("all", False), ("durable", True), ("all", True)])
def test_F7_power_loss_at_any_moment(recorded, tmp_path, names, tear):
    made, root, _ = recorded
    chance, images = random.Random(5), 0
    for at, operation, disk, released in made.disks(root):
        if (operation.kind in "WSRX" and operation.kind != "X") or at in made.sent.values():
            disk.after_power_loss(tmp_path / "image", chance if tear else None, names)
            if (tmp_path / "image/state").exists():
                held(tmp_path / "image/state", made, released)
                images += 1
    assert images > 50


def test_F7_an_agent_goes_on_after_a_power_loss(recorded, tmp_path_factory):
    """On a dozen such disks a new agent serves what had left as it was, and goes on with the next round."""
    made, root, driver = recorded
    of = make_experiment("two")
    ends = [made.sent["two", 1] + k for k in (0, 7, 13, 19, 23, 31)]
    for at, _, disk, released in made.disks(root):
        if at not in ends:
            continue
        folder = tmp_path_factory.mktemp("i")
        disk.after_power_loss(folder / "d", random.Random(at), "durable")
        site = Site(driver, folder / "d")
        with site.agent():
            for name, number in released:
                request = train_request(number, make_experiment(name))
                assert site.train(request).update.tobytes() == made.released[name, number]
            assert site.train(train_request(3, of)).round == 3
        site.prompts_are_whole()
