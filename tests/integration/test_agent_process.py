"""A killed agent: its personal prompt, its ledger and its releases are those of an agent that was never killed."""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from wire_samples import Caller

from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.endpoint import read_token
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.data.builtin import DIGIT_CLASSES
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.ops.processes import child_environment
from dpfpl_common.wire.codec import encode_train_request
from dpfpl_common.wire.payloads import TrainRequest

pytestmark = [pytest.mark.processes, pytest.mark.privacy]

START_S = 90.0
SITE = """
name = "site-0"
[data]
source = "digits"
partition = "pathological"
num_sites = 4
[simulation]
seed = 11
"""
POLICY = """
experiments = ["*"]
max_epsilon_per_experiment = 20.0
max_epsilon_lifetime = 20.0
metrics = "exact"
"""


def write_site(folder):
    folder.mkdir(mode=0o700)
    (folder / "site.toml").write_text(SITE)
    (folder / "policy.toml").write_text(POLICY)
    (folder / "policy.toml").chmod(0o640)
    return folder / "site.toml"


def experiment(width):
    return Experiment(
        name="pilot",
        classes=DIGIT_CLASSES,
        sites=("site-0", "site-1", "site-2", "site-3"),
        model=ModelSettings(width=width),
        prompt=PromptSettings(num_context=4, rank=2),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=2.0, sample_rate=0.1),
        rounds=RoundSettings(number=2, local_steps=1),
    )


def requests(of):
    first = np.zeros(of.context_shape, "<f4")
    second = np.random.default_rng(0).normal(0, 0.01, of.context_shape).astype("<f4")
    return TrainRequest(of, 1, first), TrainRequest(of, 2, second)


@contextlib.contextmanager
def agent_process(site_file):
    """The agent as a process of its own; gone when the block ends, however it ends."""
    log = site_file.parent / "agent.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpfpl_client", "agent", "--site", str(site_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(offline=True),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while "listens on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(20)


def raw_train(settings, request):
    """The bytes on the wire."""
    metadata = (("authorization", f"Bearer {read_token(settings.token_file)}"),)
    with grpc.insecure_channel(settings.agent_address) as connection:
        call = connection.unary_unary("/dpfpl.v1.SiteAgent/Train")
        return call(encode_train_request(request).SerializeToString(deterministic=True), metadata=metadata, timeout=60)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="dpfpl") as name:  # short: a socket's path may have a hundred bytes
        yield Path(name)


@pytest.mark.slow
def test_an_agent_killed_between_rounds_goes_on_as_if_nothing_had_happened(folder):
    torch.set_num_threads(1)
    built = build_agent(load_site(write_site(folder / "whole")))
    pilot = experiment(built.backbone.width)
    first, second = requests(pilot)
    expected = [built.agent.train(request) for request in (first, second)]
    built.lock.release()

    site_file = write_site(folder / "killed")
    settings = load_site(site_file)
    with Caller(settings.agent_address, settings.token_file, 60.0, wait_s=5.0) as agent:
        with agent_process(site_file) as process:
            before = agent.train(first)
            before_bytes = raw_train(settings, first)
            process.kill()
            assert process.wait(20) == -9
        with (
            pytest.raises(RefusedError, match="AGENT_UNAVAILABLE"),
            Caller(settings.agent_address, settings.token_file, 1.0, wait_s=0.1) as dead,
        ):
            dead.train(first)
        with agent_process(site_file):
            assert raw_train(settings, first) == before_bytes
            assert agent.train(first).update.tobytes() == before.update.tobytes()
            last = agent.train(second)

    np.testing.assert_allclose(before.update, expected[0].update, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(last.update, expected[1].update, rtol=1e-5, atol=1e-7)
    assert last.metrics == pytest.approx(expected[1].metrics, abs=0.02)
    prompts = [DiskStore(folder / name / "state").read("pilot", 2).state.context for name in ("whole", "killed")]
    np.testing.assert_allclose(prompts[1], prompts[0], rtol=1e-4, atol=1e-6)
    assert np.abs(prompts[0]).max() > 0
    ledger = Ledger(settings.state_folder / "ledger.sqlite")
    assert [(charge.round, bool(charge.release_digest)) for charge in ledger.charges()] == [(1, True), (2, True)]
    ledger.close()
