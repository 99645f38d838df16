"""What leaves an agent is signed: deterministically, also when repeated, and with nobody else's key."""

import os
import subprocess
import sys

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.keys import SigningAgent, load_signing_key
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest, signed_text


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_key(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def agent(tmp_path, backbone, features):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    core = SiteAgent("north", backbone, features, None, ledger, DiskStore(tmp_path), SystemRandomness())
    yield SigningAgent(core, Ed25519PrivateKey.from_private_bytes(b"k" * 32))
    ledger.close()


@pytest.fixture
def requests(experiment):
    start = np.zeros(experiment.context_shape, dtype="<f4")
    return TrainRequest(experiment, 1, start), EvaluateRequest(experiment, 1, start)


def test_every_reply_is_signed_as_what_it_is(agent, requests):
    public = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
    train, evaluate = requests
    update, accuracies = agent.train(train), agent.evaluate(evaluate)
    public.verify(update.signature, signed_text(train.experiment, "train", update))
    public.verify(accuracies.signature, signed_text(train.experiment, "evaluate", accuracies))
    with pytest.raises(InvalidSignature):
        public.verify(update.signature, signed_text(train.experiment, "evaluate", update))


def test_a_replayed_reply_is_the_same_bytes(agent, requests):
    """Stored with the release, the signature would be the same: it is recomputed, and Ed25519 has no randomness."""
    train, _ = requests
    first, again = agent.train(train), agent.train(train)
    assert first.signature
    assert len({wire.encode_reply(reply, train).SerializeToString(deterministic=True) for reply in (first, again)}) == 1


def test_a_refusal_stays_a_refusal(agent, requests):
    train, _ = requests
    agent.train(train)
    with pytest.raises(RefusedError) as caught:
        agent.train(TrainRequest(train.experiment, 1, train.global_context + 1))
    assert caught.value.code == "KEY_REUSED_OTHER_DIGEST"


def test_the_key_is_read_from_a_file_of_this_user_alone(tmp_path):
    key = Ed25519PrivateKey.generate()
    loaded = load_signing_key(write_key(tmp_path / "agent.key", pem(key)))
    assert loaded.public_key() == key.public_key()


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [
        (None, 0o600, "cannot be read"),
        (pem(Ed25519PrivateKey.generate()), 0o640, "not this user's alone"),
        (pem(Ed25519PrivateKey.generate()), 0o604, "not this user's alone"),
        (b"", 0o600, "no Ed25519 key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, "no Ed25519 key"),
        (pem(ec.generate_private_key(ec.SECP384R1())), 0o600, "no Ed25519 key"),
    ],
)
def test_a_missing_open_or_other_key_is_refused_with_what_to_do(tmp_path, content, mode, what):
    path = tmp_path / "agent.key"
    if content is not None:
        write_key(path, content, mode)
    with pytest.raises(StateError) as caught:
        load_signing_key(path)
    assert caught.value.code == "SIGNING_KEY"
    assert what in caught.value.message
    assert "chmod 600" in caught.value.advice


def test_a_site_of_a_federation_needs_its_key_and_another_does_not(fresh_site):
    built = build_agent(load_site(fresh_site))
    assert built.endpoint is built.agent
    built.lock.release()
    text = fresh_site.read_text()
    fresh_site.write_text(f'{text}\n[server]\naddress = "127.0.0.1:9092"\n')
    with pytest.raises(StateError) as caught:
        build_agent(load_site(fresh_site))
    assert caught.value.code == "SIGNING_KEY"
    write_key(fresh_site.parent / "agent.key", pem(Ed25519PrivateKey.generate()))
    built = build_agent(load_site(fresh_site))
    assert isinstance(built.endpoint, SigningAgent)
    built.lock.release()


def test_the_client_app_does_not_know_where_the_key_is():
    """The operator's code runs with the ClientApp: neither its settings nor its modules lead to the key."""
    code = "import sys, dpfpl_client.node.app; print('dpfpl_client.agent.keys' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip().endswith("False")
