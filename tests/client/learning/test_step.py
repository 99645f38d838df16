"""One noised step: sensitivity, public divisor, the right noise for every block, Poisson sampling."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats

from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import (
    TEMPERATURE,
    BlockDPOptimizer,
    SeededRandomness,
    SystemRandomness,
    contrast_cotangents,
    noised_step,
    public_pull,
)
from dpfpl_common.experiment import METHODS
from dpfpl_common.privacy.clipping import GRAIN, clipped_sums
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.privacy.sampling import SeededSampler, SystemSampler
from dpfpl_common.privacy_plan import BLOCKS, server_noise_stddev, site_noise_stddev
from no_noise import NoNoise

pytestmark = pytest.mark.privacy

TRUSTS = ("distributed", "central", "local")
WAYS = [*((trust, "joint") for trust in TRUSTS), ("distributed", "separate"), ("central", "separate")]
SHAPE = (4, 8)


def directions_of(experiment, seed=0):
    prompt, generator = experiment.prompt, np.random.default_rng(seed)
    method = build_method(prompt.method, SHAPE, prompt.rank)
    # Long factors: what fedpgp trains is not orthonormal, and its blocks are longer than the gradient.
    begun = method.begin(generator)
    parameters = generator.normal(size=SHAPE if begun is None else begun.shape) * 3.0
    return method.directions(method.settled(parameters), generator)


def released_blocks(experiment, gradients, recording_noise, directions=None):
    """Every block before noise, as handed to the noise source; the shared one from the release under central trust."""
    noise = recording_noise()
    release = noised_step(experiment, directions or directions_of(experiment), gradients, noise)
    blocks = [total for total, _ in noise.calls]
    if experiment.privacy.trust == "central":
        divisor = experiment.privacy.sample_rate * experiment.privacy.nominal_site_size
        blocks = [release.shared * divisor, *blocks]
    return blocks


def distance(experiment, a, b):
    """In the metric that scales block b by 1 / C_b: of all blocks, or of the farthest where each has its bound."""
    p = experiment.privacy
    bounds = [p.clipping_norm, *[p.factor_norm] * (len(a) - 1)]
    apart = [np.linalg.norm(x - y) / c for x, y, c in zip(a, b, bounds, strict=True)]
    return np.max(apart) if p.clipping == "separate" else math.hypot(*apart)


def adversarial_batches():
    generator = np.random.default_rng(7)
    one = generator.normal(size=SHAPE)
    yield "random", generator.normal(size=(9, *SHAPE))
    yield "huge", generator.normal(size=(9, *SHAPE)) * 1e6
    yield "overflowing", generator.normal(size=(5, *SHAPE)) * 1e200
    yield "tiny", generator.normal(size=(5, *SHAPE)) * 1e-160
    yield "aligned", np.stack([one * 10.0**k for k in range(-3, 7)])
    yield "opposed", np.stack([one, -one * 1e6, one * 1e3])
    bad = generator.normal(size=(6, *SHAPE))
    bad[0, 0, 0], bad[1, 1, 1], bad[2] = np.nan, np.inf, -np.inf
    yield "not finite", bad
    yield "single", one[None] * 1e6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("trust", "clipping"), WAYS)
@pytest.mark.parametrize(("method", "rank"), [*((m, r) for m in METHODS for r in (2, 4)), ("dplora", 1), ("fedpgp", 1)])
@pytest.mark.parametrize(("kind", "batch"), list(adversarial_batches()), ids=lambda v: v if isinstance(v, str) else "")
def test_P10_one_example_moves_the_whole_release_by_at_most_one(
    make_experiment, recording_noise, trust, clipping, method, rank, kind, batch
):
    experiment = make_experiment(trust=trust, method=method, rank=rank, clipping=clipping)
    assert len(batch) > 0, kind
    whole = released_blocks(experiment, batch, recording_noise)
    assert all(np.all(np.isfinite(block)) for block in whole)
    assert len(whole) == (1 if trust == "local" else BLOCKS[method])
    for i in range(len(batch)):
        without = released_blocks(experiment, np.delete(batch, i, axis=0), recording_noise)
        # The sums hold up to len(batch) clipped vectors; their rounding is far below the slack of the noise grid.
        assert distance(experiment, whole, without) <= 1 + 1e-9


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_P1_one_bad_coordinate_drops_its_example_and_touches_no_other(
    make_experiment, recording_noise, trust, method, bad
):
    """As if the example were not there: a rule that looks at that example alone. (1e308: its norm overflows.)"""
    experiment = make_experiment(trust=trust, method=method)
    generator = np.random.default_rng(0)
    batch = generator.normal(size=(7, *SHAPE))
    batch[3, 1, 5] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        released = released_blocks(experiment, batch, recording_noise)
    for block, expected in zip(
        released, released_blocks(experiment, np.delete(batch, 3, axis=0), recording_noise), strict=True
    ):
        assert block.tobytes() == expected.tobytes()
    batch[:] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        assert not any(block.any() for block in released_blocks(experiment, batch, recording_noise))


@pytest.mark.parametrize("trust", TRUSTS)
def test_a_long_gradient_uses_the_whole_bound(make_experiment, recording_noise, trust):
    """The other side: clipping does not throw away what the noise pays for."""
    experiment = make_experiment(trust=trust)
    batch = np.random.default_rng(1).normal(size=(1, *SHAPE)) * 1e3
    empty = np.zeros((0, *SHAPE))
    apart = distance(
        experiment,
        released_blocks(experiment, batch, recording_noise),
        released_blocks(experiment, empty, recording_noise),
    )
    assert apart == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 13])
def test_every_block_gets_its_noise_whatever_the_batch(make_experiment, recording_noise, trust, method, count):
    experiment = make_experiment(trust=trust, method=method, sites=5, tolerated_dropouts=1, tolerated_colluders=1)
    noise = recording_noise()
    noised_step(experiment, directions_of(experiment), np.random.default_rng(0).normal(size=(count, *SHAPE)), noise)
    z, c_shared, c_factor = 1.5, 0.3, 0.2
    shapes = {"promptfl": [], "fedotp": [SHAPE]}.get(method, [(4, 2), (2, 8)])
    personal = [(shape, z * c_factor) for shape in shapes]
    expected = {
        "distributed": [(SHAPE, z * c_shared / math.sqrt(3)), *personal],
        "central": personal,
        "local": [(SHAPE, z * c_shared)],
    }[trust]
    assert [(total.shape, stddev) for total, stddev in noise.calls] == [
        (shape, pytest.approx(stddev, rel=1e-12)) for shape, stddev in expected
    ]
    # What the site leaves out, the server adds.
    assert (server_noise_stddev(experiment) > 0) == (site_noise_stddev(experiment) == 0) == (trust == "central")


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_released_is_what_the_noise_source_answered(make_experiment, recording_noise, trust, method):
    """With a source that drops the data, nothing of the data is left (but central's shared sum, by its definition)."""
    experiment = make_experiment(trust=trust, method=method)
    releases = []
    for seed in (1, 2):
        noise = recording_noise(lambda total, stddev: np.random.default_rng(total.size).normal(0, stddev, total.shape))
        gradients = np.random.default_rng(seed).normal(size=(6, *SHAPE))
        releases.append(noised_step(experiment, directions_of(experiment), gradients, noise))
    assert releases[0].personal.tolist() == releases[1].personal.tolist()
    assert (releases[0].shared.tolist() == releases[1].shared.tolist()) == (trust != "central")


def test_under_local_trust_the_personal_gradient_comes_from_the_noised_message(make_experiment, recording_noise):
    experiment = make_experiment(trust="local")
    directions = directions_of(experiment)
    noise = recording_noise(lambda total, stddev: total + 5.0)
    release = noised_step(experiment, directions, np.random.default_rng(0).normal(size=(6, *SHAPE)), noise)
    assert len(noise.calls) == 1
    expected = directions.merge([block[0] for block in directions.split(release.shared[None])])
    np.testing.assert_allclose(release.personal, expected, atol=1e-13)


@pytest.mark.parametrize("trust", TRUSTS)
def test_P8_the_divisor_is_public(make_experiment, recording_noise, trust):
    """k copies of one short gradient weigh k times one of them, whatever k; only public constants divide."""
    experiment = make_experiment(trust=trust, clipping_norm=100.0, factor_clipping_norm=100.0)
    g = np.random.default_rng(0).normal(size=SHAPE)
    directions = directions_of(experiment)
    for k in (1, 2, 7, 300):
        release = noised_step(experiment, directions, np.repeat(g[None], k, axis=0), recording_noise())
        grain = k * 100.0 * GRAIN / 20  # every contribution is a whole number of the bound's grains
        np.testing.assert_allclose(release.shared, k * g / (0.5 * 40), atol=grain)
        personal = k * directions.merge([b[0] for b in directions.split(g[None])]) / 20
        np.testing.assert_allclose(release.personal, personal, atol=10 * grain)  # merged from products of two factors


def test_without_noise_nothing_is_asked_of_the_source(make_experiment, recording_noise):
    experiment = make_experiment(noise_multiplier=0.0)
    noise = recording_noise()
    noised_step(experiment, directions_of(experiment), np.ones((3, *SHAPE)), noise)
    assert noise.calls == []
    privacy = dataclasses.replace(experiment.privacy, noise_multiplier=None, target_epsilon=1.0)
    unresolved = dataclasses.replace(experiment, privacy=privacy)
    with pytest.raises(ValueError, match="not resolved"):
        noised_step(unresolved, directions_of(experiment), np.ones((3, *SHAPE)), noise)


SAMPLERS = [SeededSampler(np.random.default_rng(0)), SystemSampler(np.random.default_rng(1).bytes)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (200, 0.02)])
def test_P8_batch_sizes_are_binomial_and_every_example_alike(sampler, n, q):
    draws = [sampler.draw(n, q) for _ in range(10_000)]
    sizes = np.bincount([len(d) for d in draws], minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, q) * len(draws)
    kept = expected >= 5
    observed = np.append(sizes[kept], sizes[~kept].sum())
    wanted = np.append(expected[kept], expected[~kept].sum())
    assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0], sum_check=False).pvalue > 1e-4
    counts = np.bincount(np.concatenate(draws), minlength=n)
    z = (counts - len(draws) * q) / math.sqrt(len(draws) * q * (1 - q))
    assert stats.chi2.sf(np.sum(z**2), n) > 1e-4
    # Independent of each other: how often two neighbours join together.
    pairs = sum(bool(np.isin([0, 1], d).all()) for d in draws)
    assert stats.binomtest(pairs, len(draws), q * q).pvalue > 1e-4


@pytest.mark.parametrize("sampler", [*SAMPLERS, SystemSampler(os.urandom)])
def test_sampling_at_its_ends(sampler):
    assert sampler.draw(0, 0.5).shape == (0,)
    assert sampler.draw(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    drawn = sampler.draw(1000, 0.5)
    assert len(set(drawn.tolist())) == len(drawn)
    assert np.issubdtype(drawn.dtype, np.int64)


@pytest.mark.parametrize("q", [0.1, 1 / 3, 1e-6, 0.7])
def test_P8_the_rate_is_never_exceeded(q):
    """Of the 2**53 equally likely words exactly floor(q 2**53) join."""
    limit = math.floor(q * 2**53)
    words = np.array([limit - 1, limit], dtype=np.uint64) << np.uint64(11)
    assert SystemSampler(lambda count: words.tobytes()).draw(2, q).tolist() == [0]
    assert limit / 2**53 <= q


# Opacus' optimizer with this project's clip, noise and divisor.


BLOCK_SHAPES = ((4, 3), (4, 2), (2, 3))


def batch(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(count, *shape)) for shape in BLOCK_SHAPES]


def parameters():
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in BLOCK_SHAPES]


def without_noise(bound, expected_batch_size):
    return BlockDPOptimizer(
        parameters(), clipping_norms=[bound] * 3, noise_stddevs=[0.0] * 3, noise=NoNoise(),
        expected_batch_size=expected_batch_size,
    )  # fmt: skip


def test_with_equal_bounds_and_no_noise_it_is_opacus_own_step():
    blocks = batch(7)
    ours = without_noise(0.8, 5).release(blocks)
    plain = parameters()
    stock = DPOptimizer(torch.optim.SGD(plain, lr=1.0), noise_multiplier=0.0, max_grad_norm=0.8, expected_batch_size=5)
    for parameter, block in zip(plain, blocks, strict=True):
        parameter.grad_sample = torch.from_numpy(block)
    stock.pre_step()
    for released, parameter in zip(ours, plain, strict=True):
        # Opacus adds 1e-6 to every norm, so it clips a hair more.
        np.testing.assert_allclose(released, parameter.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_divisor_is_public_and_an_empty_batch_is_an_ordinary_one(count):
    blocks = batch(count)
    for released, total in zip(without_noise(1.0, 8).release(blocks), clipped_sums(blocks, [1.0] * 3), strict=True):
        np.testing.assert_allclose(released * 8, total, atol=1e-15)


def test_separate_clipping_bounds_every_block_on_its_own():
    blocks = batch(1, scale=100.0)
    norms = [0.5, 1.0, 2.0]
    for total, norm in zip(clipped_sums(blocks, norms, "separate"), norms, strict=True):
        assert np.linalg.norm(total) == pytest.approx(norm, rel=1e-9)
        assert np.linalg.norm(total) <= norm
    joint = clipped_sums(blocks, norms)
    assert sum((np.linalg.norm(t) / n) ** 2 for t, n in zip(joint, norms, strict=True)) <= 1


@pytest.mark.parametrize("clipping", ["joint", "separate"])
def test_an_example_that_is_not_finite_in_one_block_is_left_out_of_all(clipping):
    blocks = batch(3)
    blocks[2][1, 0, 0] = np.nan
    without = clipped_sums([block[[0, 2]] for block in blocks], [1.0] * 3, clipping)
    for total, expected in zip(clipped_sums(blocks, [1.0] * 3, clipping), without, strict=True):
        np.testing.assert_array_equal(total, expected)


# Where the randomness comes from: seeded sources repeat for the same seed, site and round; the system's never do.


def drawn(source, site="north", number=1):
    randomness = source.for_round(site, number)
    return (
        randomness.noise.add(np.zeros(20), 1.0).tobytes(),
        randomness.sampler.draw(200, 0.5).tobytes(),
        randomness.factors.standard_normal(20).tobytes(),
    )


def test_seeded_sources_are_a_function_of_seed_site_and_round():
    assert drawn(SeededRandomness(1)) == drawn(SeededRandomness(1))
    base = drawn(SeededRandomness(1))
    for other in (SeededRandomness(2), "south"), (SeededRandomness(1), "south"), (SeededRandomness(2), "north"):
        assert all(a != b for a, b in zip(base, drawn(*other), strict=True))
    assert all(a != b for a, b in zip(base, drawn(SeededRandomness(1), number=2), strict=True))
    assert base[0] != base[2]
    assert SeededRandomness.is_private is False


def test_the_systems_sources_never_repeat():
    source = SystemRandomness()
    assert all(a != b for a, b in zip(drawn(source), drawn(source), strict=True))
    assert isinstance(source.for_round("north", 1).noise, SystemNoise)
    assert source.is_private
    assert source.for_round("north", 1).noise.is_private


# Terms of the loss without images: gradients of what they say, and no longer than an example's may be.


@pytest.fixture
def pulled(backbone, make_experiment):
    def make(method="fedpgp", personal=0.3, **options):
        plain = make_experiment(width=backbone.width, classes=("cat", "dog", "bird"), method=method, trust="local")
        experiment = dataclasses.replace(plain, prompt=dataclasses.replace(plain.prompt, **options))
        scorer = backbone.scorer(experiment)
        initial = backbone.text_embeddings("a photo of a", 4)
        shared = initial + 0.1 * torch.randn(initial.shape, generator=torch.Generator().manual_seed(1))
        whole = shared + personal * torch.randn(initial.shape, generator=torch.Generator().manual_seed(2))
        return experiment, scorer, initial, shared, whole

    return make


def test_without_options_nothing_is_computed(pulled):
    assert public_pull(*pulled()) is None


def test_retention_lowers_the_loss_on_the_shared_prompt_s_classes_and_is_bounded(pulled):
    experiment, scorer, initial, shared, whole = pulled(retention=3.0)
    pull = public_pull(experiment, scorer, initial, shared, whole)
    assert not pull.shared.any()
    assert 0 < np.linalg.norm(pull.personal) <= 3.0 * experiment.privacy.clipping_norm * (1 + 1e-9)
    texts = scorer.class_features(shared)
    step = torch.from_numpy((0.01 * pull.personal / np.linalg.norm(pull.personal)).astype(np.float32))
    losses = [-scorer.at(context).probabilities(texts).diagonal().log().mean() for context in (whole, whole - step)]
    assert losses[1] < losses[0]


def contrast(shared, personal, plain):
    positive, negative = ((shared * other).sum(dim=1) / TEMPERATURE for other in (plain, personal))
    return -(positive - torch.logaddexp(positive, negative)).mean()


def test_the_contrastive_gradient_is_that_of_the_published_term():
    rows = [
        torch.nn.functional.normalize(torch.randn((5, 7), generator=torch.Generator().manual_seed(i)).double(), dim=1)
        for i in range(3)
    ]
    leaves = [row.clone().requires_grad_(True) for row in rows[:2]]
    expected = torch.autograd.grad(contrast(*leaves, rows[2]), leaves)
    for found, known in zip(contrast_cotangents(*rows), expected, strict=True):
        torch.testing.assert_close(found, known)


def test_contrast_descends_in_both_parts_and_is_bounded(pulled):
    experiment, scorer, initial, shared, whole = pulled(contrast=2.0)
    pull = public_pull(experiment, scorer, initial, shared, whole)
    plain = scorer.class_features(initial)

    def loss(shared_step, personal_step):
        moved = shared - shared_step
        return contrast(
            scorer.class_features(moved), scorer.class_features(moved + whole - shared - personal_step), plain
        )

    nothing = torch.zeros_like(shared)
    for part, place in ((pull.shared, 0), (pull.personal, 1)):
        assert 0 < np.linalg.norm(part) <= 2.0 * experiment.privacy.clipping_norm * (1 + 1e-9)
        step = torch.from_numpy((0.02 * part / np.linalg.norm(part)).astype(np.float32))
        assert loss(*((step, nothing) if place == 0 else (nothing, step))) < loss(nothing, nothing)
