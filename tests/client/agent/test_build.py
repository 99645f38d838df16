"""Building an agent: one per state folder, nothing served if anything is wrong."""

import signal
import subprocess
import sys
import time

import pytest
from failures import refused

from dpfpl_client.agent import build
from dpfpl_client.agent.build import build_agent, randomness_of
from dpfpl_client.agent.ledger.anchor import StateLock
from dpfpl_client.learning.step import SeededRandomness, SystemRandomness
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DataError

ACCOUNT = """
import sys
from dpfpl_common.privacy.accounting import PrivacyEvent, epsilon, exceeds, exceeds_adaptively, load_library
load_library()
before = set(sys.modules)
for mechanism, rate in (("one_shot", 1.0), ("per_step", 0.1)):
    events = [PrivacyEvent("operator", mechanism, 1.0, rate, 10)]
    epsilon(events, 1e-5)
    exceeds(events, 1e-5, 1.0)
    exceeds_adaptively(events, 1e-5, 1.0)
print(sorted(set(sys.modules) - before))
"""
HOLD = (
    "import sys, time; from pathlib import Path; from dpfpl_client.agent.ledger.anchor import StateLock;"
    "lock = StateLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


def test_F13_a_second_agent_on_the_same_state_is_refused_at_once(tmp_path):
    first = StateLock(tmp_path / "state")
    started = time.monotonic()
    refused("STATE_LOCKED", StateLock, tmp_path / "state")
    assert time.monotonic() - started < 10.0
    StateLock(tmp_path / "other").release()
    first.release()
    StateLock(tmp_path / "state").release()


def test_F14_a_killed_agent_leaves_the_state_free(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refused("STATE_LOCKED", StateLock, tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert (tmp_path / "agent.lock").exists()
        StateLock(tmp_path).release()
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()


def test_an_agent_is_built_from_site_toml(fresh_site):
    settings = load_site(fresh_site)
    steps = []
    built = build_agent(settings, lambda *step: steps.append(step))
    assert built.class_names == ("bright", "dark")
    assert (len(built.data.train), len(built.data.test)) == (8, 4)
    assert steps[-1][0] == steps[-1][1]
    assert isinstance(built.agent._randomness, SystemRandomness)
    assert built.agent._randomness.is_private
    refused("STATE_LOCKED", build_agent, settings)
    built.lock.release()
    steps.clear()
    build_agent(settings, lambda *step: steps.append(step)).lock.release()
    assert steps == []  # the second start computes no feature again


def test_no_request_waits_for_the_accountants_import(fresh_site, monkeypatch):
    loaded = []
    monkeypatch.setattr(build, "load_library", lambda: loaded.append(True))
    built = build_agent(load_site(fresh_site))
    built.lock.release()
    assert loaded == [True]


def test_what_was_loaded_is_all_that_an_epsilon_needs():
    done = subprocess.run([sys.executable, "-c", ACCOUNT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_failed_start_leaves_the_state_free(fresh_site, image_folder):
    fresh_site.write_text(fresh_site.read_text().replace(str(image_folder), "/nowhere"))
    with pytest.raises(DataError):
        build_agent(load_site(fresh_site))
    StateLock(load_site(fresh_site).state_folder).release()


def test_releases_without_a_ledger_are_refused(trained_site):
    state = load_site(trained_site).state_folder
    build_agent(load_site(trained_site)).lock.release()
    for file in state.glob("ledger.sqlite*"):
        file.unlink()
    refused("LEDGER_MISSING", build_agent, load_site(trained_site))
    assert not (state / "ledger.sqlite").exists()


def test_a_damaged_ledger_is_refused(trained_site):
    for file in load_site(trained_site).state_folder.glob("ledger.sqlite*"):
        file.write_bytes(b"gone" * 1000)
    refused("LEDGER_UNREADABLE", build_agent, load_site(trained_site))


def test_seeded_randomness_needs_a_simulation(tmp_path, fresh_site):
    (fresh_site.parent / "site.toml").write_text('name = "a"\n[data]\nsource = "shapes"\n[simulation]\nseed = 4\n')
    randomness = randomness_of(load_site(fresh_site))
    assert isinstance(randomness, SeededRandomness)
    assert not randomness.is_private
