"""Products through the chosen kernel are the plain ones, and nothing global is changed."""

import time

import pytest
import torch

from dpfpl_client.models.text_tower import layers as products
from dpfpl_client.models.text_tower.layers import FrozenProduct


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


def test_the_trial_changes_no_global_setting():
    products.prefers_onednn.cache_clear()
    before = (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, torch.get_num_threads())
    FrozenProduct(torch.ones(3, 2), None)
    assert (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, torch.get_num_threads()) == before


def test_an_inexact_kernel_is_not_chosen(monkeypatch):
    products.prefers_onednn.cache_clear()
    monkeypatch.setattr(
        products, "onednn_product", lambda weight: lambda x, bias: (x.bfloat16() @ weight.T.bfloat16()).float()
    )
    assert not products.prefers_onednn(torch.float32)
    products.prefers_onednn.cache_clear()


def test_a_missing_kernel_is_not_chosen(monkeypatch):
    def missing(weight):
        raise AttributeError("_reorder_linear_weight")

    products.prefers_onednn.cache_clear()
    monkeypatch.setattr(products, "onednn_product", missing)
    assert not products.prefers_onednn(torch.float32)
    products.prefers_onednn.cache_clear()


def test_a_busy_machine_chooses_the_same_kernel(monkeypatch):
    if not products.prefers_onednn(torch.float32):
        pytest.skip("oneDNN is not on this machine")

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
    products.prefers_onednn.cache_clear()
