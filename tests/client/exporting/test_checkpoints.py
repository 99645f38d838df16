"""Exports for checkpoints as people have them: a published vocabulary, half precision, a slow tokenizer."""

import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.exporting.card import Facts
from dpfpl_client.use.exporting.export import write_export
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, RoundSettings
from tokenizer_kinds import SENTENCEPIECE, clip_vocabulary, write_model, write_published_clip

CLASSES = ("cat", "dog house", "Pneumonia (left)")


def exported(folder, out, num_context=4):
    """The export's outcome, its card, and the CPU seconds that it took."""
    backbone = load_backbone(str(folder))
    experiment = Experiment(
        name="pilot",
        classes=CLASSES,
        sites=("a", "b"),
        model=ModelSettings(id="hospital/model", width=backbone.width, fingerprint=backbone.fingerprint),
        prompt=PromptSettings(init_text="a", num_context=num_context, rank=2, method="promptfl"),
        privacy=PrivacySettings(noise_multiplier=1.0, nominal_site_size=10),
        rounds=RoundSettings(number=1, local_steps=1),
    )
    shared = np.random.default_rng(0).normal(0, 0.3, experiment.context_shape).astype(np.float32)
    began = time.process_time()
    written = write_export(SitePrompt(experiment, shared, np.zeros_like(shared), 1), backbone, out, Facts(site="a"))
    return written, (out / "README.md").read_text(), time.process_time() - began


def stored_as(folder, dtype):
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_published_vocabulary_takes_seconds(tmp_path):
    published = clip_vocabulary()
    if published is None:
        pytest.skip("CLIP's vocabulary is not there: name it in DPFPL_CLIP_VOCABULARY, or be online")
    folder = write_published_clip("clip", tmp_path / "model", published)
    written, _, seconds = exported(folder, tmp_path / "out", num_context=16)
    assert not written.no_adapter
    assert seconds < 10  # about one; it was three minutes


@pytest.mark.parametrize(("dtype", "name"), [
    (torch.float16, "float16"), (torch.bfloat16, "bfloat16"), (torch.float32, "float32"),
])  # fmt: skip
def test_the_card_says_the_checkpoints_precision_and_computes_in_ours(tmp_path, dtype, name):
    folder = stored_as(write_model("clip", "BPE, end of word marked", tmp_path / "model", seed=1), dtype)
    _, card, _ = exported(folder, tmp_path / "out")
    assert f"stored in {name};" in card
    assert "computes in float32" in card
    assert 'from_pretrained(".", dtype=torch.float32)' in card


@pytest.mark.parametrize(("family", "kind"), [
    ("clip", "BPE, end of word marked"), ("clip", "unigram"), ("siglip", SENTENCEPIECE),
])  # fmt: skip
def test_the_card_names_all_packages_that_its_code_imports(tmp_path, family, kind):
    written, card, _ = exported(write_model(family, kind, tmp_path / "model", seed=1), tmp_path / "out")
    assert bool(written.no_adapter) == (kind != "BPE, end of word marked")
    code = card.split("```python\n")[1].split("```")[0]
    assert "dpfpl" not in code
    said = card.replace(code, "")
    modules = ("torch", "transformers", "peft", "safetensors", "numpy", "PIL")
    for module, package in zip(modules, (*modules[:-1], "pillow"), strict=True):
        imported = re.search(rf"^(from|import) (json, )?{module}\b", code, re.MULTILINE) is not None
        assert imported == (f"`{package}`" in said.partition("## What it was learned from")[0]), package
