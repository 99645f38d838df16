"""The unit ``site``: what a whole data set can change, the noise on it, who is drawn, and what is claimed about it."""

import dataclasses
import json

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import pld
from scipy import stats

from dpfpl_bench.simulation.in_process import InProcessGrid, SimulatedSite, Simulation, prepare_sites, site_names
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.features import FeatureCache
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import MemoryStore
from dpfpl_client.data import DataSettings, list_classes, load_pool, partition_sites
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.step import SeededRandomness, SystemRandomness
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.errors import ConfigError, PrivacyError, RefusedError, RoundError
from dpfpl_common.experiment import (
    METHODS,
    Experiment,
    ModelSettings,
    OptimizerSettings,
    PrivacySettings,
    PromptSettings,
    RoundSettings,
)
from dpfpl_common.policy import Policy, permit
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.clipping import clipped_sums
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.privacy.sampling import SeededSampler
from dpfpl_common.privacy.steps import noised_update
from dpfpl_common.privacy_plan import planned_events, resolve_noise, site_noise_stddev
from dpfpl_common.wire.payloads import EvaluateRequest, SiteReply, TrainRequest
from dpfpl_server.federation.aggregation import Updates, aggregate, update_norm_cap
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.report import render_report
from dpfpl_server.runs.result import build_result, privacy_statement
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

CLASSES = ("cat", "dog", "owl")
Z, C = 1.7, 0.3


def released_update_of(experiment, update, noise):
    return noised_update(update, experiment.privacy.clipping_norm, site_noise_stddev(experiment), noise)


@pytest.fixture(scope="module")
def backbone():
    torch.set_num_threads(1)
    return load_backbone("embedded")


def make_experiment(width=8, sites=20, rounds=6, local_steps=3, method="dpfpl", **privacy):
    settings = {"unit": "site", "trust": "central", "noise_multiplier": Z, "clipping_norm": C, "nominal_site_size": 12}
    return Experiment(
        name="wide",
        classes=CLASSES,
        sites=tuple(site_names(sites)),
        model=ModelSettings(width=width),
        prompt=PromptSettings(method=method, rank=2),
        privacy=PrivacySettings(**({"mechanism": "per_step"} | settings | privacy)),
        rounds=RoundSettings(number=rounds, local_steps=local_steps),
    )


def images_of(backbone, count=12, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(count, backbone.feature_size, generator=generator), dim=1)
    return LabelledFeatures(scale * features, torch.randint(len(CLASSES), (count,), generator=generator))


def features_of(backbone, train):
    return SiteFeatures(train, images_of(backbone, 6, 90), images_of(backbone, 6, 91), CLASSES)


# What one site can change


def adversarial(backbone, case):
    images = images_of(backbone, 0 if case == "no images" else 40, scale=1e6 if "scaled" in case else 1.0)
    features = images.features.clone()
    if "NaN" in case:
        features[:: 1 if case == "all NaN" else 2] = float("nan")
    if case == "infinite":
        features[0] = float("inf")
    if case == "one image, many times":
        features[:] = features[0]
    return LabelledFeatures(features, images.labels)


@pytest.mark.parametrize(
    "case",
    ["plain", "scaled", "half NaN", "half NaN, scaled", "all NaN", "infinite", "no images", "one image, many times"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_site_adds_at_most_the_clipping_norm(backbone, case, method):
    """Without the site the sum has nothing of it: the norm of what it sends is the sensitivity, in float32 too."""
    # A nominal size of 1 divides by little, so that the bound binds.
    experiment = make_experiment(backbone.width, method=method, nominal_site_size=1, clipping_norm=0.01)
    learner = PromptLearner(backbone, experiment, features_of(backbone, adversarial(backbone, case)))
    context, state = np.zeros(experiment.context_shape, "<f4"), PersonalState.initial(experiment)
    norms = []
    for number in range(1, 4):
        result = learner.train_round(context, state, SeededRandomness(0).for_round("site-01", number))
        sent = result.update.astype("<f4")
        state = result.state
        assert np.all(np.isfinite(sent))
        assert np.all(np.isfinite(state.context))
        norms.append(float(np.linalg.norm(sent.astype(np.float64))))
    assert max(norms) <= 0.01
    assert max(norms) <= update_norm_cap(experiment)
    if case in ("all NaN", "no images"):
        assert max(norms) == 0.0
    if case in ("plain", "one image, many times"):  # the bound is not met by sending nothing
        assert max(norms) > 0.0099


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200, 1e6])
def test_no_update_passes_the_clip(value):
    experiment = make_experiment()
    update = np.full(experiment.context_shape, 0.01)
    update[0, 0] = value
    released = released_update_of(experiment, update, NoNoise())
    assert np.linalg.norm(released) <= C
    assert bool(released.any()) == (value == 1e6)


def test_a_small_update_is_sent_as_it_is():
    experiment = make_experiment()
    update = np.full(experiment.context_shape, 1e-3)
    np.testing.assert_array_equal(released_update_of(experiment, update, NoNoise()), update)


def test_a_site_clips_its_sum_and_not_its_examples(backbone):
    """Examples far longer than the bound, their sum over a large public divisor well inside: it is sent as it is."""
    experiment = make_experiment(
        backbone.width, local_steps=1, sample_rate=1.0, nominal_site_size=1200, clipping_norm=0.05
    )
    learner = PromptLearner(backbone, experiment, features_of(backbone, images_of(backbone)))
    context, state = np.zeros(experiment.context_shape, "<f4"), PersonalState.initial(experiment)
    whole, examples = learner.context(context, state.context), images_of(backbone)
    gradients = learner._scorer.gradients(whole, examples, experiment.gradients).double().numpy()
    wanted = gradients.sum(axis=0) / 1200
    clipped = clipped_sums([gradients], [0.05])[0] / 1200
    assert np.linalg.norm(wanted) < 0.5 * 0.05, "the site's own clip has nothing to do"
    assert np.linalg.norm(clipped - wanted) > 0.5 * np.linalg.norm(wanted), "a clip of examples would be seen"
    sent = learner.train_round(context, state, SeededRandomness(0).for_round("site-01", 1)).update
    # The whole batch's gradient is one float32 product, not a sum of the examples' own.
    assert np.linalg.norm(sent - wanted) < 1e-5 * np.linalg.norm(wanted)


# The noise


@pytest.mark.parametrize("trust", ["central", "distributed"])
def test_the_noise_on_the_sum_has_this_stddev_and_no_other(trust):
    """20 rounds x 2000 coordinates: the measured deviation is within 2 % of the true one (over 5 sigma)."""
    sites = 5
    experiment = make_experiment(500, sites=sites, trust=trust, tolerated_colluders=0, local_steps=4)
    updates = np.random.default_rng(0).normal(0, 1e-4, (sites, *experiment.context_shape))
    source = SystemNoise()
    errors = []
    for _ in range(20):
        sent = [released_update_of(experiment, update, source).astype("<f4") for update in updates]
        errors.append(aggregate(experiment, Updates(experiment, sent), source) * sites - updates.sum(axis=0))
    shares = sites / (sites - 1) if trust == "distributed" else 1  # a site's own share never counts: H = N - 1
    found = np.std(errors) / (Z * C * np.sqrt(shares))
    assert [abs(found / factor - 1) < 0.02 for factor in (1.0, 2 / 3, 3 / 2)] == [True, False, False]


# The divisor and the sample


@pytest.mark.parametrize("replies", [0, 1, 3, 20])
def test_the_divisor_is_public(replies):
    experiment = make_experiment(site_sample_rate=0.25)
    updates = [np.full(experiment.context_shape, 0.01, "<f4")] * replies
    gradient = aggregate(experiment, Updates(experiment, updates), NoNoise())
    np.testing.assert_allclose(gradient, np.float64(np.float32(0.01)) * replies / (0.25 * 20), rtol=1e-12)


def test_without_sampling_drop_outs_do_not_change_the_divisor_and_the_quorum_holds():
    experiment = make_experiment(trust="distributed", tolerated_dropouts=2)
    updates = [np.full(experiment.context_shape, 0.01, "<f4")] * 18
    np.testing.assert_allclose(aggregate(experiment, Updates(experiment, updates), NoNoise()), 0.009, rtol=1e-6)
    with pytest.raises(RoundError, match="TOO_FEW_SITES"):
        aggregate(experiment, Updates(experiment, updates[1:]), NoNoise())


class Site:
    """Sends the same update every round, or refuses."""

    def __init__(self, name, refuses=False):
        self.name, self.refuses, self.rounds = name, refuses, []

    def train(self, request):
        self.rounds.append(request.round)
        if self.refuses:
            raise RefusedError(code="UNIT_NOT_ALLOWED", message="no (rule units)")
        update = np.full(request.experiment.context_shape, 0.01, "<f4")
        return SiteReply(self.name, request.round, update, {})

    def evaluate(self, request):
        return SiteReply(self.name, request.round, None, {})


def run_strategy(experiment, refuses=False, sampler=None, noise=None):
    agents = {site: Site(site, refuses) for site in experiment.sites}
    grid = InProcessGrid(agents)
    strategy = DPFPLStrategy(
        experiment, grid.nodes, keys=None, noise=noise or NoNoise(), sampler=sampler, site_wait_s=0.0
    )
    strategy.run(grid)
    return strategy, agents


@pytest.mark.parametrize("sampler", ["system", "seeded"])
def test_every_site_joins_every_round_with_the_public_chance(sampler):
    experiment = make_experiment(sites=20, rounds=400, site_sample_rate=0.3)
    seeded = SeededSampler(np.random.default_rng(0)) if sampler == "seeded" else None
    strategy, agents = run_strategy(experiment, sampler=seeded)
    sizes = [len(entry["sites"]) for entry in strategy.checkpoint.history]
    assert len(sizes) == 400
    # How many are drawn in a round is binomial, tails put together; a false alarm has chance 1e-6.
    low, high = 3, 9
    expected = stats.binom(20, 0.3).pmf(np.arange(low, high + 1))
    expected[0], expected[-1] = stats.binom(20, 0.3).cdf(low), stats.binom(20, 0.3).sf(high - 1)
    counts = np.bincount(np.clip(sizes, low, high), minlength=high + 1)[low:]
    assert stats.chisquare(counts, 400 * expected).pvalue > 1e-6
    for agent in agents.values():
        assert stats.binomtest(len(agent.rounds), 400, 0.3).pvalue > 1e-7
    # and two sites do not come together more often than chance has it
    first, second = (set(agents[site].rounds) for site in experiment.sites[:2])
    assert stats.binomtest(len(first & second), 400, 0.09).pvalue > 1e-7


class Recording:
    is_private = True

    def __init__(self):
        self.calls = []

    def add(self, total, noise_stddev):
        self.calls.append((total.copy(), noise_stddev))
        return total + noise_stddev


class Nobody:
    def draw(self, count, sample_rate):
        return np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("why", ["nobody drawn", "everybody refuses"])
def test_a_round_without_a_reply_still_releases_noise_and_moves_the_context(why):
    experiment = make_experiment(sites=3, rounds=2, site_sample_rate=0.9)
    noise = Recording()
    strategy, _ = run_strategy(
        experiment, why == "everybody refuses", Nobody() if why == "nobody drawn" else None, noise
    )
    assert [stddev for _, stddev in noise.calls] == pytest.approx([Z * C] * 2)
    assert not any(total.any() for total, _ in noise.calls)
    assert strategy.checkpoint.round == 2
    assert strategy.checkpoint.global_context.all()
    if why == "everybody refuses":
        drawn = [set(entry["dropped"]) for entry in strategy.checkpoint.history]
        assert any(drawn)


def test_where_sites_are_sampled_there_is_no_quorum_to_set():
    assert make_experiment(site_sample_rate=0.5).min_sites == 0
    assert make_experiment().min_sites == 20
    sampled = make_experiment(site_sample_rate=0.5)
    with pytest.raises(ConfigError, match="min_sites"):
        dataclasses.replace(sampled, rounds=RoundSettings(min_sites=20))


# What is claimed


def reference_epsilon(multiplier, rate, rounds, delta):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier)), rounds
    )
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    return accountant.compose(event).get_epsilon(delta)


GOLDEN = [(0.1, 100, 1.0), (0.5, 20, 2.0)]
"""(site_sample_rate, rounds, noise_multiplier); the epsilons come from dp-accounting itself, as above."""


@pytest.mark.parametrize(("rate", "rounds", "multiplier"), GOLDEN)
def test_one_event_a_round_whatever_the_local_steps(rate, rounds, multiplier):
    spent = set()
    for local_steps in (1, 7):
        experiment = make_experiment(
            rounds=rounds, local_steps=local_steps, noise_multiplier=multiplier, site_sample_rate=rate
        )
        assert planned_events(experiment, local_steps)[1].steps == 1
        assert planned_events(experiment, 0)[1].steps == 0
        recipient, other_site, operator = planned_events(experiment)
        assert (other_site.noise_multiplier, other_site.sample_rate, other_site.steps) == (multiplier, rate, rounds)
        assert (operator.sample_rate, operator.steps) == (1.0, rounds)
        for event in (recipient, operator):
            assert epsilon([event], 1e-5) == float("inf")
        spent.add(epsilon([other_site], 1e-5))
    assert len(spent) == 1
    assert spent.pop() == pytest.approx(reference_epsilon(multiplier, rate, rounds, 1e-5), rel=0.01)


def test_the_operator_of_a_distributed_run_is_held_to_one_message():
    experiment = make_experiment(sites=10, trust="distributed", tolerated_dropouts=1, tolerated_colluders=2)
    recipient, other_site, operator = planned_events(experiment)
    assert operator.noise_multiplier == pytest.approx(Z / 7**0.5)
    assert (recipient.noise_multiplier, other_site.noise_multiplier) == (0.0, Z)


@pytest.mark.parametrize(("trust", "rate"), [("central", 0.1), ("central", 1.0), ("distributed", 1.0)])
def test_the_target_holds_towards_another_site(trust, rate):
    asked = make_experiment(rounds=30, trust=trust, site_sample_rate=rate, noise_multiplier=None, target_epsilon=3.0)
    planned = resolve_noise(asked)
    assert 0.98 * 3.0 <= epsilon([planned_events(planned)[1]], planned.privacy.target_delta) <= 3.0


def history_of(rounds):
    told = {"seconds": 1.5, "bytes_up": 10, "bytes_down": 20, "sites": ["site-01"], "dropped": {"site-02": "x"}}
    return [{"round": k + 1, **told, "metrics": {"site-01": {"personal_local": 0.5}}} for k in range(rounds)]


def test_the_result_names_the_unit_and_whom_it_does_not_hold_against():
    experiment = make_experiment(site_sample_rate=0.1)
    statement = privacy_statement(experiment, 4)
    assert {row["unit"] for row in statement["epsilons"]} == {"one site's whole data set, added or removed"}
    rows = {row["adversary"]: row["epsilon"] for row in statement["epsilons"]}
    assert rows["prompt_recipient"] == rows["operator"] == "infinite"
    assert rows["other_site"] == pytest.approx(reference_epsilon(Z, 0.1, 4, 1e-5), rel=0.01)
    assert [event["steps"] for event in statement["events"]] == [4, 4, 4]


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_result_does_not_tell_who_was_drawn(rate):
    experiment = make_experiment(site_sample_rate=rate)
    known = {"transport": "in_process", "final": {}, "num_classes": {}, "seconds": 9.0}
    result = build_result(experiment, history=history_of(3), **known)
    secret = json.dumps([result["rounds"], [site["before"] for site in result["sites"]]])
    assert ("site-0" in secret) == ("0.5" in secret) == ("20" in secret) == (rate == 1.0)
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    page = render_report(result)
    assert ("drawn by chance" in page) == (rate < 1)
    assert "whole data set" in page
    assert ("What the server received from each site" in page) == ("50.0" in page) == (rate == 1.0)


# At the site

POLICY = Policy(("*",), 8.0, 16.0, trust=("central", "distributed"), units=("example", "site"), metrics="exact")


def test_the_policy_must_name_the_unit_and_its_caps_hold_towards_another_site():
    cheap = make_experiment(site_sample_rate=0.1, noise_multiplier=2.0)
    permit(POLICY, cheap)
    with pytest.raises(RefusedError, match="UNIT_NOT_ALLOWED"):
        permit(dataclasses.replace(POLICY, units=("example",)), cheap)
    dear = make_experiment(site_sample_rate=1.0, noise_multiplier=0.5, rounds=100)
    with pytest.raises(RefusedError, match="EPSILON_OVER_CAP"):
        permit(POLICY, dear)


@pytest.fixture
def agent(backbone):
    def make(policy=POLICY):
        ledger = Ledger(None)
        features = features_of(backbone, images_of(backbone))
        site = SiteAgent("site-01", backbone, features, policy, ledger, MemoryStore(), SystemRandomness(), public=True)
        return site, ledger

    return make


def train(site, experiment, number):
    context = np.zeros(experiment.context_shape, "<f4")
    return site.train(TrainRequest(experiment, number, context, evaluate=True))


def test_sampled_rounds_are_all_charged_with_the_first(agent, backbone):
    """The amplified epsilon is about all rounds: a charge for each joined round alone would be too little."""
    site, ledger = agent()
    experiment = make_experiment(backbone.width, rounds=9, site_sample_rate=0.2)
    for number in (2, 3, 7):
        train(site, experiment, number)
        (charged,) = ledger.events(adversary="other_site")
        assert (charged.noise_multiplier, charged.sample_rate, charged.steps) == (Z, 0.2, 9)
    assert epsilon(ledger.events(adversary="other_site"), 1e-5) == epsilon([planned_events(experiment)[1]], 1e-5)


def test_without_sampling_each_round_is_one_charge(agent, backbone):
    site, ledger = agent()
    experiment = make_experiment(backbone.width, rounds=3, local_steps=5, trust="distributed", noise_multiplier=4.0)
    for number in (1, 2):
        train(site, experiment, number)
    (charged,) = ledger.events(adversary="other_site")
    assert (charged.noise_multiplier, charged.sample_rate, charged.steps) == (4.0, 1.0, 2)


@pytest.mark.parametrize("first", ["example", "site"])
def test_units_are_not_added_up_over_a_lifetime(agent, backbone, first):
    site, ledger = agent()
    units = {
        "site": make_experiment(backbone.width, site_sample_rate=0.2),
        "example": make_experiment(backbone.width, unit="example", noise_multiplier=9.0),
    }
    second = dataclasses.replace(units.pop("example" if first == "site" else "site"), name="second")
    train(site, units[first], 1)
    with pytest.raises(RefusedError, match="UNITS_DO_NOT_ADD_UP"):
        train(site, second, 1)
    assert len(ledger.charges()) == 1


def test_accuracies_of_the_un_noised_prompt_stay_at_the_site(agent, backbone):
    site, _ = agent()
    experiment = make_experiment(backbone.width, site_sample_rate=0.2)
    context = np.zeros(experiment.context_shape, "<f4")
    final = site.evaluate(EvaluateRequest(experiment, 6, context))
    for reply in (train(agent()[0], experiment, 1), final):
        assert {name.rsplit("_", 1)[0] for name in reply.metrics} == {"global", "zero_shot"}


def test_the_prompt_of_the_site_is_not_exported(backbone, tmp_path):
    experiment = make_experiment(backbone.width)
    zeros = np.zeros(experiment.context_shape)
    prompt = SitePrompt(experiment, zeros.astype("<f4"), zeros, 1)
    with pytest.raises(PrivacyError, match="PROMPT_MUST_STAY"):
        write_export(prompt, backbone, tmp_path / "out", Facts(site="north"))
    assert not (tmp_path / "out").exists()
    example = make_experiment(backbone.width, unit="example")
    write_export(dataclasses.replace(prompt, experiment=example), backbone, tmp_path / "out", Facts(site="north"))


# A federation


@pytest.mark.slow
def test_fifty_sites_learn_something(backbone):
    torch.set_num_threads(1)
    data = DataSettings(source="digits", split_seed=0)
    names = list_classes(data)
    parts = partition_sites(load_pool(data, names, None), names, "iid", 50, 0, 0.3)
    sites: list[SimulatedSite] = prepare_sites(parts, names, FeatureCache(None, backbone), site_names(50))
    asked = make_experiment(
        backbone.width,
        sites=50,
        rounds=12,
        local_steps=1,
        method="promptfl",
        target_epsilon=8.0,
        noise_multiplier=None,
        site_sample_rate=0.5,
        nominal_site_size=28,
    )
    experiment = resolve_noise(
        dataclasses.replace(
            asked,
            classes=tuple(names),
            optimizer=OptimizerSettings(global_learning_rate=0.1),
            rounds=dataclasses.replace(asked.rounds, evaluate_every=100),
        )
    )
    outcome = Simulation(backbone, sites, seed=0).run(experiment)
    learned = np.mean([metrics["global_local"] for metrics in outcome.final.values()])
    zero_shot = np.mean([metrics["zero_shot_local"] for metrics in outcome.final.values()])
    assert learned > zero_shot + 0.02
    drawn = {len(entry["sites"]) for entry in outcome.checkpoint.history}
    assert len(drawn) > 1


def test_the_seed_decides_who_is_drawn_in_a_simulation(backbone):
    sites = [SimulatedSite(name, features_of(backbone, images_of(backbone)), 3) for name in site_names(10)]
    experiment = make_experiment(backbone.width, sites=10, rounds=3, local_steps=1, site_sample_rate=0.5)
    one, again, other = (Simulation(backbone, sites, seed).run(experiment).checkpoint for seed in (1, 1, 2))
    assert np.array_equal(one.global_context, again.global_context)
    drawn = [[entry["sites"] for entry in checkpoint.history] for checkpoint in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
