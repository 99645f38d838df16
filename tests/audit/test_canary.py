"""A canary through the real mechanism stays below the claimed epsilon; through the published arithmetic it does not."""

import math

import numpy as np
import pytest
import torch

from dpfpl_bench.audit.bounds import two_world_bound
from dpfpl_client.learning.learner import PersonalState, PromptLearner, SiteFeatures
from dpfpl_client.learning.methods import build_method
from dpfpl_client.learning.step import SystemRandomness, noised_step
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.privacy.noise import SystemNoise
from dpfpl_common.privacy_plan import paper_noise_multiplier, planned_events, resolve_noise

pytestmark = pytest.mark.privacy

DELTA = 1e-5
SHAPE = (4, 8)
BATCH = 32
TRIALS = 4000


def experiment(target_epsilon: float, **privacy: object) -> Experiment:
    fixed = {"mechanism": "per_step", "sample_rate": 1.0, "nominal_site_size": BATCH, "clipping_norm": 1.0}
    settings = PrivacySettings(target_epsilon=target_epsilon, **(fixed | privacy))
    return resolve_noise(
        Experiment(
            name="audit",
            classes=("a", "b"),
            sites=("one", "two", "three"),
            model=ModelSettings(width=SHAPE[1]),
            prompt=PromptSettings(rank=2),
            privacy=settings,
            rounds=RoundSettings(number=1, local_steps=1),
        )
    )


def opposed_batch() -> tuple[np.ndarray, np.ndarray]:
    """Gradients that cancel out [31, ...], and a canary a million times as large [1, ...]."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(BATCH // 2, *SHAPE))
    canary = np.zeros((1, *SHAPE))
    canary[0, 0, 0] = 1e6
    return np.concatenate([half, -half])[: BATCH - 1], canary


def published_releases(gradients: np.ndarray, nominal_epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Replica of the published arithmetic: clip the batch mean, noise as if every example had been clipped."""
    mean = gradients.mean(axis=0)
    clipped = mean * min(1.0, 1.0 / np.linalg.norm(mean))
    stddev = paper_noise_multiplier(nominal_epsilon, DELTA, 1) / BATCH
    return clipped + rng.normal(0.0, stddev, (TRIALS, *mean.shape))


@pytest.mark.parametrize("nominal", [0.1, 0.4, 2.0])
def test_the_published_arithmetic_promises_less_privacy_than_it_keeps(nominal: float) -> None:
    others, canary = opposed_batch()
    rng = np.random.default_rng(1)
    with_canary = published_releases(np.concatenate([others, canary]), nominal, rng)[:, 0, 0]
    without = published_releases(others, nominal, rng)[:, 0, 0]
    assert two_world_bound(with_canary, without, DELTA) > nominal


WAYS: dict[str, dict[str, object]] = {"joint": {}, "local": {"trust": "local"}, "separate": {"clipping": "separate"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "privacy"),
    [(0.1, WAYS["joint"]), *((target, way) for target in (0.4, 2.0) for way in WAYS.values())],
    ids=["0.1-joint", *(f"{target}-{name}" for target in (0.4, 2.0) for name in WAYS)],
)
def test_the_same_attack_on_ours_stays_below_the_claim(target: float, privacy: dict[str, object]) -> None:
    audited = experiment(target, **privacy)
    others, canary = opposed_batch()
    directions = build_method("dpfpl", SHAPE, 2).directions(np.zeros(SHAPE), np.random.default_rng(2))
    personal_canary = directions.merge([block[0] for block in directions.split(canary)])
    # Everything that the recipient of the prompt sees, weighted by its own noise: the best linear test.
    shared_noise = 1.0 if audited.privacy.trust == "local" else audited.privacy.noise_multiplier

    def score(gradients: np.ndarray) -> float:
        release = noised_step(audited, directions, gradients, SystemNoise())
        value = release.shared[0, 0] / shared_noise
        return float(value + np.vdot(release.personal, personal_canary) / np.linalg.norm(personal_canary))

    with_canary = np.array([score(np.concatenate([others, canary])) for _ in range(TRIALS)])
    without = np.array([score(others) for _ in range(TRIALS)])
    bound = two_world_bound(with_canary, without, DELTA)
    assert bound <= target


def test_the_attack_is_alive() -> None:
    """With a quarter of the noise the same attack on the same code breaks the claim."""
    target = 2.0
    audited = experiment(target, trust="local")
    weak = audited.with_noise_multiplier((audited.privacy.noise_multiplier or 0.0) / 4)
    others, canary = opposed_batch()
    directions = build_method("promptfl", SHAPE, 2).directions(np.zeros(SHAPE), np.random.default_rng(2))

    def score(gradients: np.ndarray) -> float:
        return float(noised_step(weak, directions, gradients, SystemNoise()).shared[0, 0])

    with_canary = np.array([score(np.concatenate([others, canary])) for _ in range(TRIALS)])
    without = np.array([score(others) for _ in range(TRIALS)])
    assert two_world_bound(with_canary, without, DELTA) > target


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["per_step", "one_shot"])
def test_a_canary_through_the_whole_site_stays_below_the_claim(mechanism: str) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    target = 2.0
    audited = resolve_noise(
        Experiment(
            name="audit",
            classes=("circle", "square"),
            sites=("one",),
            model=ModelSettings(width=backbone.width),
            privacy=PrivacySettings(
                mechanism=mechanism,
                target_epsilon=target,
                trust="local",
                sample_rate=1.0,
                nominal_site_size=8,
                clipping_norm=0.01,  # below the canary's gradient, so that it moves the sum by all that is allowed
            ),
            rounds=RoundSettings(number=1, local_steps=1),
        )
    )
    generator = torch.Generator().manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(8, backbone.feature_size, generator=generator), dim=1)
    labels = torch.tensor([0, 1] * 4)
    nothing = LabelledFeatures(features[:0], labels[:0])

    def learner(count: int, of: Experiment) -> PromptLearner:
        train = LabelledFeatures(features[:count], labels[:count])
        return PromptLearner(backbone, of, SiteFeatures(train, nothing, nothing, of.classes))

    full, without_last = learner(8, audited), learner(7, audited)
    global_context = np.zeros(audited.context_shape, dtype=np.float32)
    state = PersonalState.initial(audited)

    def release(of: PromptLearner) -> np.ndarray:
        result = of.train_round(global_context, state, SystemRandomness().for_round("one", 1))
        return result.update if result.state.class_sums is None else result.state.class_sums

    # The adversary knows all the other examples and hence the canary's exact contribution.
    quiet = audited.with_noise_multiplier(0.0)
    direction = release(learner(8, quiet)) - release(learner(7, quiet))
    trials = 400 if mechanism == "per_step" else 1500
    with_canary = np.array([np.vdot(release(full), direction) for _ in range(trials)])
    without = np.array([np.vdot(release(without_last), direction) for _ in range(trials)])
    claimed = epsilon(planned_events(audited)[:1], DELTA)
    assert math.isclose(claimed, target, rel_tol=0.02)
    assert two_world_bound(with_canary, without, DELTA) <= claimed
    assert with_canary.mean() > without.mean(), "the canary must be seen at all"
