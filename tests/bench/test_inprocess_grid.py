"""The in-process grid keeps to Flower's interface and answers as a deployed site would."""

import numpy as np
import pytest

from dpfpl_bench.simulation.in_process import SERVER_NODE, InProcessGrid
from dpfpl_common.errors import DataError, RefusedError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire.payloads import EvaluateRequest, Refusal, SiteReply, TrainRequest
from dpfpl_server.federation.messages import reply_in, request_content

EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=8),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
)
CONTEXT = np.random.default_rng(0).normal(size=(4, 8)).astype("<f4")
TRAIN = TrainRequest(EXPERIMENT, 2, CONTEXT)
EVALUATE = EvaluateRequest(EXPERIMENT, 10, CONTEXT)


class Agent:
    def __init__(self, site, error=None):
        self.site, self.error, self.seen = site, error, []

    def train(self, request):
        if self.error:
            raise self.error
        self.seen.append(request)
        return SiteReply(self.site, request.round, 2 * request.global_context, {"personal_local": 0.5})

    def evaluate(self, request):
        self.seen.append(request)
        return SiteReply(self.site, request.round, None, {"personal_local": 0.75})


def ask(grid, site, request):
    kind = "train" if isinstance(request, TrainRequest) else "evaluate"
    message = grid.create_message(request_content(request), kind, grid.nodes[site], str(request.round))
    (reply,) = grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.metadata.src_node_id == grid.nodes[site]
    assert reply.metadata.dst_node_id == SERVER_NODE
    return reply_in(reply.content, request)


def test_training_and_evaluation_reach_the_right_agent_through_the_wire_format():
    north, south = Agent("north"), Agent("south")
    grid = InProcessGrid({"north": north, "south": south})

    trained = ask(grid, "south", TRAIN)
    evaluated = ask(grid, "south", EVALUATE)

    assert trained.site == "south"
    np.testing.assert_array_equal(trained.update, 2 * CONTEXT)
    assert (evaluated.update, evaluated.metrics) == (None, {"personal_local": 0.75})
    assert not north.seen
    assert south.seen[0].experiment == EXPERIMENT
    assert south.seen[0].global_context is not CONTEXT


NOT_APPROVED = RefusedError(code="NOT_APPROVED", message="Not on the list (rule experiments).", advice="Ask.")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (NOT_APPROVED, "NOT_APPROVED", True),
        (DataError(code="BROKEN_IMAGE", message="patient-17.png is broken."), "BROKEN_IMAGE", False),
        (ZeroDivisionError("patient-17.png"), "INTERNAL", False),
    ],
)
def test_a_sites_error_becomes_its_refusal_without_names_of_its_files(error, code, told, caplog):
    grid = InProcessGrid({"north": Agent("north", error)})

    answer = ask(grid, "north", TRAIN)

    assert isinstance(answer, Refusal)
    assert answer.code == code
    assert ("rule experiments" in answer.message) == told
    assert "patient" not in repr(answer)
    assert ("ZeroDivisionError" in caplog.text) == (code == "INTERNAL")  # a bug of ours is not swallowed


def test_replies_come_once_and_only_for_what_is_asked():
    grid = InProcessGrid({"north": Agent("north"), "south": Agent("south")})
    messages = [grid.create_message(request_content(TRAIN), "train", node, "2") for node in (1, 2)]
    first, second = grid.push_messages(messages)

    (reply,) = grid.pull_messages([second, "unknown"])

    assert reply.metadata.reply_to_message_id == second
    assert grid.pull_messages([second]) == []
    assert len(grid.pull_messages([first, second])) == 1
    assert list(grid.get_node_ids()) == [1, 2]
    with pytest.raises(RuntimeError):
        _ = grid.run
