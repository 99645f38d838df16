"""U7: the server believes a reply only if the agent of the site that it names signed exactly this reply."""

import numpy as np
import pytest
import server_samples
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord
from wire_samples import array_of, content_of, message_in

from dpfpl_bench.simulation.in_process import InProcessGrid
from dpfpl_client.agent.keys import SigningAgent
from dpfpl_common.errors import ConfigError
from dpfpl_common.wire.codec import RECORD
from dpfpl_common.wire.payloads import SiteReply, TrainRequest
from dpfpl_server.federation.rounds import DPFPLStrategy

SITES = ("east", "north", "south")
KEYS = {site: Ed25519PrivateKey.from_private_bytes(site.ljust(32).encode()) for site in (*SITES, "stranger")}


def public(key):
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


PUBLIC = {site: public(KEYS[site]) for site in SITES}


def make_experiment(name="pilot"):
    rounds, privacy = {"number": 2, "deadline": 1.0}, {"nominal_site_size": 10, "sample_rate": 1.0}
    return server_samples.make_experiment(SITES, name=name, tolerated_dropouts=1, rounds=rounds, **privacy)


class Agent:
    def __init__(self, site):
        self.site = site

    def train(self, request):
        update = np.full(request.experiment.context_shape, 0.01, dtype="<f4")
        return SiteReply(self.site, request.round, update, {"personal_local": 0.5})

    def evaluate(self, request):
        return SiteReply(self.site, request.round, None, {"personal_local": 0.5})


class Grid(InProcessGrid):
    """Spoils what the node of ``north`` sends, as code in its SuperNode could."""

    def __init__(self, agents, spoil):
        super().__init__(agents)
        self.spoil = spoil
        self.earlier = {}

    def pull_messages(self, ids):
        replies = super().pull_messages(ids)
        north = self.nodes["north"]
        contents = {reply.metadata.src_node_id: reply for reply in replies}
        for reply in replies:
            if reply.metadata.src_node_id == north:
                kept = self.earlier.setdefault(reply.metadata.message_type, reply.content)
                self.spoil(reply, contents.get(self.nodes["east"]), kept)
        return replies


def run(spoil, experiment=None, keys=PUBLIC, signers=KEYS):
    agents = {site: SigningAgent(Agent(site), signers[site]) for site in SITES}
    grid = Grid(agents, spoil)
    strategy = DPFPLStrategy(experiment or make_experiment(), grid.nodes, keys=keys, site_wait_s=0.0)
    return strategy.run(grid), strategy


def change(reply, spoil):
    """The reply with its message changed."""
    message = message_in(reply.content)
    spoil(message.reply)
    reply.content = content_of(message)


def head(reply, **changes):
    change(reply, lambda answer: [setattr(answer, name, value) for name, value in changes.items()])


def copy_of_the_east(reply, east, earlier):
    """Another site's signed reply, sent from this node."""
    reply.content = content_of(message_in(east.content))


def its_update_as_mine(reply, east, earlier):
    copy_of_the_east(reply, east, earlier)
    head(reply, site="north")


def an_earlier_round(reply, east, earlier):
    number = message_in(reply.content).reply.round
    reply.content = content_of(message_in(earlier))
    head(reply, round=number)


def another_update(reply, east, earlier):
    if message_in(reply.content).reply.HasField("update"):
        update = array_of(np.full((4, 8), 0.011, dtype="<f4"))
        change(reply, lambda answer: answer.update.CopyFrom(update))
    else:
        head(reply, signature=b"")


def better_metrics(reply, east, earlier):
    change(reply, lambda answer: answer.metrics.update(personal_local=0.99))


def a_field_that_nobody_signs(reply, east, earlier):
    reply.content[RECORD] = ConfigRecord({**reply.content[RECORD], "seconds": 99.0})


ATTACKS = {
    "no signature": (lambda reply, east, earlier: head(reply, signature=b""), "SIGNATURE_MISSING"),
    "made-up signature": (lambda reply, east, earlier: head(reply, signature=b"s" * 64), "SIGNATURE_WRONG"),
    "short signature": (lambda reply, east, earlier: head(reply, signature=b"s"), "BAD_SIGNATURE"),
    "another site's reply": (copy_of_the_east, "OTHER_SITE"),
    "another site's reply in my name": (its_update_as_mine, "SIGNATURE_WRONG"),
    "other metrics": (better_metrics, "SIGNATURE_WRONG"),
    "a field that nobody signs": (a_field_that_nobody_signs, "UNKNOWN_FIELD"),
}


def test_U7_signed_replies_are_taken():
    checkpoint, strategy = run(lambda reply, east, earlier: None)
    assert [entry["sites"] for entry in checkpoint.history] == [list(SITES)] * 2
    assert set(strategy.final_metrics) == set(SITES)


@pytest.mark.parametrize("what", ATTACKS)
def test_U7_a_reply_that_the_sites_agent_did_not_sign_is_dropped(what):
    spoil, code = ATTACKS[what]
    checkpoint, strategy = run(spoil)
    for entry in checkpoint.history:
        assert entry["sites"] == ["east", "south"]
        assert entry["dropped"]["north"].split(":")[0] == code
    assert set(strategy.final_metrics) == {"east", "south"}


def test_U7_a_changed_update_is_dropped():
    checkpoint, _ = run(another_update)
    assert [entry["dropped"]["north"].split(":")[0] for entry in checkpoint.history] == ["SIGNATURE_WRONG"] * 2


def test_U7_a_reply_of_an_earlier_round_does_not_pass_for_this_rounds():
    checkpoint, _ = run(an_earlier_round)
    first, second = checkpoint.history
    assert "north" in first["sites"]
    assert second["dropped"]["north"].startswith("SIGNATURE_WRONG")


def test_U7_the_same_reply_under_another_experiment_is_dropped():
    """A reply of this round and site, but signed for a configuration with another name."""
    stale = SigningAgent(Agent("north"), KEYS["north"])

    def spoil(reply, east, earlier):
        answer = message_in(reply.content).reply
        if answer.HasField("update"):
            request = TrainRequest(make_experiment("another"), answer.round, np.zeros((4, 8), dtype="<f4"))
            head(reply, signature=stale.train(request).signature)

    checkpoint, _ = run(spoil)
    assert [entry["dropped"]["north"].split(":")[0] for entry in checkpoint.history] == ["SIGNATURE_WRONG"] * 2


def test_U7_a_site_with_another_key_than_the_registers_is_dropped():
    checkpoint, _ = run(lambda *_: None, signers={**KEYS, "north": KEYS["stranger"]})
    assert all(entry["dropped"]["north"].startswith("SIGNATURE_WRONG") for entry in checkpoint.history)


@pytest.mark.parametrize(
    "line", ["", "ssh-rsa AAAA", "rubbish", public(ec.generate_private_key(ec.SECP384R1()))], ids=str.split
)
def test_a_register_without_a_signing_key_is_refused_before_anything_is_sent(line):
    with pytest.raises(ConfigError) as caught:
        DPFPLStrategy(make_experiment(), dict.fromkeys(SITES, 1), keys={**PUBLIC, "north": line})
    assert caught.value.code == "NO_SIGNING_KEY"
    assert "provision --site north --force" in caught.value.advice


def test_unsigned_sites_have_to_be_asked_for():
    with pytest.raises(TypeError):
        DPFPLStrategy(make_experiment(), dict.fromkeys(SITES, 1))
