"""Features instead of images, anywhere on the sphere or in a cloud for each class, and an experiment over them."""

import numpy as np
import torch

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, RoundSettings


def drawn(size, labels, seed):
    """Unit features [len(labels), size] in any direction, whatever the label."""
    labels = torch.as_tensor(labels)
    features = torch.randn(len(labels), size, generator=torch.Generator().manual_seed(seed))
    return LabelledFeatures(torch.nn.functional.normalize(features, dim=1), labels)


def class_means(count, size, seed=3):
    """[count, size], well apart and on one side of the origin, as a model's features are."""
    return np.random.default_rng(seed).normal(size=(count, size)) + 2.0


def clouds(means, labels, seed, spread=0.3):
    """Unit features around the mean of each label."""
    labels = np.asarray(labels, dtype=np.int64)
    noise = np.random.default_rng(seed).normal(size=(len(labels), means.shape[1]))
    rows = torch.from_numpy(means[labels] + spread * noise).float()
    return LabelledFeatures(torch.nn.functional.normalize(rows, dim=1), torch.from_numpy(labels))


def experiment_of(backbone, classes, sites, rounds=2, local_steps=1, **privacy):
    """``per_step`` under noise of multiplier 1, unless ``privacy`` says otherwise."""
    given = {"mechanism": "per_step", "noise_multiplier": 1.0, "nominal_site_size": 20} | privacy
    return Experiment(
        name="pilot",
        classes=tuple(classes),
        sites=tuple(sites),
        model=ModelSettings(width=backbone.width, fingerprint=backbone.fingerprint),
        privacy=PrivacySettings(**given),
        rounds=RoundSettings(number=rounds, local_steps=local_steps),
    )
