"""What leaves an agent is signed: deterministically, also when repeated, and with nobody else's key."""

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from failures import refused

from dpfpl_client.agent.build import build_agent
from dpfpl_client.agent.keys import SigningAgent, load_signing_key
from dpfpl_client.site.settings import load_site
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
def agent(site):
    return SigningAgent(site.agent, Ed25519PrivateKey.from_private_bytes(b"k" * 32))


@pytest.fixture
def requests(experiment):
    start = np.zeros(experiment.context_shape, dtype="<f4")
    return TrainRequest(experiment, 1, start), EvaluateRequest(experiment, 1, start)


def test_every_reply_is_signed_as_what_it_is(agent, requests):
    public = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
    train, evaluate = requests
    update, accuracies = agent.train(train), agent.evaluate(evaluate)
    public.verify(update.signature, signed_text(train, update))
    public.verify(accuracies.signature, signed_text(evaluate, accuracies))
    with pytest.raises(InvalidSignature):
        public.verify(update.signature, signed_text(evaluate, update))


def test_a_replayed_reply_is_the_same_bytes(agent, requests):
    """Stored with the release, the signature would be the same: it is recomputed, and Ed25519 has no randomness."""
    train, _ = requests
    first, again = agent.train(train), agent.train(train)
    assert first.signature
    assert len({wire.encode_reply(reply, train).SerializeToString(deterministic=True) for reply in (first, again)}) == 1


def test_a_refusal_stays_a_refusal(agent, requests):
    train, _ = requests
    agent.train(train)
    other = TrainRequest(train.experiment, 1, train.global_context + 1)
    refused("KEY_REUSED_OTHER_DIGEST", agent.train, other)


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
    error = refused("SIGNING_KEY", load_signing_key, path)
    assert what in error.message
    assert "chmod 600" in error.advice


def test_a_site_of_a_federation_needs_its_key_and_another_does_not(fresh_site):
    built = build_agent(load_site(fresh_site))
    assert built.endpoint is built.agent
    built.lock.release()
    text = fresh_site.read_text()
    fresh_site.write_text(f'{text}\n[server]\naddress = "127.0.0.1:9092"\n')
    refused("SIGNING_KEY", build_agent, load_site(fresh_site))
    write_key(fresh_site.parent / "agent.key", pem(Ed25519PrivateKey.generate()))
    built = build_agent(load_site(fresh_site))
    assert isinstance(built.endpoint, SigningAgent)
    built.lock.release()
