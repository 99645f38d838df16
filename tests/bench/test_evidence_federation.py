"""A federation with class vectors, from the class sums to what a site predicts and exports with."""

import dataclasses

import numpy as np
import pytest
from featured_sites import class_means, clouds, experiment_of
from PIL import Image
from put_back import PARTS, PutBack

from card_code import run_card
from dpfpl_bench.simulation.in_process import InProcessGrid, SimulatedSite, Simulation
from dpfpl_client.agent.core import SiteAgent
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.store import DiskStore, MemoryStore
from dpfpl_client.learning.evidence import own_rows, pooled_head, rows_at_site
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures, initial_context
from dpfpl_client.learning.step import SeededRandomness, SystemRandomness
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import load_prompt
from dpfpl_common.errors import RefusedError, StateError
from dpfpl_common.evidence import (
    class_head,
    directions,
    mix_bonus,
    own_head,
    pool_rows,
    residuals,
    sharpened,
    unpack_moment,
    unpack_pool,
)
from dpfpl_common.privacy.one_shot import packed_moment
from dpfpl_common.privacy_plan import NOISED_COUNTS, class_sums_multiplier, scored, vote_multiplier
from dpfpl_common.wire.payloads import EvaluateRequest, TrainRequest
from dpfpl_server.federation.evidence import NOTHING_FOUND, Evidence
from dpfpl_server.federation.rounds import DPFPLStrategy
from dpfpl_server.runs.folder import RunStore
from no_noise import NoNoise

CLASSES = ("cat", "dog", "owl", "bee")
NAMES = ("north", "south")


@pytest.fixture(scope="module")
def sites(backbone):
    """Two sites with two classes each; the images say clearly what they are, and the texts know nothing of it."""
    means = class_means(4, backbone.feature_size)

    def site(name, own, others):
        parts = (
            clouds(means, np.repeat(labels, count), [count, *labels])
            for labels, count in ((own, 25), (own, 5), (others, 5))
        )
        return SimulatedSite(name, SiteFeatures(*parts, CLASSES), 2)

    return [site("north", [0, 1], [2, 3]), site("south", [2, 3], [0, 1])]


def make_experiment(backbone, rounds=3, names=NAMES, **privacy):
    once = {"mechanism": "one_shot", "trust": "local", "noise_multiplier": 0.5, "nominal_site_size": 50}
    return experiment_of(backbone, CLASSES, names, rounds=rounds, **(once | privacy))


def agent_of(backbone, site, store, randomness, ledger=None):
    return SiteAgent(site.name, backbone, site.features, None, ledger or Ledger(None), store, randomness)


@pytest.fixture(scope="module")
def finished(backbone, sites, tmp_path_factory):
    """A run whose sites keep what they learn on disk; the strategy, and the state folder of each site."""
    folders = {site.name: tmp_path_factory.mktemp(site.name) for site in sites}
    agents = {site.name: agent_of(backbone, site, DiskStore(folders[site.name]), SeededRandomness(1)) for site in sites}
    grid = InProcessGrid(agents)
    strategy = DPFPLStrategy(make_experiment(backbone), grid.nodes, keys=None)
    strategy.run(grid)
    return strategy, folders


def test_the_votes_choose_class_vectors_where_the_texts_know_nothing(finished):
    strategy, _ = finished
    evidence = strategy.checkpoint.evidence

    assert evidence.chosen(strategy.experiment) == "evidence"
    assert set(evidence.rows) == set(evidence.votes) == set(NAMES)
    for metrics in strategy.final_metrics.values():
        assert metrics["personal_local"] == metrics["both_local"] > 0.9
        assert metrics["personal_unseen"] > 0.9 > 0.6 > metrics["zero_shot_all"]
        assert metrics["personal_all"] > 0.9


def test_simulated_sites_learn_the_same_class_vectors_as_sites_on_disk(backbone, sites, finished):
    strategy, _ = finished
    simulated = Simulation(backbone, sites, seed=1).run(strategy.experiment)

    assert simulated.final == strategy.final_metrics
    for name, rows in simulated.checkpoint.evidence.rows.items():
        np.testing.assert_array_equal(rows, strategy.checkpoint.evidence.rows[name])
    for name, vote in simulated.checkpoint.evidence.votes.items():
        np.testing.assert_array_equal(vote, strategy.checkpoint.evidence.votes[name])


def test_a_site_predicts_with_the_pool_of_all_and_its_own_mix(backbone, finished):
    strategy, folders = finished
    evidence, experiment = strategy.checkpoint.evidence, strategy.experiment
    pool, _ = pool_rows([evidence.rows[n].astype(float) for n in sorted(NAMES)], class_sums_multiplier(experiment))
    packed = unpack_pool(evidence.packed(experiment, "north"), 4)[0]
    np.testing.assert_allclose(packed.rows, pool.rows, rtol=1e-6, atol=1e-6)
    prompt = load_prompt(folders["north"])
    learner = PromptLearner(backbone, experiment, SiteFeatures.empty(backbone.feature_size, CLASSES))
    context = learner.context(prompt.global_context, np.zeros(experiment.context_shape))
    texts = backbone.scorer(experiment).class_features(context).double().numpy()
    plain = backbone.scorer(experiment).class_features(learner._initial).double().numpy()
    expected, about = (class_head(packed, prior, backbone.logit_scale) for prior in (texts, plain))
    expected = sharpened(expected, directions(about), packed)

    head = prompt.head(backbone)
    assert np.trace(packed.moment) == pytest.approx(100, abs=10)  # of fifty images at each site, each of norm 1
    np.testing.assert_array_equal(head.vectors, expected.vectors)
    np.testing.assert_allclose(head.mix, mix_bonus(np.array([0.5, 0.5, 0.0, 0.0]), 0.5))
    np.testing.assert_allclose(head.bias, head.scale * expected.bias + head.mix)
    assert np.abs(expected.bias).max() > 0
    assert prompt.with_strength(1.0).head(backbone) is None
    np.testing.assert_array_equal(prompt.with_usual_mix(0.0).head(backbone).mix, np.zeros(4))


def test_under_secure_trust_no_rows_are_a_sites_own(backbone):
    experiment, rows = make_experiment(backbone), np.ones((4, backbone.feature_size))
    secure = dataclasses.replace(
        experiment, sites=(*NAMES, "west"), privacy=dataclasses.replace(experiment.privacy, trust="secure")
    )
    own = own_rows(experiment, rows, None)
    np.testing.assert_array_equal(own.rows, rows)
    np.testing.assert_allclose(own.variances, class_sums_multiplier(experiment) ** 2)
    assert own_rows(experiment, None, None) is own_rows(secure, rows, None) is None


def test_a_site_sharpens_its_own_rows_by_its_own_moment(backbone, finished):
    strategy, _ = finished
    evidence, experiment = strategy.checkpoint.evidence, strategy.experiment
    vote = evidence.votes["north"].astype(float)
    own = own_rows(experiment, evidence.rows["north"].astype(float), vote)
    np.testing.assert_array_equal(own.moment, unpack_moment(vote[1:]))
    assert own.moment_variance == vote_multiplier(experiment) ** 2


def test_ni7_whose_class_vectors_suit_a_site_better_never_leaves_it(backbone, finished):
    """It is decided by exact answers to its training images: what leaves goes by released values alone."""
    prompt = load_prompt(finished[1]["north"])
    moments = (None, np.array([0.0, *np.random.default_rng(0).normal(size=len(prompt.vote) - 1)]))
    ways = [dataclasses.replace(prompt, choice=dataclasses.replace(prompt.choice, own=own)) for own in moments]
    pool, own = (way.head(backbone) for way in ways)
    assert not np.allclose(pool.vectors, own.vectors)
    leaving = [way.head(backbone, leaves=True) for way in ways]
    np.testing.assert_array_equal(leaving[0].vectors, leaving[1].vectors)
    np.testing.assert_array_equal(leaving[0].bias, leaving[1].bias)


def sites_of_which_one_has_another_device(backbone):
    means = class_means(4, backbone.feature_size, seed=4)
    looks = {"north": means[[1, 2, 3, 0]], "south": means, "west": means}  # north's device shows others' classes

    def parts(look, seed):
        return (clouds(look, np.repeat(np.arange(4), count), [seed, count], 1.0) for count in (25, 10, 0))

    return [
        SimulatedSite(name, SiteFeatures(*parts(look, seed), CLASSES), 2)
        for seed, (name, look) in enumerate(looks.items())
    ]


def test_a_site_with_another_device_has_class_vectors_of_its_own(backbone):
    sites = sites_of_which_one_has_another_device(backbone)
    names = tuple(site.name for site in sites)
    outcome = Simulation(backbone, sites, seed=1).run(make_experiment(backbone, names=names))
    for used in ("both_local", "personal_local"):
        assert {name: outcome.final[name][used] > 0.9 for name in names} == dict.fromkeys(names, True)


def test_an_evaluation_that_is_asked_again_changes_nothing_that_the_site_uses(backbone, tmp_path):
    sites = sites_of_which_one_has_another_device(backbone)
    experiment = make_experiment(backbone, names=[site.name for site in sites])
    agents = {
        site.name: agent_of(backbone, site, DiskStore(tmp_path / site.name), SystemRandomness()) for site in sites
    }
    grid, store = InProcessGrid(agents), DiskStore(tmp_path / "north")
    strategy = DPFPLStrategy(experiment, grid.nodes, keys=None)
    last = strategy.run(grid)
    used = store.read_choice(experiment.name).own
    assert len(used) == 1 + 3 * 4 / 2
    request = EvaluateRequest(experiment, last.round, last.global_context)
    request = last.evidence.ask_last(request, "north")
    agents["north"].evaluate(request)
    np.testing.assert_array_equal(store.read_choice(experiment.name).own, used)
    agents["north"].evaluate(dataclasses.replace(request, pool=request.pool * np.float32(1.001)))
    assert not np.array_equal(store.read_choice(experiment.name).own, used)


def test_a_site_with_another_device_sharpens_its_own_class_vectors_by_a_moment_around_them(backbone):
    sites = sites_of_which_one_has_another_device(backbone)
    experiment = make_experiment(backbone, names=[site.name for site in sites])
    evidence = Simulation(backbone, sites, seed=1).run(experiment).checkpoint.evidence
    train, packed = sites[0].features.train, evidence.packed(experiment, "north")
    learner = PromptLearner(backbone, experiment, sites[0].features)
    sums = evidence.rows["north"].astype(float)
    alone = own_rows(experiment, sums, evidence.votes["north"].astype(float))
    randomness = SeededRandomness(0).for_round("north", 1)
    made = learner.own_moment(packed, alone, dataclasses.replace(randomness, noise=NoNoise()))

    shared, weights = unpack_pool(packed, 4)
    around = own_head(shared, alone, weights, learner._plain_texts, backbone.logit_scale)
    rows = residuals(around, train.features.double().numpy(), train.labels.numpy())
    np.testing.assert_allclose(unpack_moment(made[1:]), rows.T @ rows, atol=1e-3)
    noised = learner.own_moment(packed, alone, randomness)
    assert made[0] == noised[0] == 0.0
    noise = [learner.own_moment(packed, alone, SeededRandomness(0).for_round("north", n)) - made for n in range(100)]
    assert np.std(np.array(noise)[:, 1:]) == pytest.approx(vote_multiplier(experiment), rel=0.1)
    used = rows_at_site(experiment, sums, np.array([0.0, *packed_moment(np.diag([90.0, 5.0, 5.0]))]))
    head = pooled_head(learner._scorer, learner._initial, packed, None, alone, used)
    np.testing.assert_array_equal(head.vectors, sharpened(around, directions(around), used).vectors)
    assert not np.allclose(head.vectors, around.vectors)
    assert learner.own_moment(packed, None, randomness) is None
    for other in (1, 2):  # whose images look alike
        name, like = sites[other].name, PromptLearner(backbone, experiment, sites[other].features)
        alone = own_rows(experiment, evidence.rows[name].astype(float), evidence.votes[name].astype(float))
        drawn = NoNoise()
        given = dataclasses.replace(randomness, noise=drawn)
        assert like.own_moment(evidence.packed(experiment, name), alone, given) is None
        assert len(drawn.calls) == 1  # it is made in any case: its time would tell the answer


def test_what_is_exported_carries_a_mix_from_noised_class_sums_and_plain_arithmetic_gives_its_logits(
    backbone, sites, finished, tmp_path
):
    _, folders = finished
    prompt = load_prompt(folders["north"])
    written = write_export(prompt, backbone, tmp_path / "out", Facts("north"))
    again = load_prompt(tmp_path / "out")
    exported, own = again.head(backbone), prompt.head(backbone, leaves=True)

    assert "class_vectors.safetensors" in written.files
    assert "class_vectors.safetensors" in (tmp_path / "out" / "README.md").read_text()
    np.testing.assert_array_equal(exported.vectors, own.vectors)
    assert not np.array_equal(exported.bias, prompt.head(backbone).bias)
    np.testing.assert_array_equal(exported.bias, own.bias)
    np.testing.assert_allclose(np.exp(own.mix).sum(), 4.0)
    assert np.abs(exported.bias - exported.mix).max() > 0  # what the moment made of it
    other = again.with_usual_mix(0.9).head(backbone)
    np.testing.assert_array_equal(other.bias, prompt.with_usual_mix(0.9).head(backbone, leaves=True).bias)
    assert not np.allclose(other.bias, exported.bias)
    images = sites[0].features.test.features
    logits = exported.scale * images.double().numpy() @ exported.vectors.T + exported.bias
    np.testing.assert_allclose(exported.logits(images).numpy(), logits)
    assert (logits.argmax(axis=1) == sites[0].features.test.labels.numpy()).mean() > 0.9


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("way", ["pool", "own", "text"])
def test_a_name_that_is_added_changes_no_logit_of_the_others(backbone, sites, finished, way, leaves):
    prompt = load_prompt(finished[1]["north"])
    changes = {
        "pool": {},
        "own": {"own": np.array([0.0, 40.0, 0.0, 0.0, 8.0, 0.0, 2.0])},
        "text": {"chosen": "text"},
    }
    prompt = dataclasses.replace(prompt, choice=dataclasses.replace(prompt.choice, **changes[way]))
    before, after = (way.head(backbone, leaves=leaves) for way in (prompt, prompt.with_names("ant", "elk")))
    images = sites[0].features.test.features
    np.testing.assert_allclose(after.logits(images)[:, :4], before.logits(images), atol=1e-11)
    assert after.vectors.shape == (6, backbone.feature_size)
    np.testing.assert_allclose(after.mix[4:], np.log(0.5))  # as a class that the site has no images of
    experiment = dataclasses.replace(prompt.experiment, classes=(*CLASSES, "ant", "elk"))
    plain = backbone.scorer(experiment).class_features(initial_context(backbone, experiment)).numpy()
    assert np.allclose(after.vectors[4:], plain[4:]) == (way == "text")
    assert (np.abs(after.own_bias[4:]) > 0).all() == (way != "text")


def test_an_export_holds_names_that_were_added_before_and_takes_none_afterwards(backbone, finished, tmp_path):
    prompt = load_prompt(finished[1]["north"]).with_names("ant")
    write_export(prompt, backbone, tmp_path / "out", Facts("north"))
    again = load_prompt(tmp_path / "out")
    assert again.classes == (*CLASSES, "ant")
    assert again.experiment == prompt.experiment
    for usual_mix in (0.5, 0.9):
        own = prompt.with_usual_mix(usual_mix).head(backbone, leaves=True)
        exported = again.with_usual_mix(usual_mix).head(backbone)
        np.testing.assert_array_equal(exported.vectors, own.vectors)
        np.testing.assert_array_equal(exported.bias, own.bias)
    Image.new("RGB", (20, 20), (90, 80, 70)).save(tmp_path / "out/photo.png")
    by_vectors, by_prompt, *_ = run_card(tmp_path / "out")
    for found, used in ((by_vectors, again), (by_prompt, again.with_strength(1.0))):
        (said,) = used.predict(backbone, [Image.new("RGB", (20, 20), (90, 80, 70))], 5)
        assert found == pytest.approx(dict(zip(said.classes, said.probabilities, strict=True)), abs=1e-5)
    with pytest.raises(StateError, match="NAMES_MISSING") as error:
        again.with_names("elk")
    assert "export again" in error.value.advice
    assert again.with_strength(1.0).with_names("elk").classes == (*CLASSES, "ant", "elk")


def test_a_site_votes_once(backbone, sites, finished):
    strategy, _ = finished
    experiment, evidence = strategy.experiment, strategy.checkpoint.evidence
    learner = PromptLearner(backbone, experiment, sites[0].features)
    context = np.zeros(experiment.context_shape, np.float32)
    source = SeededRandomness(4)
    packed = evidence.packed(experiment, "north", moment=False)
    first = learner.train_round(context, PersonalState.initial(experiment), source.for_round("north", 1), pool=packed)

    assert first.evidence.shape == (1, 1 + 3 * 4 // 2)
    with pytest.raises(RefusedError, match="votes once"):
        learner.train_round(context, first.state, source.for_round("north", 2), pool=packed + 1)


class Asked(PutBack):
    """The site is asked by hand."""

    def __init__(self, folder, backbone, site, experiment):
        self.experiment, self.context = experiment, np.zeros(experiment.context_shape, np.float32)
        super().__init__(
            folder,
            lambda ledger, state: agent_of(backbone, site, DiskStore(state), SystemRandomness(), ledger),
        )

    def ask(self, number, **more):
        return self.site.train(TrainRequest(self.experiment, number, self.context, **more))


@pytest.mark.privacy
@pytest.mark.parametrize("part", PARTS)
def test_a_state_folder_put_back_from_between_rows_and_vote_votes_no_second_time_for_nothing(
    backbone, sites, finished, tmp_path, part
):
    """Vote and moment, one row, are charged with the rows and leave in a round that costs nothing more."""
    strategy, _ = finished
    site = Asked(tmp_path, backbone, sites[0], make_experiment(backbone, rounds=4))
    pool = strategy.checkpoint.evidence.packed(strategy.experiment, "north", moment=False)
    site.ask(1, collect=True)
    site.keep()
    assert site.ask(2, pool=pool).evidence.shape == (1, 1 + 3 * 4 // 2), "a vote and a moment"
    site.put_back(part)

    if part == "whole folder":  # the ledger knows no vote any more, so another one is charged in full
        assert site.ask(3, pool=pool).evidence is not None
        assert sum(event.steps for event in site.ledger.events("pilot")) == 2
        return
    with pytest.raises(RefusedError, match="VOTED_ALREADY"):
        site.ask(3, pool=pool)
    assert site.ask(3).evidence is None, "training, of what was released, goes on"
    with pytest.raises(RefusedError, match="VOTED_ALREADY"):
        site.ask(4, pool=pool)
    assert sum(event.steps for event in site.ledger.events("pilot")) == 1


@pytest.mark.privacy
def test_a_vote_that_was_interrupted_is_cast_after_all(backbone, sites, finished, tmp_path):
    """Nothing of it left, so nothing speaks against it."""
    strategy, _ = finished
    site = Asked(tmp_path, backbone, sites[0], make_experiment(backbone, rounds=4))
    pool = strategy.checkpoint.evidence.packed(strategy.experiment, "north", moment=False)
    site.ask(1, collect=True)
    site.site._store.write = lambda *arguments: (_ for _ in ()).throw(OSError("killed"))
    with pytest.raises(OSError, match="killed"):
        site.ask(2, pool=pool)
    site.ledger.close()
    site.start()

    assert site.ask(3, pool=pool).evidence is not None


@pytest.mark.privacy
def test_scores_of_a_state_folder_that_was_put_back_are_charged_each_time(backbone, sites, tmp_path):
    site = Asked(tmp_path, backbone, sites[0], make_experiment(backbone))
    for number in (1, 2, 3):
        site.ask(number, collect=number == 1)
    site.keep()
    request = EvaluateRequest(site.experiment, 3, site.context)
    first = site.site.evaluate(request).scores
    site.put_back("whole folder")

    assert site.site.evaluate(request).scores != first
    (charged,) = [event for event in site.ledger.events("pilot") if event.mechanism == NOISED_COUNTS]
    assert charged.steps == 2


def test_class_sums_vote_and_moment_leave_with_the_noise_that_is_charged(backbone, sites, finished):
    strategy, _ = finished
    experiment, noise = strategy.experiment, NoNoise()
    randomness = dataclasses.replace(SeededRandomness(4).for_round("north", 1), noise=noise)
    learner = PromptLearner(backbone, experiment, sites[0].features)
    context = np.zeros(experiment.context_shape, np.float32)
    first = learner.train_round(context, PersonalState.initial(experiment), randomness, collect=True)
    packed = strategy.checkpoint.evidence.packed(experiment, "north", moment=False)
    learner.train_round(context, first.state, randomness, pool=packed)

    assert [(total.shape, stddev) for total, stddev in noise.calls] == [
        ((4, backbone.feature_size), class_sums_multiplier(experiment)),
        ((1,), vote_multiplier(experiment)),
        ((6,), vote_multiplier(experiment)),
    ]


def test_the_plain_text_is_counted_as_it_is_used_with_a_mix_that_was_read_off_noised_class_sums(
    backbone, sites, finished
):
    strategy, folders = finished
    prompt = dataclasses.replace(strategy.experiment.prompt, usual_mix=0.999)
    experiment = dataclasses.replace(strategy.experiment, prompt=prompt)
    # Training images of other classes than those that were released: their exact shares would show in the counts.
    features = dataclasses.replace(sites[1].features, train=sites[0].features.train)
    state = DiskStore(folders["south"]).read("pilot", 3).state
    learner = PromptLearner(backbone, experiment, features)
    randomness = dataclasses.replace(SeededRandomness(4).for_round("south", 1), noise=NoNoise())
    packed = strategy.checkpoint.evidence.packed(experiment, "south")
    counted = dict(
        zip(scored(experiment), learner.scores(state.context.astype("<f4"), state, randomness, packed), strict=False)
    )

    texts = backbone.scorer(experiment).class_features(learner._initial).double().numpy()
    total = unpack_pool(packed, 4)[0].total
    held = state.class_sums @ (total / np.linalg.norm(total))
    assert (held > 3 * class_sums_multiplier(experiment)).tolist() == [False, False, True, True]  # noised, and right
    shares = np.array([0.0, 0.0, held[2], held[3]]) / held[2:].sum()
    logits = backbone.logit_scale * features.test.features.double().numpy() @ texts.T
    for name, with_mix in (("zero_shot", 0.0), ("text", 1.0)):
        right = (logits + with_mix * mix_bonus(shares, 0.999)).argmax(axis=1) == features.test.labels.numpy()
        assert counted[name] == pytest.approx(2 * right.sum() - len(right))
    assert counted["text"] > counted["zero_shot"]


def test_a_site_that_comes_later_adds_its_rows_and_one_that_leaves_takes_them_along(backbone, finished):
    strategy, _ = finished
    experiment, whole = strategy.experiment, strategy.checkpoint.evidence
    request = strategy._train_request(3)
    alone = whole.without("south")

    assert alone.ask(request, "south").collect
    assert not alone.ask(request, "north").collect
    assert alone.ask(request, "north").pool is None  # it has voted
    joined = Evidence({**alone.rows, "south": whole.rows["south"]}, alone.votes)
    voted = [evidence.packed(experiment, "south", moment=False) for evidence in (joined, whole)]
    np.testing.assert_array_equal(*voted)
    assert joined.ask(request, "south").pool is not None
    only, _ = pool_rows([whole.rows["north"].astype(float)], class_sums_multiplier(experiment))
    np.testing.assert_allclose(
        unpack_pool(alone.packed(experiment, "north"), 4)[0].rows, only.rows, rtol=1e-6, atol=1e-6
    )
    shown = [unpack_pool(evidence.packed(experiment, "north"), 4)[0] for evidence in (whole, alone)]
    assert shown[0].moment_variance == 2 * shown[1].moment_variance
    assert np.trace(shown[1].moment) == pytest.approx(50, abs=10)


def test_a_site_that_leaves_in_the_middle_is_taken_out_of_the_pool_and_the_store(backbone, sites, tmp_path):
    third = dataclasses.replace(sites[1], name="west")
    everybody = (*sites, third)
    agents = {site.name: agent_of(backbone, site, MemoryStore(), SeededRandomness(1)) for site in everybody}
    answer, store = agents["west"].train, RunStore(tmp_path / "run.sqlite")

    def leave(request):
        if request.round > 2:
            raise RefusedError(code="FORGOTTEN", message="This site left this experiment.", advice="Go on without it.")
        return answer(request)

    agents["west"].train = leave
    experiment = make_experiment(backbone, rounds=4, names=(*NAMES, "west"), tolerated_dropouts=1)
    grid, seen = InProcessGrid(agents), {}

    def keep(checkpoint):
        store.save(experiment, checkpoint)
        seen[checkpoint.round] = checkpoint.evidence

    strategy = DPFPLStrategy(experiment, grid.nodes, keys=None, on_checkpoint=keep)
    strategy.run(grid)

    assert set(seen[2].rows) == set(seen[2].votes) == {*NAMES, "west"}
    for evidence in (strategy.checkpoint.evidence, store.load(experiment).evidence):
        assert set(evidence.rows) == set(evidence.votes) == set(NAMES)
    pooled, _ = pool_rows([seen[2].rows[name].astype(float) for name in NAMES], class_sums_multiplier(experiment))
    packed = strategy.checkpoint.evidence.packed(experiment, "north")
    np.testing.assert_allclose(unpack_pool(packed, 4)[0].rows, pooled.rows, rtol=1e-6, atol=1e-6)
    versions = [evidence.facts(experiment)["version"] for evidence in (seen[2], seen[3], seen[4])]
    assert versions[0] != versions[1] == versions[2]


def test_a_checkpoint_keeps_class_sums_and_votes(finished, tmp_path):
    strategy, _ = finished
    store = RunStore(tmp_path / "run.sqlite")
    store.save(strategy.experiment, strategy.checkpoint)
    again = store.load(strategy.experiment).evidence

    for name, vote in strategy.checkpoint.evidence.votes.items():
        np.testing.assert_array_equal(again.votes[name], vote)
    for name, rows in strategy.checkpoint.evidence.rows.items():
        np.testing.assert_array_equal(again.rows[name], rows)


def test_nothing_that_stands_out_is_said_and_is_zero_shot(backbone, sites):
    experiment = make_experiment(backbone, noise_multiplier=1e4)
    said = []
    outcome = Simulation(backbone, sites, seed=0).run(experiment, said.append)

    facts = outcome.checkpoint.evidence.facts(experiment)
    assert (facts["classes_found"], facts["warning"]) == (0, NOTHING_FOUND)
    assert any(status.get("text") == NOTHING_FOUND for status in said)
    for metrics in outcome.final.values():
        assert metrics["both_all"] == pytest.approx(metrics["global_all"])
    lucky = {name: np.array([1e9], dtype="<f4") for name in outcome.checkpoint.evidence.rows}
    assert Evidence(outcome.checkpoint.evidence.rows, lucky).chosen(experiment) == "text"
