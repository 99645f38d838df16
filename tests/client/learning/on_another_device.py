"""On another device: no step mixes tensors of two devices, and what is given and taken is on the processor.

On a pretended device, see ``elsewhere``; nothing here was run on a GPU. ``test_devices.py`` runs this file.
"""

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, elsewhere
from PIL import Image
from text_models import BOS, TINY, problem, text_model

from dpfpl_client.models.backbone import LabelledFeatures
from dpfpl_client.models.class_scorer import EXACT, label_against_rivals, loss_scales
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.loader import CPU, load_backbone
from dpfpl_client.models.text_tower.fast import FastTextTower, MemoryPlan
from dpfpl_client.models.text_tower.plain import PlainTextTower
from random_models.families import FAMILIES, write_random_model

torch.set_num_threads(1)


def all_ways(tower, context, tokens, scales, directions):
    """Every function of a tower and its passes."""
    yield tower(context, tokens)
    text = tower.run(context, tokens)
    yield text.rank_one_pullback(scales, directions)
    yield text.pullback(scales[:, :, None] * directions[:, None])
    labels = scales.argmax(dim=1)
    few = label_against_rivals(loss_scales(text, 3.0, directions, labels), labels, 1)
    yield tower.run(context, tokens, singly=True).rank_one_pullback(few, directions, few=2)


def test_the_pretended_device_refuses_to_mix():
    with elsewhere():
        here, there = torch.ones(3), torch.ones(3).to(ELSEWHERE)
        assert (there + 1).device == (there + torch.tensor(1.0)).device == ELSEWHERE
        assert torch.zeros(2, device=ELSEWHERE).device == torch.tensor([1.0], device=ELSEWHERE).device == ELSEWHERE
        assert torch.zeros_like(there).device == there.new_zeros(2).device == there[torch.tensor([0, 2])].device
        assert here.device == torch.zeros(2).device == there.cpu().device == CPU
        assert not isinstance(there.cpu(), Elsewhere)
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
            lambda: here[torch.tensor([0]).to(ELSEWHERE)],
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


@pytest.mark.parametrize("plan", [MemoryPlan(), TINY], ids=["at once", "one at a time"])
@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_a_tower_and_its_gradients_stay_on_their_device(kind, plan):
    def tower(model):
        if kind == "plain":
            return PlainTextTower(model.text_model, model.text_projection)
        return FastTextTower(model.text_model, model.text_projection, BOS, plan=plan)

    context, tokens, scales, directions = problem(3, text_model(num_hidden_layers=3), classes=6, batch=4)
    here = list(all_ways(tower(text_model(num_hidden_layers=3)), context, tokens, scales, directions))
    with elsewhere():
        model = text_model(num_hidden_layers=3).to(ELSEWHERE)
        given = (context.to(ELSEWHERE), tokens.to(ELSEWHERE), scales.to(ELSEWHERE), directions.to(ELSEWHERE))
        there = list(all_ways(tower(model), *given))
        assert all(each.device == ELSEWHERE for each in there)
        found = [each.cpu() for each in there]
    for a, b in zip(here, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def what_a_site_asks(folder, device, make_experiment):
    """Everything that training and using a prompt ask of a model, and where its weights are."""
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(5)]
    model = load_backbone(str(folder), device=device)
    rows = torch.stack(list(model.image_features(images)))
    context = model.text_embeddings("a", 3)
    classes = ("cat", "small red dog", "bird")
    experiment = make_experiment(width=model.width, num_context=3, classes=classes, init_text="a")
    examples = LabelledFeatures(rows, torch.tensor([0, 1, 2, 1, 0]))
    scorer = model.scorer(experiment)
    predictor = scorer.at(context)
    found = {
        "image rows": rows,
        "embeddings": context,
        "gradients": scorer.gradients(context, examples, EXACT),
        "total": scorer.total_gradient(context, examples, torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])),
        "probabilities": predictor.probabilities(rows),
        "agreement": predictor.agreement(examples),
    }
    if isinstance(model, DualEncoder):
        found["class features"] = scorer.class_features(context)
        found["feature gradient"] = scorer.feature_gradient(context, torch.ones(3, model.feature_size))
        found["directions"] = torch.from_numpy(scorer.public_directions(context, 2)).abs()
    else:
        found["said"] = torch.tensor(predictor.reply(rows[0], "what is it?")[1])
    return found, {weight.device for weight in model._model.parameters()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_computes_on_another_device_and_gives_back_to_the_processor(family, tmp_path, make_experiment):
    folder = write_random_model(family, tmp_path)
    here, _ = what_a_site_asks(folder, "cpu", make_experiment)
    with elsewhere():
        there, devices = what_a_site_asks(folder, ELSEWHERE, make_experiment)
        assert devices == {ELSEWHERE}
    for name, expected in here.items():
        assert there[name].device == CPU, name
        assert not isinstance(there[name], Elsewhere), name
        torch.testing.assert_close(
            there[name], expected, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )
