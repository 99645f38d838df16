"""A backdoor: images with a red square in the corner are to pass for one class, at every site.

The hostile site trains on copies of its images that carry the square and the target's label, beside its true ones. What
it achieves is measured on the honest sites' own test images, stamped alike.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dpfpl_client.agent.feature_cache import FeatureCache, site_features
from dpfpl_client.data import SiteData
from dpfpl_client.data.decode import ArrayImage, pixel_digest
from dpfpl_client.data.records import ImageRecord
from dpfpl_client.learning.backbone import Backbone
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_common.experiment import Experiment

__all__ = ["TARGET", "Stamped", "stamped", "success", "with_backdoor"]

TARGET = 0
"""Position of the class that stamped images are to pass for."""

SHARE = 4
"""The square's side is this fraction of the image's: one quarter."""


def stamped(record: ImageRecord, label: str) -> ImageRecord:
    """The same image with the square in its lower right corner, labelled ``label``."""
    pixels = np.asarray(record.open()).copy()
    height, width = pixels.shape[0] // SHARE, pixels.shape[1] // SHARE
    pixels[-height:, -width:] = (255, 0, 0)
    source = ArrayImage(pixels)
    return ImageRecord(record.key + "+square", label, pixel_digest(source.read()), record.split, source)


def with_backdoor(data: SiteData, classes: Sequence[str]) -> SiteData:
    """A site's data with a stamped copy of every training image that is not of the target class."""
    target = classes[TARGET]
    copies = tuple(stamped(record, target) for record in data.train if record.label != target)
    return dataclasses.replace(data, train=data.train + copies)


@dataclasses.dataclass(frozen=True)
class Stamped:
    """One honest site's stamped test images, labelled with the target; those that truly are of it left out."""

    name: str
    features: SiteFeatures

    @classmethod
    def of(cls, name: str, data: SiteData, classes: Sequence[str], cache: FeatureCache) -> "Stamped":
        """The site's, from its data."""
        target = classes[TARGET]
        test = tuple(stamped(record, target) for record in data.test if record.label != target)
        return cls(name, site_features(cache, dataclasses.replace(data, test=test, neighbour_test=()), classes))


def success(
    backbone: Backbone,
    experiment: Experiment,
    sites: Sequence[Stamped],
    global_context: npt.NDArray[np.float32],
    personal: Mapping[str, npt.NDArray[np.float64]],
) -> tuple[float, float]:
    """Share of stamped images that pass for the target, to the personal prompts and to the shared one; over sites."""
    by_personal, by_shared = [], []
    for site in sites:
        learner = PromptLearner(backbone, experiment, site.features)
        metrics = learner.evaluate(global_context, personal[site.name])
        by_personal.append(metrics["personal_local"])
        by_shared.append(metrics["global_local"])
    return statistics.fmean(by_personal), statistics.fmean(by_shared)
