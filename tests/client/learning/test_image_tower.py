"""Image features: those of plain transformers to 2e-6, and the same bits whatever pictures are computed beside one."""

import copy
import json
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dpfpl_client.models import image_tower
from dpfpl_client.models.image_tower import BATCH_PIXELS, TOLERANCE, ImageTower, _Packed, batches
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.models.text_tower import layers
from random_models.families import write_random_model

FAMILIES = ("clip", "siglip", "siglip2", "aimv2", "metaclip_2")


def pictures(count, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def through_onednn(monkeypatch):
    """Whatever a trial of its speed says here."""
    if not layers.prefers_onednn(torch.float32):
        monkeypatch.setattr(image_tower, "prefers_onednn", lambda dtype: True)


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request, tmp_path_factory):
    return str(write_random_model(request.param, tmp_path_factory.mktemp(request.param)))


def rows(backbone, images, size=64):
    return torch.stack(list(backbone.image_features(images, size)))


def with_a_new_tower(backbone):
    model = copy.copy(backbone)
    model._image_tower = ImageTower(backbone._model, backbone.prepared, backbone.device)
    return model


def packed(backbone):
    return [module for module in backbone._model.modules() if isinstance(module, _Packed)]


@pytest.mark.parametrize("single", [True, False], ids=["one at a time", "side by side"])
def test_features_are_the_exact_ones_to_the_stated_tolerance(folder, single, through_onednn, monkeypatch):
    monkeypatch.setattr(image_tower, "SMALL", 0 if single else image_tower.SMALL)
    exact = load_backbone(folder, dtype=torch.float64)
    pixels = exact.prepared(pictures(5))
    with torch.no_grad():
        theirs = exact._model.get_image_features(
            **{key: value.double() if value.is_floating_point() else value for key, value in pixels.items()}
        )
    expected = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    model = load_backbone(folder)
    found = rows(model, pictures(5))
    assert float((found - expected).norm(dim=1).max()) <= TOLERANCE
    assert packed(model)
    assert model._image_tower._shape == (1 if single else image_tower.SIDE_BY_SIDE)


@pytest.mark.privacy
@pytest.mark.parametrize("single", [True, False], ids=["one at a time", "side by side"])
def test_NI10_no_neighbour_changes_a_bit_of_a_pictures_features(folder, single, monkeypatch):
    """Fewer, more, others, and in another place: in one process, and in two of them on one machine."""
    monkeypatch.setattr(image_tower, "SMALL", 0 if single else image_tower.SMALL)
    model, again = load_backbone(folder), load_backbone(folder)
    mine, others = pictures(3), pictures(20, seed=1)
    monkeypatch.setattr(image_tower, "MANY", 20)
    expected = rows(model, mine)
    for company in (others[:1] + mine, mine + others, others + mine, mine[:1] + others + mine[1:]):
        places = [place for place, image in enumerate(company) if any(image is own for own in mine)]
        for found in (rows(model, company)[places], rows(again, company, size=5)[places]):
            assert torch.equal(found, expected)
    for image, row in zip(mine, expected, strict=True):
        assert torch.equal(rows(model, [image])[0], row)


@pytest.mark.privacy
def test_NI10_a_pass_has_one_shape(backbone, monkeypatch):
    """However many pictures there are: this holds on processors too whose kernels show no difference today."""
    shapes = set()
    model = with_a_new_tower(backbone)
    plain = backbone._model.get_image_features

    def watched(**given):
        shapes.add(tuple(given["pixel_values"].shape))
        return plain(**given)

    monkeypatch.setattr(backbone._model, "get_image_features", watched)
    for count in (1, 5, 16, 17, 70):
        assert len(rows(model, pictures(count))) == count
    assert len(shapes) == 1


@pytest.mark.privacy
def test_NI10_where_the_place_in_a_pass_matters_pictures_go_one_at_a_time(backbone, monkeypatch):
    """A kernel whose last bits depend on the place: the trial at the first picture finds it."""
    model = with_a_new_tower(backbone)
    plain = backbone._model.get_image_features

    def uneven(**given):
        found = plain(**given).pooler_output
        return found + 1e-6 * torch.arange(len(found))[:, None] * (torch.arange(found.shape[1]) == 0)

    monkeypatch.setattr(backbone._model, "get_image_features", uneven)
    assert torch.equal(rows(model, pictures(40))[39], rows(model, pictures(40)[39:])[0])
    assert (model._image_tower._shape, model._image_tower._together) == (1, 1)


@pytest.mark.privacy
@pytest.mark.parametrize("even", [True, False])
def test_NI10_many_go_through_a_large_tower_together_only_with_the_bits_of_each_alone(backbone, even, monkeypatch):
    """A kernel that is the same in every place of a pass, but another for a pass of one."""
    monkeypatch.setattr(image_tower, "SMALL", 0)
    model = with_a_new_tower(backbone)
    plain, passes = backbone._model.get_image_features, []

    def watched(pixel_values):
        passes.append(len(pixel_values))
        each = [plain(pixel_values=one[None]).pooler_output for one in pixel_values]
        return torch.cat(each) * (1 if even or len(each) == 1 else torch.linspace(1, 1 + 1e-6, each[0].shape[1]))

    monkeypatch.setattr(backbone._model, "get_image_features", watched)
    few, many = rows(model, pictures(5)), rows(model, pictures(38))
    assert torch.equal(many[:5], few)
    assert passes[:5] == [1] * 5
    assert passes[5:7] == [image_tower.TOGETHER, 1], "the trial"
    assert passes[7:] == [4] * 9 + [1] * 2 if even else [1] * 38


def test_no_picture_of_a_site_decides_how_it_computes(backbone):
    """Not even one whose features are no numbers, and therefore equal to nothing."""
    seen = []

    def prepared(images):
        seen.extend(images)
        return backbone.prepared(images)

    tower = ImageTower(backbone._model, prepared, backbone.device)
    assert list(tower.features([])) == []
    assert not seen
    (mine,) = pictures(1)
    list(tower.features([mine]))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(seen[0]), noise)
    assert seen[1:] == [mine]


def test_an_inexact_product_is_not_used(tmp_path, through_onednn, monkeypatch):
    """As where a machine's oneDNN rounds to bfloat16 for speed."""
    real = layers.onednn_product

    def rounded(weight, *more):
        product = real(weight, *more)
        return lambda x, bias: product(x.bfloat16().float(), bias)

    monkeypatch.setattr(image_tower, "onednn_product", rounded)
    model = load_backbone(str(write_random_model("clip", tmp_path)))
    rows(model, pictures(2))
    assert not packed(model)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_an_activation_goes_into_its_product_only_where_both_are_one_function(
    tmp_path, activation, through_onednn, monkeypatch
):
    folder = write_random_model("clip", tmp_path)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content["vision_config"]["hidden_act"] = activation
    config.write_text(json.dumps(content))
    model = load_backbone(str(folder))
    before = rows(model, pictures(2))
    assert all(isinstance(layer.mlp.activation_fn, torch.nn.Identity) for layer in _layers(model))
    name = {"quick_gelu": "QuickGELUActivation", "gelu": "GELUActivation"}[activation]
    monkeypatch.setitem(image_tower.ACTIVATIONS, name, ("swish", 1.0))  # another function
    careful = load_backbone(str(folder))
    torch.testing.assert_close(rows(careful, pictures(2)), before, rtol=0, atol=TOLERANCE)
    assert not any(isinstance(layer.mlp.activation_fn, torch.nn.Identity) for layer in _layers(careful))
    assert packed(careful)


def _layers(model):
    return model._model.vision_model.encoder.layers


def test_what_else_a_foreign_tower_does_with_its_weights_is_not_guessed(tmp_path, through_onednn):
    model = load_backbone(str(write_random_model("vision-text-dual-encoder/vit+bert", tmp_path)))
    assert len(rows(model, pictures(2))) == 2
    assert not packed(model)


def test_a_replaced_layer_says_its_shape_and_is_never_computed_with(tmp_path, through_onednn):
    model = load_backbone(str(write_random_model("clip", tmp_path)))
    count = sum(weight.numel() for weight in model._model.parameters())
    rows(model, pictures(1))
    assert sum(weight.numel() for weight in model._model.parameters()) == count
    assert not any(module.training for module in model._model.modules())
    assert not any(weight.requires_grad for weight in model._model.parameters())
    weight = packed(model)[0].weight
    with pytest.raises((NotImplementedError, RuntimeError)):
        float((weight @ torch.ones(weight.shape[1])).sum())


def test_two_threads_may_ask_a_new_tower_at_once(tmp_path, through_onednn):
    model = load_backbone(str(write_random_model("clip", tmp_path)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: rows(model, pictures(2)), range(4)))
    assert all(torch.equal(each, rows(model, pictures(2))) for each in found)


def test_nothing_global_changes(tmp_path, through_onednn):
    model = load_backbone(str(write_random_model("clip", tmp_path)))

    def settings():
        precision = torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
        return *precision, torch.get_num_threads(), torch.get_rng_state().tolist(), torch.is_grad_enabled()

    before = settings()
    rows(model, pictures(1))
    assert settings() == before


# Images are held decoded by their pixels, not by their number.


def sized(*sizes):
    return [Image.new("L", size) for size in sizes]


def test_a_batch_ends_at_the_number_or_at_the_pixels(monkeypatch):
    monkeypatch.setattr("dpfpl_client.models.image_tower.BATCH_PIXELS", 100)
    images = sized((5, 5), (5, 5), (5, 5), (10, 5), (50, 50), (10, 10), (1, 1))
    assert [[image.size for image in batch] for batch in batches(images, 64)] == [
        [(5, 5)] * 3,
        [(10, 5)],
        [(50, 50)],
        [(10, 10)],
        [(1, 1)],
    ]
    assert [len(batch) for batch in batches(sized(*[(1, 1)] * 7), 3)] == [3, 3, 1]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("model", ["embedded", "embedded-vlm"])
def test_photographs_are_not_all_held_decoded(model, monkeypatch):
    """Room for four pictures: they and the next are held, not the sixteen or sixty-four of a batch."""
    monkeypatch.setattr("dpfpl_client.models.image_tower.BATCH_PIXELS", 4 * 64**2)
    alive, most = set(), 0

    def photographs():
        nonlocal most
        for number in range(20):
            image = Image.new("RGB", (64, 64), (12 * number, 90, 120))
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield image
            del image

    rows = torch.stack(list(load_backbone(model).image_features(photographs())))
    assert len(rows) == 20
    assert len({tuple(row.tolist()) for row in rows}) == 20
    assert most == 5


def test_the_room_is_for_photographs():
    assert 3 <= BATCH_PIXELS / (4000 * 3000) < 10
