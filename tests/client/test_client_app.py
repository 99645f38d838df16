"""The ClientApp: forwards to the agent, turns every failure into a refused reply, and stays light."""

import dataclasses
import logging
import subprocess
import sys
import time

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType, Metadata, RecordDict
from wire_samples import CONTEXT, EXPERIMENT, message_in

from dpfpl_client.agent.service import AgentServer
from dpfpl_client.node import app as module
from dpfpl_client.node.app import app
from dpfpl_common.errors import RefusedError
from dpfpl_common.experiment import RoundSettings
from dpfpl_common.wire.payloads import EvaluateRequest, Refusal, SiteReply, TrainRequest
from dpfpl_server.federation.messages import reply_in, request_content

EXPERIMENT = dataclasses.replace(EXPERIMENT, rounds=RoundSettings(deadline=3.0))
TRAIN = TrainRequest(EXPERIMENT, 3, CONTEXT)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)


class FakeAgent:
    error = None

    def train(self, request):
        if self.error:
            raise self.error
        return SiteReply("north", request.round, request.global_context, {"personal_local": 0.5})

    def evaluate(self, request):
        return SiteReply("north", request.round, None, {})


@pytest.fixture
def site(tmp_path):
    tmp_path.chmod(0o700)
    agent = FakeAgent()
    server = AgentServer(agent, f"unix:{tmp_path}/agent.sock", tmp_path / "agent.token")
    server.start()
    agent.node = {
        "agent-address": server.address,
        "agent-token-file": str(tmp_path / "agent.token"),
        "site-name": "north",
    }
    agent.server = server
    yield agent
    server.stop(1.0)


def call(content, node, kind=MessageType.TRAIN):
    context = Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={})
    metadata = Metadata(1, "id", 1, 2, "", "", time.time(), 60.0, kind)
    reply = app(Message(content=content, metadata=metadata), context)
    assert reply.has_content()
    return reply.content


def refusal(content, node, request=TRAIN):
    outcome = reply_in(call(content, node), request)
    assert isinstance(outcome, Refusal)
    return outcome


def test_train_and_evaluate_reach_the_agent(site):
    reply = reply_in(call(request_content(TRAIN), site.node), TRAIN)
    assert (reply.site, reply.round, reply.metrics) == ("north", 3, {"personal_local": 0.5})
    np.testing.assert_array_equal(reply.update, CONTEXT)
    content = call(request_content(EVALUATE), site.node, MessageType.EVALUATE)
    assert reply_in(content, EVALUATE).update is None


def test_refusal_of_the_agent_is_a_reply_with_code_and_advice(site):
    site.error = RefusedError(code="BUDGET_SPENT", rule="max_epsilon", message="The cap is 2.", advice="Ask.")
    outcome = refusal(request_content(TRAIN), site.node)
    assert outcome == Refusal("BUDGET_SPENT", "max_epsilon", "The cap is 2 (rule max_epsilon).", "Ask.")


def test_agent_that_is_not_up_is_named(site):
    site.server.stop(0.5)
    outcome = refusal(request_content(TRAIN), site.node)
    assert outcome.code == "AGENT_UNAVAILABLE"


def test_unreadable_request_is_refused(site):
    content = request_content(TRAIN)
    content["dpfpl"]["debug"] = True
    assert refusal(content, site.node).code == "UNKNOWN_FIELD"
    assert refusal(RecordDict(), site.node).code == "MISSING_FIELD"


def test_what_is_in_the_message_is_the_agents_to_judge(site):
    content = request_content(TRAIN)
    content["dpfpl"]["message"] = b"no protobuf"
    assert refusal(content, site.node).code == "MALFORMED_MESSAGE"


def test_the_agent_gets_a_little_less_than_the_deadline_that_travels_with_the_message(site, monkeypatch):
    given = []
    channel = module.AgentChannel
    monkeypatch.setattr(module, "AgentChannel", lambda *settings: given.append(settings[2]) or channel(*settings))
    call(request_content(TRAIN), site.node)
    assert given == [pytest.approx(0.95 * EXPERIMENT.rounds.deadline)]


@pytest.mark.parametrize(
    "change", [{"agent-address": ""}, {"agent-address": 9000}, {"agent-token-file": ""}, {"agent-address": "nowhere"}]
)
def test_incomplete_node_config_is_named(site, change):
    outcome = refusal(request_content(TRAIN), site.node | change)
    assert outcome.code == "NODE_CONFIG"


def test_unforeseen_error_of_the_app_is_a_refusal_too(site, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("patient_123.png")

    monkeypatch.setattr(module, "AgentChannel", broken)
    with caplog.at_level(logging.DEBUG):
        content = call(request_content(TRAIN), site.node)
    told = message_in(content).refusal
    assert told.code == "INTERNAL"
    assert "patient" not in repr(content) + caplog.text
    assert told.message.split()[-1].rstrip(".") in caplog.text


def test_import_is_light_and_telemetry_is_off_and_no_module_leads_to_the_sites_key():
    """The operator's code runs with the ClientApp."""
    program = (
        "import sys, os, dpfpl_client.node.app\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'sklearn', 'PIL', 'dp_accounting', 'scipy'}\n"
        "unwanted = (heavy | {'dpfpl_client.agent.keys'}) & set(sys.modules)\n"
        "print(sorted(unwanted), os.environ['FLWR_TELEMETRY_ENABLED'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "0"]
