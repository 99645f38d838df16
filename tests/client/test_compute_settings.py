"""[compute] of site.toml: what holds where nothing is said, what is refused, and that the site's model obeys."""

import pytest
import torch

from dpfpl_client.agent.build import build_agent
from dpfpl_client.check import check_site
from dpfpl_client.models.loader import load_computing
from dpfpl_client.site.settings import ComputeSettings, load_site
from dpfpl_common.errors import ConfigError


def saying(site, text, model="embedded"):
    """The site with this [compute] and model."""
    content = site.read_text()
    lines = [line for line in content.splitlines() if not line.startswith("model =")]
    site.write_text(f'model = "{model}"\n' + "\n".join(lines) + f"\n[compute]\n{text}\n")
    return load_site(site)


def test_without_it_the_processor_computes_in_float32(fresh_site):
    settings = load_site(fresh_site)
    assert settings.compute == ComputeSettings("cpu", "float32")
    assert check_site(settings).facts["model"]["computes"] == "on cpu in float32"


def test_a_generative_model_is_loaded_in_the_precision_that_the_site_says(fresh_site):
    settings = saying(fresh_site, 'precision = "bfloat16"', model="embedded-vlm")
    model = load_computing(settings.model, settings.compute)
    assert {weight.dtype for weight in model._model.parameters()} == {torch.bfloat16}
    built = build_agent(settings)
    try:
        assert built.backbone._model.dtype == torch.bfloat16
    finally:
        built.lock.release()
    assert check_site(settings).facts["model"]["computes"] == "on cpu in bfloat16"


def test_a_generative_model_holds_as_much_of_pictures_as_the_site_says(fresh_site):
    settings = saying(fresh_site, "picture_memory = 3", model="embedded-vlm")
    assert load_computing(settings.model, settings.compute).language._kept_most == 3 * 2**20


@pytest.mark.parametrize(
    ("text", "model", "code"),
    [
        ('device = "cuda:63"', "embedded", "DEVICE_NOT_THERE"),
        ('precision = "bfloat16"', "embedded", "PRECISION_UNUSABLE"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_check(fresh_site, text, model, code):
    found = check_site(saying(fresh_site, text, model))
    assert any(f"[{code}]" in error for error in found.errors)


@pytest.mark.parametrize(
    "text",
    [
        'device = "gpu"',
        'device = "cuda:"',
        'precision = "float16"',
        "precision = 16",
        "picture_memory = -1",
        'speed = "high"',
    ],
)
def test_what_has_no_meaning_is_named(fresh_site, text):
    with pytest.raises(ConfigError) as caught:
        saying(fresh_site, text)
    value = text.partition(" = ")[2].strip('"')
    assert value in caught.value.message or "speed" in caught.value.message
    assert caught.value.advice
