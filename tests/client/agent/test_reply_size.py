"""L12: a reply is small, and sending it again computes nothing."""

import dataclasses

import numpy as np
import pytest
from wire_samples import reply_content

from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import PromptLearner
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_common.errors import PayloadError
from dpfpl_common.wire.codec import MAX_CONTEXT_BYTES, MAX_MESSAGE_BYTES
from dpfpl_common.wire.payloads import METRIC_NAMES, SiteReply, TrainRequest
from dpfpl_server.federation.messages import content_bytes, request_content


def largest(experiment, vectors):
    prompt = dataclasses.replace(experiment.prompt, num_context=vectors, init_text="")
    big = dataclasses.replace(experiment, prompt=prompt, model=dataclasses.replace(experiment.model, width=512))
    return TrainRequest(big, 1, np.zeros(big.context_shape, "<f4"))


def test_L12_the_largest_reply_and_request_fit_in_a_mebibyte(experiment):
    request = largest(experiment, MAX_CONTEXT_BYTES // (4 * 512))
    reply = SiteReply("north", 1, request.global_context, dict.fromkeys(METRIC_NAMES, 1 / 3), signature=b"s" * 64)
    assert content_bytes(reply_content(reply, request)) <= 1 << 20
    assert content_bytes(request_content(request)) <= 1 << 20 < MAX_MESSAGE_BYTES


def test_L12_a_larger_context_is_refused_before_it_is_sent(experiment):
    with pytest.raises(PayloadError) as caught:
        request_content(largest(experiment, MAX_CONTEXT_BYTES // (4 * 512) + 1))
    assert caught.value.code == "MESSAGE_TOO_LARGE"


def test_L12_sending_a_reply_again_computes_nothing(tmp_path, backbone, features, experiment, monkeypatch):
    computed = []
    train_round = PromptLearner.train_round

    def counted(*arguments, **more):
        computed.append(1)
        return train_round(*arguments, **more)

    monkeypatch.setattr(PromptLearner, "train_round", counted)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    agent = SiteAgent("north", backbone, features, None, ledger, DiskStore(tmp_path), SystemRandomness())
    request = TrainRequest(experiment, 1, np.zeros(experiment.context_shape, "<f4"))
    first = agent.train(request)
    for _ in range(3):
        np.testing.assert_array_equal(agent.train(request).update, first.update)
    assert len(computed) == 1
    ledger.close()
