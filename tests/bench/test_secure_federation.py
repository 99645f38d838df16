"""Secure trust from end to end in one process: the result, a hostile server, and deaths of any of the programs.

Rows SE4 and SE6 of the list of attacks; SE1 to SE3, SE5 and SE8 are in tests/common/secure.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dpfpl_bench.simulate.simulation import InProcessGrid, SimulatedSite, Simulation
from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import ROWS, SCORES, Ledger
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.learner import SiteFeatures
from dpfpl_client.learning.step import SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.errors import PayloadError, RefusedError, RoundError
from dpfpl_common.evidence import unpack_pool
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings
from dpfpl_common.policy import Policy
from dpfpl_common.secure import STEPS, SUMS
from dpfpl_common.secure import primitives as p
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.sums import terms_of
from dpfpl_common.secure.terms import named
from dpfpl_common.wire.payloads import SumRequest, TrainRequest
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.runs.result import build_result
from dpfpl_server.runs.store import RunStore

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "owl")
NAMES = ("east", "north", "south", "west")
POLICY = Policy(("*",), 50.0, 100.0, trust=("secure",), reply_slot=0.001, max_rounds_per_hour=10**6)


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


@pytest.fixture(scope="module")
def features(backbone):
    generator = np.random.default_rng(3)
    means = generator.normal(size=(3, backbone.feature_size)) + 2.0

    def part(count):
        labels = np.repeat([0, 1, 2], count)
        rows = means[labels] + 0.3 * generator.normal(size=(len(labels), backbone.feature_size))
        return LabelledFeatures(
            torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=-1), torch.from_numpy(labels)
        )

    return {name: SiteFeatures(part(10), part(4), part(4), CLASSES) for name in NAMES}


@pytest.fixture
def experiment(backbone):
    return Experiment(
        name="pilot",
        classes=CLASSES,
        sites=NAMES,
        model=ModelSettings(width=backbone.width),
        privacy=PrivacySettings(trust="secure", noise_multiplier=1.0, nominal_site_size=30, tolerated_dropouts=1),
        rounds=RoundSettings(number=2, local_steps=1, deadline=2.0),
    )


class Killed(BaseException):
    """Nothing in the product catches it."""


class Federation:
    """Sites and a server with everything on disk; every ``run`` is a start of all programs."""

    def __init__(self, folder, backbone, features, experiment):
        self.folder, self.backbone, self.features, self.experiment = folder, backbone, features, experiment
        self.store = RunStore(folder / "run.sqlite")
        self.sent = []
        self.at: Callable[[str], None] = lambda point: None

    def run(self):
        ledgers = {name: Ledger(self.folder / f"{name}.sqlite") for name in NAMES}
        try:
            grid = InProcessGrid({name: self.agent(name, ledger) for name, ledger in ledgers.items()})
            book = self.store.sum_book()
            write = book.write
            book.write = lambda name, entry: (self.at("book"), write(name, entry), self.at("booked"))
            strategy = DPFPLStrategy(
                self.experiment,
                grid.nodes,
                keys=None,
                checkpoint=self.store.load(self.experiment),
                on_checkpoint=lambda checkpoint: self.store.save(self.experiment, checkpoint),
                on_status=lambda status: self.at(status["phase"]),
                book=book,
            )
            return strategy.run(grid)
        finally:
            for ledger in ledgers.values():
                ledger.close()

    def agent(self, name, ledger):
        federation = self

        class HookedStore(DiskStore):
            def write_sum(self, experiment, what, kept):
                step = STEPS[max(0, len(kept.answered.replies) - 1)]
                federation.at(f"{name} {what} before write {step}")
                super().write_sum(experiment, what, kept)
                federation.at(f"{name} {what} after write {step}")

        store = HookedStore(self.folder / name)
        agent = SiteAgent(name, self.backbone, self.features[name], None, ledger, store, SystemRandomness())

        class Heard:
            train, evaluate = agent.train, agent.evaluate

            def add_up(self, request):
                federation.at(f"{name} {request.sum} asked {request.step}")
                reply = agent.add_up(request)
                federation.sent.append(
                    (name, request.sum, request.attempt, request.step, request.content, reply.content)
                )
                federation.at(f"{name} {request.sum} answers {request.step}")
                return reply

        return Heard()

    def charges(self, name):
        ledger = Ledger(self.folder / f"{name}.sqlite")
        found = [charge.round for charge in ledger.charges()]
        ledger.close()
        return found

    def check(self):
        """One sum of each kind, unmasked in one attempt; every message once; charged once; no secret left."""
        for name in NAMES:
            assert Counter(self.charges(name)) == Counter([ROWS, 1, 2, SCORES])
            kept = [DiskStore(self.folder / name).read_sum("pilot", what) for what in SUMS]
            assert all(one.unmasked and one.values is None and one.answered.secret == b"" for one in kept)
        unmasked = {(name, what, attempt) for name, what, attempt, step, *_ in self.sent if step == "unmask"}
        assert len(unmasked) == len(NAMES) * len(SUMS), "no site helped to unmask two attempts"
        told: dict = {}
        for name, what, attempt, step, content, reply in self.sent:
            assert told.setdefault((name, what, attempt, step), (content, reply)) == (content, reply)
        masked = [reply for (*_, step), (_, reply) in told.items() if step == "masked"]
        assert len(set(masked)) == len(masked), "no mask was used twice"


def test_se6_undisturbed_every_sum_is_made_once_and_charged_once(tmp_path, backbone, features, experiment):
    federation = Federation(tmp_path, backbone, features, experiment)

    checkpoint = federation.run()

    federation.check()
    assert checkpoint.evidence.chosen(experiment) == "evidence"
    assert {len(summed.sites) for summed in checkpoint.evidence.sums.values()} == {4}
    rows = checkpoint.evidence.sums["rows"].values.reshape(3, -1)
    plain = np.zeros_like(rows)
    for own in features.values():
        np.add.at(plain, own.train.labels.numpy(), own.train.features.double().numpy())
    noise = (rows - plain) / np.sqrt(4 / 2) / 1.0541  # four shares, H = 2, and vote's and moment's 10 %
    assert 0.9 < noise.std() < 1.1
    pool = unpack_pool(checkpoint.evidence.packed(experiment, "north"), 3)[0]
    assert pool.moment_variance == pytest.approx(4 / 2 / 0.05)
    assert np.trace(pool.moment) == pytest.approx(120, abs=4 * np.sqrt(2 * pool.moment_variance))  # the images
    result = build_result(
        experiment, transport="in_process", history=checkpoint.history, final={}, num_classes={}, seconds=0.0,
        evidence=checkpoint.evidence,
    )  # fmt: skip
    assert {row["epsilon"] for row in result["privacy"]["epsilons"]} == {result["privacy"]["epsilons"][0]["epsilon"]}
    assert result["scores"][3]["value"] > 0.8
    assert result["scores"][3]["sites"] == 4
    assert result["evidence"]["sites"] == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "scores"])
def test_se6_killed_at_every_point_of_a_sum_in_turn_there_is_one_sum_and_one_charge(
    tmp_path, backbone, features, experiment, name
):
    """All programs die at once, start again on what lies on the disk, and die at the next point."""
    federation = Federation(tmp_path, backbone, features, experiment)
    moments = ("asked", "before write", "after write", "answers")
    points = [f"south {name} {moment} {step}" for step in STEPS for moment in moments] + ["book", "booked"]

    def kill(at):
        if points and at == points[0]:
            points.pop(0)
            raise Killed

    federation.at = kill
    for _ in range(len(points) + 1):
        try:
            federation.run()
        except Killed:
            continue
        break

    assert points == []
    federation.check()


@pytest.mark.parametrize("step", STEPS)
def test_se6_one_site_dies_in_a_step_and_the_others_finish(tmp_path, backbone, features, experiment, step):
    federation = Federation(tmp_path, backbone, features, experiment)

    def fail(at):
        if at.startswith("south") and at.endswith(f"asked {step}"):
            raise OSError("the site's machine is off")

    federation.at = fail

    sums = federation.run().evidence.sums

    survivors = {tuple(summed.sites) for summed in sums.values()}
    assert survivors == {NAMES if step == "unmask" else ("east", "north", "west")}


def test_se6_with_too_few_sites_the_run_ends_and_no_site_says_what_unmasks(tmp_path, backbone, features, experiment):
    federation = Federation(tmp_path, backbone, features, experiment)

    def fail(at):
        if at in ("south rows asked masked", "west rows asked masked"):
            raise OSError("the site's machine is off")

    federation.at = fail

    with pytest.raises(RoundError, match="TOO_FEW_SITES"):
        federation.run()

    assert {attempt for _, _, attempt, *_ in federation.sent} == {1, 2, 3}
    assert not [step for _, _, _, step, *_ in federation.sent if step == "unmask"]
    federation.at = lambda point: None
    federation.run()
    federation.check()


class Hostile:
    """A server with one real site, and three that it plays itself."""

    def __init__(self, folder, backbone, features, experiment, audit=None):
        self.experiment = experiment
        self.ledger, self.store = Ledger(None), DiskStore(folder)
        self.agent = SiteAgent(
            "north", backbone, features["north"], POLICY, self.ledger, self.store, SystemRandomness(), audit=audit
        )
        self.played = {name: p.private_key(name.encode() * 8, b"played") for name in NAMES}

    def ask(self, step, content, attempt=1, **more):
        return self.agent.add_up(SumRequest(self.experiment, "rows", attempt, step, content, **more)).content


def honest_until(hostile, experiment, features, backbone, folder, step):
    """The other three sites are honest ones; gives the server's requests for the step."""
    agents = {"north": hostile.agent}
    for name in set(NAMES) - {"north"}:
        store = DiskStore(folder / name)
        agents[name] = SiteAgent(name, backbone, features[name], POLICY, Ledger(None), store, SystemRandomness())
    server = ServerSum(terms_of(experiment, "rows", 1))
    while server.step != step:
        for name, content in server.requests().items():
            server.take(name, agents[name].add_up(SumRequest(experiment, "rows", 1, server.step, content)).content)
        server.close()
    return server


def test_se4_a_hostile_server_is_refused_and_the_refusal_is_in_the_audit(tmp_path, backbone, features, experiment):
    audit = AuditLog(tmp_path / "audit.jsonl")
    hostile = Hostile(tmp_path / "north", backbone, features, experiment, audit)
    honest_until(hostile, experiment, features, backbone, tmp_path, "unmask")

    def lists(survivors, gone):
        return p.framed(named(dict.fromkeys(survivors, b"")), named(dict.fromkeys(gone, b"")))

    for code, asked in (
        ("BOTH_SHARES", lists(NAMES, ["east"])),
        ("TOO_FEW_SITES", lists(NAMES[:1], NAMES[1:])),
        ("OTHER_SURVIVORS", lists(NAMES[:3], [])),
    ):
        with pytest.raises(RefusedError) as refusal:
            hostile.ask("unmask", asked)
        assert refusal.value.code == code
    hostile.ask("unmask", lists(NAMES, []))
    for code, step, asked, attempt in (
        ("STEP_ANSWERED", "unmask", lists(NAMES[:3], NAMES[3:]), 1),
        ("SUM_RELEASED", "keys", b"", 2),
    ):
        with pytest.raises(RefusedError) as refusal:
            hostile.ask(step, asked, attempt)
        assert refusal.value.code == code
    written = (tmp_path / "audit.jsonl").read_text()
    assert all(code in written for code in ("BOTH_SHARES", "STEP_ANSWERED", "SUM_RELEASED"))


def test_a_broken_attempt_is_over_once_another_has_begun_and_the_integers_stay_the_same(
    tmp_path, backbone, features, experiment
):
    hostile = Hostile(tmp_path / "north", backbone, features, experiment)
    server = honest_until(hostile, experiment, features, backbone, tmp_path, "unmask")
    before = hostile.store.read_sum("pilot", "rows").values

    hostile.ask("keys", b"", attempt=2)

    with pytest.raises(RefusedError) as refusal:
        hostile.ask("unmask", server.requests()["north"])
    assert refusal.value.code == "ATTEMPT_OVER"
    assert np.array_equal(hostile.store.read_sum("pilot", "rows").values, before)
    assert [charge.round for charge in hostile.ledger.charges()] == [ROWS]


def test_a_sum_whose_record_is_gone_is_not_drawn_a_second_time(tmp_path, backbone, features, experiment):
    hostile = Hostile(tmp_path / "north", backbone, features, experiment)
    honest_until(hostile, experiment, features, backbone, tmp_path, "unmask")
    (record,) = (tmp_path / "north").rglob("sum-rows.bin")
    record.unlink()

    with pytest.raises(RefusedError) as refusal:
        honest_until(hostile, experiment, features, backbone, tmp_path / "again", "unmask")

    assert refusal.value.code == "SUM_RELEASED"


def test_an_attempt_begins_with_keys_and_a_vote_follows_the_rows(tmp_path, backbone, features, experiment):
    hostile = Hostile(tmp_path / "north", backbone, features, experiment)

    with pytest.raises(RefusedError) as refusal:
        hostile.ask("masked", b"")
    assert refusal.value.code == "STEP_ORDER"
    assert hostile.ledger.charges() == []


def test_nothing_of_one_site_is_told_in_a_round_of_training(backbone, experiment):
    """Neither class sums nor a vote: they carry a share of the noise only."""
    context = np.zeros(experiment.context_shape, dtype="<f4")
    pool = np.zeros((4, backbone.feature_size + 2), dtype="<f4")

    with pytest.raises(PayloadError):
        TrainRequest(experiment, 1, context, collect=True)
    with pytest.raises(PayloadError):
        TrainRequest(experiment, 1, context)
    assert TrainRequest(experiment, 1, context, pool=pool).collect is False


def test_what_a_site_sends_in_training_depends_on_the_sum_alone(tmp_path, backbone, features, experiment):
    """Two sites with other images send the same update, but for what is drawn at random without images."""
    context = np.zeros(experiment.context_shape, dtype="<f4")
    pool = np.ones((4, backbone.feature_size + 2), dtype="<f4")
    pool[:, -2] = 1e-6  # hardly any noise: every class stands out

    class Fixed(SystemRandomness):
        def for_round(self, site, round_number):
            from dpfpl_client.learning.step import SeededRandomness

            return SeededRandomness(1).for_round("any", round_number)

    sent = set()
    for name in ("north", "south"):
        agent = SiteAgent(name, backbone, features[name], None, Ledger(None), DiskStore(tmp_path / name), Fixed())
        sent.add(agent.train(TrainRequest(experiment, 1, context, False, False, pool)).update.tobytes())

    assert len(sent) == 1
    assert sent != {np.zeros(experiment.context_shape, dtype="<f4").tobytes()}


def test_in_simulation_secure_finds_what_local_trust_does_not(backbone, features, experiment):
    sites = [SimulatedSite(name, own, 3) for name, own in features.items()]
    quiet = dataclasses.replace(experiment, privacy=dataclasses.replace(experiment.privacy, noise_multiplier=2.5))
    local = dataclasses.replace(quiet, privacy=dataclasses.replace(quiet.privacy, trust="local"))

    secure = Simulation(backbone, sites, 1).run(quiet).checkpoint.evidence
    apart = Simulation(backbone, sites, 1).run(local).checkpoint.evidence

    noise = {trust: float(np.sqrt(e._pooled(of)[0].variances.max()))
             for trust, e, of in (("secure", secure, quiet), ("local", apart, local))}  # fmt: skip
    assert noise["secure"] == pytest.approx(noise["local"] / np.sqrt(2), rel=1e-6)
