"""Disks that fail or are full: nothing leaves, the old prompt stays, and an error of the disk is never retried."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from killable import Driver, Site, make_experiment, train_request
from storage_shim import Shim, missing_tools
from wire_samples import Caller

from dpfpl_common.errors import RefusedError
from dpfpl_common.ops.processes import child_environment
from dpfpl_common.wire.payloads import EvaluateRequest

pytestmark = [pytest.mark.processes, pytest.mark.privacy]
needs_shim = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if missing_tools():
        pytest.skip(missing_tools())
    folder = Path(tempfile.mkdtemp(prefix="dpfpl"))
    return Shim(tmp_path_factory.mktemp("shim"), folder), folder


@pytest.fixture(scope="module")
def driver(shim):
    made = Driver(shim[0].environment)
    yield made
    made.close()


@pytest.fixture
def site(driver, shim, request):
    folder = Path(tempfile.mkdtemp(dir=shim[1], prefix="s"))
    yield Site(driver, folder)
    shim[0].set()


def code(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    assert not any(word in caught.value.message for word in ("sqlite", "/tmp", "Errno"))
    return caught.value.code


@needs_shim
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
        shim[0].set(eio=1, eio_part=part)
        for _ in range(3):  # only the first sync fails; the others would succeed
            assert code(site.train, train_request(2)) == expected
        assert shim[0].failed == 1
        assert code(site.train, train_request(1, make_experiment("other"))) in (expected, "LEDGER_NOT_DURABLE")
        with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 5.0) as agent:
            assert agent.is_serving()  # it answers: that nothing is released, and why
    assert len(site.store.rounds("pilot")) <= 2
    with site.agent():  # the administrator looked at the disk
        assert site.train(train_request(1)).update.tobytes() == first.update.tobytes()
        assert site.train(train_request(2)).round == 2
    assert restarted <= len(site.charges) <= restarted + 1
    site.prompts_are_whole()


@needs_shim
@pytest.mark.parametrize(("part", "kept"), [("ledger.sqlite", 1), (".round-00002", 2), ("registry", 2)])
def test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers(shim, site, part, kept):
    with site.agent():
        site.train(train_request(1))
        before = site.store.read("pilot", 1).digest()
        shim[0].set(full_part=part)
        assert code(site.train, train_request(2)) == "STORAGE_FULL"
        assert shim[0].failed > 0
        assert site.store.rounds("pilot") == [1]
        assert site.store.read("pilot", 1).digest() == before
        assert len(site.charges) == kept
        assert list((site.state / "experiments/pilot").glob(".*")) == []  # what was begun does not eat the space
        shim[0].set()
        assert site.train(train_request(2)).round == 2
        assert site.train(train_request(3)).round == 3
    assert len(site.charges) == kept + 2
    site.prompts_are_whole()


@needs_shim
def test_F10_a_full_disk_at_the_last_global_context(shim, site):
    of = make_experiment()
    last = EvaluateRequest(of, 1, np.full(of.context_shape, 1e-3, "<f4"))
    with site.agent():
        site.train(train_request(1))
        with Caller(f"unix:{site.state}/agent.sock", site.state / "agent.token", 30.0) as agent:
            shim[0].set(full_part="final")
            assert code(agent.evaluate, last) == "STORAGE_FULL"
            assert site.store.read_final("pilot") is None
            shim[0].set()
            agent.evaluate(last)
    np.testing.assert_array_equal(site.store.read_final("pilot"), last.global_context)


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
