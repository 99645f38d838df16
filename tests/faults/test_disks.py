"""Disks that fail, are full or lose power: nothing leaves, the old prompt stays, charged >= released, and an error of
the disk is never retried."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from agent_driver import open_ledger
from killable import Site, make_experiment, train_request
from storage_shim import Disk, missing_tools
from wire_samples import Caller

from dpfpl_client.agent.ledger.book import SCORES
from dpfpl_client.agent.store import DiskStore
from dpfpl_common.errors import RefusedError
from dpfpl_common.ops.processes import child_environment
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = [pytest.mark.processes, pytest.mark.privacy]


@pytest.fixture(scope="module")
def shim(driver):
    if driver.shim is None:
        pytest.skip(missing_tools())
    return driver.shim


def code(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    assert not any(word in caught.value.message for word in ("sqlite", "/tmp", "Errno"))
    return caught.value.code


@pytest.mark.parametrize(
    ("part", "expected", "restarted"),
    [
        ("ledger.sqlite", "LEDGER_NOT_DURABLE", 2),
        (".round-00002", "RECORD_NOT_DURABLE", 2),
        ("experiments/pilot", "RECORD_NOT_DURABLE", 2),
    ],
)
def test_F9_after_a_sync_that_failed_once_nothing_is_released_until_the_agent_is_started_anew(
    shim, site, part, expected, restarted
):
    with site.agent():
        first = site.train(train_request(1))
        shim.set(eio=1, eio_part=part)
        for _ in range(3):  # only the first sync fails; the others would succeed
            assert code(site.train, train_request(2)) == expected
        assert shim.failed == 1
        assert code(site.train, train_request(1, make_experiment("other"))) in (expected, "LEDGER_NOT_DURABLE")
        with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 5.0) as agent:
            assert agent.is_serving()  # it answers: that nothing is released, and why
    assert len(site.store.rounds("pilot")) <= 2
    with site.agent():  # the administrator looked at the disk
        assert site.train(train_request(1)).update.tobytes() == first.update.tobytes()
        assert site.train(train_request(2)).round == 2
    assert restarted <= len(site.charges) <= restarted + 1
    site.prompts_are_whole()


@pytest.mark.parametrize(("part", "kept"), [("ledger.sqlite", 1), (".round-00002", 2), ("registry", 2)])
def test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers(shim, site, part, kept):
    with site.agent():
        site.train(train_request(1))
        before = site.store.read("pilot", 1).digest()
        shim.set(full_part=part)
        assert code(site.train, train_request(2)) == "STORAGE_FULL"
        assert shim.failed > 0
        assert site.store.rounds("pilot") == [1]
        assert site.store.read("pilot", 1).digest() == before
        assert len(site.charges) == kept
        assert list((site.state / "experiments/pilot").glob(".*")) == []  # what was begun does not eat the space
        shim.set()
        assert site.train(train_request(2)).round == 2
        assert site.train(train_request(3)).round == 3
    assert len(site.charges) == kept + 2
    site.prompts_are_whole()


def test_F10_a_full_disk_at_the_last_global_context(shim, site):
    of = make_experiment()
    last = EvaluateRequest(of, 1, np.full(of.context_shape, 1e-3, "<f4"))
    with site.agent():
        site.train(train_request(1))
        with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 30.0) as agent:
            shim.set(full_part="final")
            assert code(agent.evaluate, last) == "STORAGE_FULL"
            assert site.store.read_final("pilot") is None
            shim.set()
            agent.evaluate(last)
    np.testing.assert_array_equal(site.store.read_final("pilot"), last.global_context)


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
def recorded(driver, shim):
    site = Site(driver, driver.folder())
    return Recording(shim, site), site.state.parent, driver


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


FULL = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../shared"]
import torch
from agent_driver import build, site_features
from dpfpl_client.agent.build import StateLock
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import StateError
from killable import train_request

torch.set_num_threads(1)
state, ballast = Path(sys.argv[2]) / "state", Path(sys.argv[2]) / "ballast"
StateLock(state)
backbone = load_backbone("embedded")
agent = build(state, backbone, site_features(backbone), {})
codes, first = [], agent.train(train_request(1)).update.tobytes()
with ballast.open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
for attempt in range(2):
    try:
        agent.train(train_request(2))
    except StateError as error:
        codes.append(error.code)
same = agent.train(train_request(1)).update.tobytes() == first
ballast.unlink()
codes.append(agent.train(train_request(2)).round)
print(json.dumps({"codes": codes, "same": same}))
"""


def test_F10_a_real_file_system_without_space():
    """The same on a small tmpfs, in a mount namespace of its own, so that nothing has to be cleaned up."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and mount namespaces")
    with tempfile.TemporaryDirectory(prefix="dpfpl") as folder:
        mount = f"mount -t tmpfs -o size=400k,mode=700 none {folder} && exec "
        program = f'"{sys.executable}" -c "$PROGRAM" "{Path(__file__).parent}" {folder}'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount + program],
            env=child_environment({"OMP_NUM_THREADS": "1", "PROGRAM": FULL}, offline=True),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"codes": ["STORAGE_FULL", "STORAGE_FULL", 2], "same": True}
