"""Products through the chosen kernel are the plain ones, and nothing global is changed."""

import time

import pytest
import torch

from dpfpl_client.models.text_tower import layers as products
from dpfpl_client.models.text_tower.layers import FrozenProduct


@pytest.fixture
def wide(monkeypatch):
    """As on a processor where oneDNN's products are the faster ones; the choice is made anew."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    products.prefers_onednn.cache_clear()
    yield
    products.prefers_onednn.cache_clear()


@pytest.mark.parametrize("forced", [False, True], ids=["torch", "chosen"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [(0,), (1,), (7, 3), (700,)])
def test_forward_and_pullback(rows, dtype, tolerance, forced, monkeypatch):
    if not forced:
        monkeypatch.setattr(products, "prefers_onednn", lambda dtype: False)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(40, 24, generator=generator).to(dtype), torch.randn(40, generator=generator).to(dtype)
    x, g = torch.randn(*rows, 24, generator=generator).to(dtype), torch.randn(*rows, 40, generator=generator).to(dtype)
    product = FrozenProduct(weight, bias)
    torch.testing.assert_close(product(x), x @ weight.T + bias, rtol=tolerance, atol=tolerance * 10)
    torch.testing.assert_close(product.pullback(g), g @ weight, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("rows", [0, 1, 700])
@pytest.mark.parametrize("emulated", [False, True])
def test_a_coarse_pullback_rounds_the_factors(rows, emulated, monkeypatch):
    if emulated:
        monkeypatch.setattr(products, "prefers_onednn", lambda dtype: False)
    generator = torch.Generator().manual_seed(1)
    weight, g = torch.randn(40, 24, generator=generator), torch.randn(rows, 40, generator=generator)
    found = FrozenProduct(weight, None, coarse=True).pullback(g, coarse=True)
    expected = g.bfloat16().double() @ weight.bfloat16().double()
    assert found.dtype == torch.float32
    tolerance = 1e-5 if emulated else 0.02  # a processor that has such products rounds the result too
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("capability", "chosen"), [("AVX2", False), ("AVX512", True), ("DEFAULT", True)])
def test_the_kernel_depends_on_the_processor_alone(capability, chosen, monkeypatch, wide):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.prefers_onednn(torch.float32) == chosen


def test_an_inexact_kernel_is_not_chosen(monkeypatch, wide):
    monkeypatch.setattr(
        products, "onednn_product", lambda weight: lambda x, bias: (x.bfloat16() @ weight.T.bfloat16()).float()
    )
    assert not products.prefers_onednn(torch.float32)


def test_a_missing_kernel_is_not_chosen(monkeypatch, wide):
    def missing(weight):
        raise AttributeError("_reorder_linear_weight")

    monkeypatch.setattr(products, "onednn_product", missing)
    assert not products.prefers_onednn(torch.float32)


def test_a_busy_machine_chooses_the_same_kernel(monkeypatch, wide):
    def late(weight):
        kernel = chosen(weight)

        def product(x, bias):
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            return kernel(x, bias)

        return product

    chosen = products.onednn_product
    products.prefers_onednn.cache_clear()
    monkeypatch.setattr(products, "onednn_product", late)
    assert products.prefers_onednn(torch.float32)
