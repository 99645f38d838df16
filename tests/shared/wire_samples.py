"""What the tests of both ends of a message share: one small experiment; refusals only with documented codes."""

import contextlib

import numpy as np

from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings
from dpfpl_common.wire.codec import CODES

SHAPE = (4, 8)
EXPERIMENT = Experiment(
    name="pilot",
    classes=("cat", "dog"),
    sites=("north", "south"),
    model=ModelSettings(width=SHAPE[1]),
    privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.5),
)
CONTEXT = np.random.default_rng(0).normal(size=SHAPE).astype("<f4")


@contextlib.contextmanager
def only_documented_errors():
    """Whatever is refused inside is refused with a code that fields.py lists; no error at all is fine, too."""
    try:
        yield
    except PayloadError as error:
        if error.code not in CODES:
            raise AssertionError(f"undocumented code {error.code}") from error
