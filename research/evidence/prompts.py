"""What a shared prompt can learn from class means and from images: ``python -m research.evidence.prompts SET [MODEL]``.

SET is ``digits``, ``shapes`` or a folder of photos with the folder of its model. All images are in one place, without
noise: four vectors are trained, once on the class means alone and once on all images, and every line says how many of
the class means, of the training images and of the test images they get right (mean over classes).
"""

import sys

import torch
from torch import Tensor

from dpfpl_client.agent.features import FeatureCache, site_features
from dpfpl_client.data import DataSettings, list_classes, partition_sites, read_pool
from dpfpl_client.data.settings import BUILT_IN
from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import ClassScorer
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.loader import load_backbone
from dpfpl_common.config import build
from research.evidence.study import INIT_TEXT, NUM_CONTEXT

RATE, SHOWN = 0.02, (0, 10, 40, 100)
"""The product's learning rate, and after how many steps of Adam a line is printed; 40 are the product's default."""


def right(texts: Tensor, examples: LabelledFeatures) -> float:
    """Percent of the examples whose nearest text is their class's, mean over classes."""
    hits = ((examples.features @ texts.T).argmax(dim=1) == examples.labels).double()
    return 100 * float(torch.stack([hits[examples.labels == label].mean() for label in range(len(texts))]).mean())


def train(scorer: ClassScorer, initial: Tensor, examples: LabelledFeatures, sets: list[LabelledFeatures]) -> list[str]:
    """Lines of steps and what is right in each of the sets."""
    context, parameter = initial, torch.nn.Parameter(initial.clone())
    optimizer, weights = torch.optim.Adam([parameter], RATE), torch.full((len(examples),), 1 / len(examples))
    lines = []
    for step in range(SHOWN[-1] + 1):
        context = parameter.detach().clone()
        if step in SHOWN:
            texts = scorer.class_features(context)
            lines.append(f"{step} steps: " + " / ".join(f"{right(texts, of):.1f}" for of in sets))
        parameter.grad = scorer.total_gradient(context, examples, weights)
        optimizer.step()
    return lines


def main() -> None:
    """Command line."""
    name, *model = sys.argv[1:]
    backbone = load_backbone(*(model or ["embedded"]))
    assert isinstance(backbone, DualEncoder)
    data = build(DataSettings, {"source": name} if name in BUILT_IN else {"source": "folder", "path": name}, "")
    classes = list_classes(data)
    (site,) = partition_sites(read_pool(data, classes).records, classes, "none", 1, 0)
    features = site_features(FeatureCache(None, backbone), site, classes)
    of_class = [features.train.features[features.train.labels == label] for label in range(len(classes))]
    means = torch.nn.functional.normalize(torch.stack([rows.mean(dim=0) for rows in of_class]), dim=1)
    sets = [LabelledFeatures(means, torch.arange(len(classes))), features.train, features.test]
    scorer = ClassScorer(backbone, backbone.class_tokens(tuple(classes), NUM_CONTEXT))
    initial = backbone.text_embeddings(INIT_TEXT, NUM_CONTEXT)
    for what, examples in (("class means", sets[0]), ("images", sets[1])):
        print(*(f"{name}, trained on {what}, {line}" for line in train(scorer, initial, examples, sets)), sep="\n")


if __name__ == "__main__":
    main()
