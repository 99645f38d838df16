"""Rounds over sites that fail in every way: one bad site never stops a round, and no half round is ever kept."""

import dataclasses
import time

import numpy as np
import pytest
import server_samples
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from wire_samples import array_of, content_of, message_in

from dpfpl_bench.simulation.in_process import InProcessGrid
from dpfpl_common.errors import RefusedError, RoundError
from dpfpl_common.privacy.noise import SeededNoise
from dpfpl_common.wire.codec import RECORD
from dpfpl_common.wire.payloads import SiteReply, request_digest
from dpfpl_server.cli.options import FAILED, exit_code_of
from dpfpl_server.federation import exchange as exchange_module
from dpfpl_server.federation import rounds as module
from dpfpl_server.federation.aggregation import update_norm_cap
from dpfpl_server.federation.rounds import DPFPLStrategy

SITES = ("east", "north", "south", "west")
WIDTH = 8
SHAPE = (4, WIDTH)


def make_experiment(dropouts=0, sites=SITES, trust="distributed", aggregation=None, **rounds):
    return server_samples.make_experiment(
        sites,
        tolerated_dropouts=dropouts,
        trust=trust,
        nominal_site_size=10,
        sample_rate=1.0,
        aggregation=aggregation,
        rounds={"deadline": 1.0} | rounds,
    )


class FakeAgent:
    """Answers with an update that is a function of site, round and what it was sent; keeps and repeats releases."""

    def __init__(self, site):
        self.site = site
        self.requests, self.evaluations = [], []
        self.releases = {}

    def train(self, request):
        self.requests.append(request)
        key = request_digest(request)
        if key not in self.releases:
            seed = SITES.index(self.site) * 1000 + request.round if self.site in SITES else request.round
            update = np.random.default_rng(seed).normal(0, 0.01, request.experiment.context_shape)
            update += 0.1 * request.global_context
            self.releases[key] = SiteReply(
                self.site, request.round, update.astype("<f4"), {"personal_local": 0.5} if request.evaluate else {}
            )
        return self.releases[key]

    def evaluate(self, request):
        self.evaluations.append(request)
        return SiteReply(self.site, request.round, None, {"personal_local": 0.75})


class Grid(InProcessGrid):
    """Counts what is pushed, can hide nodes, and can spoil what a site sends."""

    def __init__(self, agents, spoil=None, offline=()):
        super().__init__(agents)
        self.spoil = spoil or {}
        self.offline = set(offline)
        self.pushed = []

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if self._names[node] not in self.offline]

    def push_messages(self, messages):
        messages = list(messages)
        self.pushed += [
            (m.metadata.message_type, self._names[m.metadata.dst_node_id], int(m.metadata.group_id)) for m in messages
        ]
        return super().push_messages(messages)

    def pull_messages(self, ids):
        replies = []
        for reply in super().pull_messages(ids):
            site = self._names[reply.metadata.src_node_id]
            if site in self.spoil and reply.metadata.message_type == "train":
                reply = self.spoil[site](reply)
            replies += [] if reply is None else [reply]
        return replies


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The waits are real but short."""
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.01)


def make_agents(sites=SITES):
    return {site: FakeAgent(site) for site in sites}


class Run:
    """A strategy over a grid of fake sites, with what it said and kept."""

    def __init__(self, experiment=None, agents=None, grid=None, spoil=None, offline=(), **settings):
        self.experiment = experiment or make_experiment()
        self.agents = agents or make_agents(self.experiment.sites)
        self.grid = grid or Grid(self.agents, spoil, offline)
        self.statuses, self.saved = [], []
        told = {"keys": None, "on_status": self.statuses.append, "on_checkpoint": self.saved.append, "site_wait_s": 0.0}
        self.strategy = DPFPLStrategy(self.experiment, self.grid.nodes, **told | settings)

    def go(self):
        return self.strategy.run(self.grid)

    def fails(self):
        with pytest.raises(RoundError) as caught:
            self.go()
        return caught.value

    def said(self, phase):
        return [status for status in self.statuses if status["phase"] == phase]

    def column(self, key):
        return [entry[key] for entry in self.strategy.checkpoint.history]


def assert_same_prompt(checkpoint, other):
    np.testing.assert_array_equal(checkpoint.global_context, other.go().global_context)


def refusing(code, answer=None, when=lambda request: True):
    """A site's ``train`` that refuses with this code, where ``when`` says so."""

    def train(request):
        if when(request):
            raise RefusedError(code=code, message="No.", advice="Ask.")
        return answer(request)

    return train


def agents_with(site, code, when=lambda request: True):
    """All sites, one of which refuses."""
    agents = make_agents()
    agents[site].train = refusing(code, agents[site].train, when)
    return agents


# What one bad site can send


def with_message(change):
    """The reply, its message changed as the site's own code could have written it."""

    def spoil(reply):
        message = message_in(reply.content)
        change(message)
        reply.content = content_of(message)
        return reply

    return spoil


def with_update(array):
    return with_message(lambda message: message.reply.update.CopyFrom(array_of(array)))


def with_head(**changes):
    def change(message):
        for name, value in changes.items():
            setattr(message.reply, name, value)

    return with_message(change)


def with_envelope(**changes):
    def spoil(reply):
        reply.content[RECORD] = ConfigRecord({**reply.content[RECORD], **changes})
        return reply

    return spoil


def with_extra(reply):
    reply.content["more"] = MetricRecord({"num-examples": 10**12})
    return reply


def with_unlisted_field(reply):
    """Protobuf keeps fields that its schema does not list: 100, a whole number."""
    message = reply.content[RECORD]["message"] + b"\xa0\x06\x01"
    return with_envelope(message=message)(reply)


def with_norm(share):
    """Of the cap: an update in one coordinate."""
    update = np.zeros((4, WIDTH), dtype="<f4")
    update[1, 2] = share * update_norm_cap(make_experiment(dropouts=1))
    return with_update(update)


def with_metrics(**metrics):
    return with_message(lambda message: message.reply.metrics.update(metrics))


def without(name):
    return with_message(lambda message: message.reply.ClearField(name))


ONE_NAN = np.zeros(SHAPE, dtype="<f4")
ONE_NAN[2, 3] = np.nan
HOSTILE = {
    "nan": (with_update(ONE_NAN), "NONFINITE_INPUT"),
    "infinity": (with_update(np.full(SHAPE, np.inf, dtype="<f4")), "NONFINITE_INPUT"),
    "shape (1,)": (with_update(np.zeros(1, dtype="<f4")), "WRONG_SHAPE"),
    "shape (4,)": (with_update(np.zeros(4, dtype="<f4")), "WRONG_SHAPE"),
    "transposed": (with_update(np.zeros((WIDTH, 4), dtype="<f4")), "WRONG_SHAPE"),
    "empty": (with_update(np.zeros((0, WIDTH), dtype="<f4")), "WRONG_SHAPE"),
    "complex": (with_update(np.zeros(SHAPE, dtype=np.complex64)), "WRONG_SIZE"),
    "float64": (with_update(np.zeros(SHAPE)), "WRONG_SIZE"),
    "huge": (with_update(np.full(SHAPE, 9e5, dtype="<f4")), "NORM_TOO_LARGE"),
    "1e30": (with_update(np.full(SHAPE, 1e30, dtype="<f4")), "NORM_TOO_LARGE"),
    "other site": (with_head(site="north"), "OTHER_SITE"),
    "unknown site": (with_head(site="nowhere"), "UNKNOWN_SITE"),
    "earlier round": (with_head(round=0), "WRONG_ROUND"),
    "later round": (with_head(round=99), "WRONG_ROUND"),
    "version": (with_envelope(protocol_version=99), "VERSION_MISMATCH"),
    "version inside": (with_message(lambda message: setattr(message, "protocol_version", 99)), "VERSION_MISMATCH"),
    "more records": (with_extra, "UNKNOWN_FIELD"),
    "a field more": (with_unlisted_field, "UNKNOWN_FIELD"),
    "no message of ours": (with_envelope(message=b"{}"), "MALFORMED_MESSAGE"),
    "said twice": (lambda reply: with_envelope(message=2 * reply.content[RECORD]["message"])(reply), "NOT_CANONICAL"),
    "1 % over the cap": (with_norm(1.01), "NORM_TOO_LARGE"),
    **{
        f"num-examples {value!r}": (with_envelope(**{"num-examples": value}), "UNKNOWN_FIELD")
        for value in (10**12, 0, -5, float("nan"), [1, 2])
    },
    "no update": (without("update"), "MISSING_UPDATE"),
    "nothing": (with_message(lambda message: message.ClearField("reply")), "MISSING_FIELD"),
    "no record": (lambda reply: reply.content.pop(RECORD) and reply, "MISSING_FIELD"),
    "metric nan": (with_metrics(personal_local=float("nan")), "BAD_METRIC"),
    "metric above one": (with_metrics(personal_local=1.5), "BAD_METRIC"),
    "other metric": (with_metrics(loss=0.5), "UNKNOWN_METRIC"),
    "error": (lambda reply: Message(Error(code=2, reason="x"), reply_to=_question(reply)), "NODE_ERROR"),
    "silence": (lambda reply: None, "NO_REPLY"),
}


def _question(reply):
    """A message that the reply can be turned into an error reply to."""
    question = server_samples.metadata(reply.metadata.src_node_id, reply.metadata.group_id)
    question._message_id = reply.metadata.reply_to_message_id
    question._src_node_id = reply.metadata.dst_node_id
    return Message(content=RecordDict(), metadata=question)


@pytest.fixture(scope="module")
def context_without_west():
    """Where two rounds of the other three sites lead."""
    return Run(make_experiment(dropouts=1, number=2), agents_with("west", "NOT_APPROVED")).go().global_context


@pytest.mark.parametrize("what", HOSTILE)
def test_U1_U2_a_bad_reply_is_dropped_with_its_reason_and_the_round_goes_on(what, context_without_west):
    spoil, code = HOSTILE[what]
    checkpoint = Run(make_experiment(dropouts=1, number=2), spoil={"west": spoil}).go()
    assert checkpoint.round == 2
    for entry in checkpoint.history:
        assert entry["sites"] == ["east", "north", "south"]
        assert set(entry["dropped"]) == {"west"}
        assert entry["dropped"]["west"].split(":")[0] == code
        assert "west" not in entry["metrics"]
    np.testing.assert_array_equal(checkpoint.global_context, context_without_west)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RefusedError(code="BUDGET_EXHAUSTED", message="No (rule cap).", advice="Ask."), "REFUSED BUDGET_EXHAUSTED"),
        (RuntimeError("/secret/path/image-17.png"), "REFUSED INTERNAL"),
    ],
)
def test_a_site_that_refuses_or_breaks_is_dropped_with_its_reason(error, reason):
    def train(request):
        raise error

    run = Run(make_experiment(dropouts=1))
    run.agents["south"].train = train
    assert run.go().round == 3
    assert all(dropped["south"].startswith(reason) for dropped in run.column("dropped"))
    assert "secret" not in repr(run.statuses) + repr(run.saved)


def test_U3_updates_are_weighted_equally_whatever_a_site_says():
    """There is no field for counts; the aggregate is the mean of the updates."""
    experiment = make_experiment(number=1)
    run = Run(dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, name="sgd")))
    run.go()
    updates = [next(iter(agent.releases.values())).update for agent in run.agents.values()]
    expected = -experiment.optimizer.global_learning_rate * np.mean(updates, axis=0)
    np.testing.assert_allclose(run.strategy.checkpoint.global_context, expected, atol=1e-9)


def test_U2_an_update_just_under_the_cap_is_taken():
    run = Run(make_experiment(dropouts=1, number=1), spoil={"west": with_norm(0.99)})
    assert run.go().history[0]["sites"] == list(SITES)


def test_U2_the_operator_can_narrow_the_cap():
    wide = make_experiment(dropouts=1, number=1)
    narrow = make_experiment(dropouts=1, number=1, aggregation={"largest_site": 2.0})
    assert update_norm_cap(narrow) < update_norm_cap(wide) / 10
    run = Run(narrow, spoil={"west": with_norm(0.5)})
    assert run.go().history[0]["dropped"]["west"].startswith("NORM_TOO_LARGE")


# Late and repeated replies


class SlowGrid(Grid):
    """Holds a site's train reply back: ``hold`` says of a round's reply how many pulls it is late."""

    def __init__(self, agents, hold):
        super().__init__(agents)
        self.hold, self.held = hold, []

    def pull_messages(self, ids):
        ids = list(ids)
        replies = []
        for reply in super().pull_messages(ids):
            site, number = self._names[reply.metadata.src_node_id], int(reply.metadata.group_id)
            pulls = self.hold.get((site, number), 0) if reply.metadata.message_type == "train" else 0
            if pulls:
                self.held.append([pulls, reply])
            else:
                replies.append(reply)
        for entry in self.held:
            entry[0] -= 1
        replies += [r for pulls, r in self.held if pulls < 0 and r.metadata.reply_to_message_id in ids]
        self.held = [entry for entry in self.held if entry[0] >= 0]
        return replies


def test_L5_a_late_reply_is_counted_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(exchange_module, "ASK_AGAIN_AT", 2.0)  # never
    experiment = make_experiment(dropouts=1, deadline=1.0)
    # West's first reply comes during round 2, which a slow one of the east makes long enough.
    checkpoint = Run(experiment, grid=SlowGrid(make_agents(), {("west", 1): 12, ("east", 2): 3})).go()
    first, second, third = checkpoint.history
    assert first["dropped"] == {"west": "NO_REPLY: nothing came within 1 s"}
    assert (first["late"], second["late"], third["late"]) == ({}, {"west": 1}, {})
    assert second["sites"] == list(SITES)
    assert_same_prompt(checkpoint, Run(experiment, agents_with("west", "NOT_NOW", lambda r: r.round == 1)))


class LosingGrid(Grid):
    """Loses each site's first train reply, as a connection does that breaks in the middle of it."""

    lost: frozenset = frozenset()

    def pull_messages(self, ids):
        replies = super().pull_messages(ids)
        lost = {r.metadata.src_node_id for r in replies if r.metadata.message_type == "train"} - self.lost
        self.lost |= lost
        return [r for r in replies if r.metadata.src_node_id not in lost]


@pytest.mark.privacy
def test_L6_a_lost_reply_is_asked_for_again_and_the_round_is_the_same():
    """Without asking again this round would be abandoned; the site answers from what it released and pays nothing."""
    agents = make_agents()
    run = Run(make_experiment(deadline=2.0), agents, LosingGrid(agents))
    checkpoint = run.go()
    assert run.column("asked_again") == [list(SITES), [], []]
    assert run.column("late") == [{}, {}, {}]
    assert 1.0 <= checkpoint.history[0]["seconds"] < 1.9
    assert checkpoint.history[0]["bytes_down"] == 2 * checkpoint.history[1]["bytes_down"]
    for agent in agents.values():
        assert len({request_digest(r) for r in agent.requests if r.round == 1}) == 1
        assert len(agent.releases) == 3
    assert_same_prompt(checkpoint, Run())


def test_O8_a_site_that_leaves_in_the_middle_is_left_alone_and_the_others_go_on():
    """What an agent says after ``dpfpl-client forget``, from round 2 on; its own half is in test_site_health.py."""
    run = Run(make_experiment(dropouts=1), agents_with("west", "FORGOTTEN", lambda request: request.round > 1))
    run.go()
    assert run.column("sites") == [list(SITES), *[["east", "north", "south"]] * 2]
    assert all(dropped["west"].startswith("REFUSED FORGOTTEN") for dropped in run.column("dropped")[1:])
    assert run.column("asked_again") == [[], [], []]


def test_L5_a_duplicate_reply_is_counted_and_not_aggregated():
    class Twice(Grid):
        def pull_messages(self, ids):
            replies = super().pull_messages(ids)
            return [*replies, *(r for r in replies if self._names[r.metadata.src_node_id] == "north")]

    run = Run(grid=Twice(make_agents()))
    checkpoint = run.go()
    assert run.column("duplicates") == [{"north": 1}] * 3
    assert_same_prompt(checkpoint, Run())


def test_L3_the_round_closes_at_its_deadline_with_the_quorum():
    """One of three never replies."""
    experiment = make_experiment(dropouts=1, sites=("east", "north", "south"), number=1, deadline=1.0)
    started = time.monotonic()
    (entry,) = Run(experiment, spoil={"south": lambda reply: None}).go().history
    assert 1.0 <= time.monotonic() - started < 3.0
    assert (entry["sites"], entry["dropped"]) == (["east", "north"], {"south": "NO_REPLY: nothing came within 1 s"})


def test_L2_a_round_is_called_done_only_once_it_is_kept():
    """Whoever reads that it is done may kill the server: nothing of it must be lost then."""
    order = []
    Run(
        make_experiment(number=2),
        on_checkpoint=lambda checkpoint: order.append(("kept", checkpoint.round)),
        on_status=lambda status: status["phase"] == "ROUND_DONE" and order.append(("done", status["round"])),
    ).go()
    assert order == [("kept", 1), ("done", 1), ("kept", 2), ("done", 2)]


# Abandoned rounds


def test_L3_below_the_quorum_nothing_is_kept_and_the_same_request_is_tried_again():
    failures = {"left": 4}  # in either attempt the site is asked twice

    def flaky(reply):
        if message_in(reply.content).reply.round == 2 and failures["left"] > 0:
            failures["left"] -= 1
            return None
        return reply

    run = Run(spoil={"west": flaky})
    checkpoint = run.go()
    assert [c.round for c in run.saved] == [1, 2, 3]
    abandoned = run.said("ROUND_ABANDONED")
    assert [(s["round"], s["attempt"]) for s in abandoned] == [(2, 1), (2, 2)]
    assert "west: NO_REPLY" in abandoned[0]["reasons"]
    for site, agent in run.agents.items():  # the same bytes again and again, so a site released (and paid) once
        second = [request_digest(r) for r in agent.requests if r.round == 2]
        assert len(second) == (5 if site == "west" else 3)
        assert len(set(second)) == 1
        assert len(agent.releases) == 3
    assert_same_prompt(checkpoint, Run())


def test_U4_after_three_attempts_the_run_ends_with_the_reasons_and_the_last_checkpoint():
    run = Run(spoil={"west": lambda r: None if message_in(r.content).reply.round == 2 else r})
    error = run.fails()
    assert error.code == "ROUND_ABANDONED"
    assert "Round 2" in error.message
    assert "west: NO_REPLY" in error.message
    assert [c.round for c in run.saved] == [1]
    assert run.strategy.checkpoint is run.saved[0]
    assert len([p for p in run.grid.pushed if p[2] == 2]) == 3 * (4 + 1)  # west is asked again in each attempt


def test_refusals_are_not_asked_again():
    run = Run()
    for agent in run.agents.values():
        agent.train = refusing("NOT_APPROVED")
    assert run.fails().message.count("NOT_APPROVED") == 4
    assert len(run.grid.pushed) == 4


@pytest.mark.parametrize("code", ["BUSY", "AGENT_UNAVAILABLE", "AGENT_DEADLINE"])
def test_refusals_of_the_moment_are_asked_again(code):
    left = [code, code]
    assert Run(agents=agents_with("east", code, lambda request: bool(left) and left.pop())).go().round == 3


def test_a_failing_last_evaluation_costs_metrics_but_not_the_run():
    run = Run()
    run.agents["north"].evaluate = refusing("NOT_APPROVED")
    run.go()
    assert set(run.strategy.final_metrics) == {"east", "south", "west"}
    assert run.statuses[-1]["phase"] == "FINISHED"
    assert run.statuses[-1]["dropped"]["north"].startswith("REFUSED NOT_APPROVED")


# Who is asked what


def test_U8_one_message_per_site_and_round_and_only_to_the_list():
    agents = make_agents()  # north and west are registered too, but not on the list
    run = Run(make_experiment(sites=("east", "south")), agents)
    run.go()
    assert sorted(run.grid.pushed) == sorted(
        [("train", site, number) for site in ("east", "south") for number in (1, 2, 3)]
        + [("evaluate", site, 3) for site in ("east", "south")]
    )
    assert not agents["north"].requests
    assert not agents["west"].evaluations


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4]), (9, [1])])
def test_evaluations_are_asked_for_as_often_as_configured(every, expected):
    run = Run(make_experiment(number=5, evaluate_every=every))
    checkpoint = run.go()
    assert [r.round for r in run.agents["east"].requests if r.evaluate] == expected
    assert [entry["round"] for entry in checkpoint.history if entry["metrics"]] == expected
    (request,) = run.agents["west"].evaluations
    assert request.round == 5
    np.testing.assert_array_equal(request.global_context, checkpoint.global_context)
    assert run.strategy.final_metrics["west"] == {"personal_local": 0.75}


def test_a_site_without_a_node_is_an_error_that_names_it():
    with pytest.raises(RoundError, match="south") as caught:
        DPFPLStrategy(make_experiment(), {"east": 1, "north": 2, "west": 3}, keys=None)
    assert caught.value.code == "UNKNOWN_SITE"


# Waiting for sites


class Time:
    """A clock that only sleeping moves, and that lets things happen on the way."""

    def __init__(self, on_tick=lambda now: None):
        self.now, self.on_tick = 0.0, on_tick

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.on_tick(self.now)


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_L4_missing_sites_are_waited_for_visibly_and_for_a_bounded_time(clock):
    run = Run(offline={"north", "west"}, site_wait_s=7.0)
    error = run.fails()
    assert error.code == "SITES_MISSING"
    assert "2 of 4" in error.message
    assert "north, west" in error.message
    assert 7.0 <= clock.now <= 7.5
    (said,) = run.statuses  # once, not with every look
    assert said["phase"] == "WAITING_FOR_SITES"
    assert said["text"] == "WAITING_FOR_SITES (2/4, missing: north, west), at most 7 s"
    assert (said["waiting_for"], said["connected"], said["sites"]) == (["north", "west"], 2, 4)
    assert run.grid.pushed == []


def test_L4_sites_that_are_lost_later_are_waited_for_as_long_and_no_longer(clock):
    """After round 1 only one of two is left, fewer than the quorum: named, waited for, and the rounds so far kept."""
    saved = []

    def lose(checkpoint):
        saved.append(checkpoint.round)
        run.grid.offline.add("south")

    run = Run(make_experiment(sites=("east", "south")), on_checkpoint=lose, site_wait_s=7.0)
    error = run.fails()
    assert (error.code, saved) == ("SITES_MISSING", [1])
    assert 7.0 <= clock.now <= 7.5
    (waiting,) = run.said("WAITING_FOR_SITES")
    assert waiting["text"] == "WAITING_FOR_SITES (1/2, missing: south), at most 7 s"
    assert exit_code_of(error) == FAILED == 3


def test_the_first_round_waits_for_latecomers_and_then_runs(clock):
    run = Run(make_experiment(dropouts=1), offline={"north"}, site_wait_s=60.0)
    clock.on_tick = lambda now: run.grid.offline.clear() if now >= 3 else None
    assert run.go().history[0]["sites"] == list(SITES)


def test_with_the_quorum_the_first_round_starts_after_the_wait_and_later_ones_at_once(clock):
    run = Run(make_experiment(dropouts=1), offline={"north"}, spoil={"north": lambda reply: None}, site_wait_s=5.0)
    assert run.go().round == 3
    assert 5.0 <= clock.now <= 5.5


# Going on


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_ends_like_an_uninterrupted_one(stop_after):
    expected, agents, saved = Run().go(), make_agents(), []

    def stop(checkpoint):
        saved.append(checkpoint)
        if checkpoint.round == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(agents=agents, on_checkpoint=stop).go()
    resumed = Run(agents=agents, checkpoint=saved[-1])
    actual = resumed.go()
    np.testing.assert_array_equal(actual.global_context, expected.global_context)
    np.testing.assert_array_equal(actual.optimizer.second, expected.optimizer.second)
    assert actual.optimizer.steps == expected.optimizer.steps == 3
    assert resumed.column("round") == [1, 2, 3]
    assert [r.round for r in agents["east"].requests] == [1, 2, 3]
    assert set(resumed.strategy.final_metrics) == set(SITES)


@pytest.mark.privacy
def test_the_servers_noise_moves_the_prompt_under_central_trust_only():
    ends = {}
    for trust in ("central", "distributed"):
        for seed in (1, 2):
            noise = SeededNoise(np.random.default_rng(seed))
            ends[trust, seed] = Run(make_experiment(trust=trust, number=1), noise=noise).go().global_context
    assert not np.array_equal(ends["central", 1], ends["central", 2])
    np.testing.assert_array_equal(ends["distributed", 1], ends["distributed", 2])


@pytest.mark.privacy
def test_without_a_source_the_servers_noise_is_the_operating_systems():
    assert Run(make_experiment(trust="central")).strategy._noise.is_private


def test_flowers_own_entry_points():
    run = Run()
    (array,) = run.strategy.start(run.grid).arrays.to_numpy_ndarrays()
    np.testing.assert_array_equal(array, run.strategy.checkpoint.global_context)
    messages = list(run.strategy.configure_train(1, ArrayRecord(), ConfigRecord(), run.grid))
    assert [m.metadata.dst_node_id for m in messages] == [1, 2, 3, 4]
    assert run.strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), run.grid) == []
    with pytest.raises(NotImplementedError):
        run.strategy.aggregate_train(1, [])


# DR12: a site whose key the operator takes back in mid-run, after its second round


@pytest.fixture
def revoked():
    """Gives a run of four rounds from which north was revoked after the second, and checks that nobody waits for it."""

    def make(dropouts):
        def withdrawn():
            said = "north was revoked by the operator"
            return {"north": ("REVOKED", said)} if run.strategy.checkpoint.round >= 2 else {}

        run = Run(make_experiment(dropouts=dropouts, number=4), withdrawn=withdrawn, site_wait_s=60.0)
        return run

    began = time.monotonic()
    yield make
    assert time.monotonic() - began < 30, "nobody waits for it"


def test_DR12_a_run_goes_on_without_a_revoked_site_where_the_quorum_allows_it(revoked):
    run = revoked(dropouts=1)
    run.go()
    assert [len(sites) for sites in run.column("sites")] == [4, 4, 3, 3]
    assert run.column("dropped")[-1]["north"].startswith("REVOKED: ")
    assert not [p for p in run.grid.pushed if p[1] == "north" and p[2] > 2], "it is not asked any more"
    (said,) = run.said("SITES_WITHDRAWN")
    assert "goes on with 3 of 4 sites" in said["text"]
    assert "north" not in run.strategy.final_metrics


def test_DR12_without_a_quorum_the_operator_reads_at_once_what_to_do(revoked):
    error = revoked(dropouts=0).fails()
    assert error.code == "SITES_WITHDRAWN"
    for words in (
        "north was revoked by the operator",
        "3 of 4 sites are left",
        "needs 4",
        "2 completed rounds are kept",
    ):
        assert words in error.message
    assert "another experiment, under a new name" in error.advice
    assert "Start the missing" not in str(error)
    assert "nothing is lost" not in str(error).lower()
