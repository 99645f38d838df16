"""Products with frozen weights, forward and backward, through whichever exact kernel serves this machine best.

Torch's default matrix library is slow on some processors, and torch's own switch to another one is global and may
lower the precision elsewhere. Here oneDNN is called directly, with weights laid out for it once, and only after a trial
in this process showed that it is there, exact to float32's rounding and not slower. No global setting is touched.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FrozenProduct", "prefers_onednn"]

TRIAL: Final = (64, 256, 1024)
"""Rows, inputs and outputs of the trial product."""


class FrozenProduct:
    """``x -> x W^T + b`` and its pullback ``g -> g W`` with constant W [outputs, inputs].

    Args:
        weight: [outputs, inputs], of the type in which to compute.
        bias: [outputs], or None.
        coarse: also keep W in bfloat16 for pullbacks that may be rounded.
        any_rows: the pullback is asked for as many rows as a batch has, which changes from step to step. oneDNN makes
            and keeps a program of up to a megabyte for every number of rows that it meets, so torch's own kernel is
            used for it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, coarse: bool = False, any_rows: bool = False) -> None:
        self.inputs, self.outputs = weight.shape[1], weight.shape[0]
        self._bias = bias
        transposed = weight.t().contiguous()
        self._forward = _kernel(weight)
        self._pullback = _usual(transposed) if any_rows else _kernel(transposed)
        self._coarse = _kernel(transposed.bfloat16()) if coarse else None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self._forward(x.reshape(-1, self.inputs), self._bias).view(*x.shape[:-1], self.outputs)

    def pullback(self, g: Tensor, *, coarse: bool = False) -> Tensor:
        """[..., outputs] to [..., inputs]; coarse: both factors rounded to bfloat16, sums in float32."""
        flat = g.reshape(-1, self.outputs)
        if coarse:
            assert self._coarse is not None
            result = self._coarse(flat.bfloat16(), None).to(g.dtype)
        else:
            result = self._pullback(flat, None)
        return result.view(*g.shape[:-1], self.inputs)


Kernel = Callable[[Tensor, Tensor | None], Tensor]


def _kernel(weight: Tensor) -> Kernel:
    """The product of 2-D inputs [rows, inputs] with a constant weight [outputs, inputs]."""
    if weight.device.type == "cpu" and prefers_onednn(weight.dtype):
        return _onednn(weight)
    return _usual(weight.contiguous())


def _usual(weight: Tensor) -> Kernel:
    return lambda x, bias: functional.linear(x, weight, bias)


def _onednn(weight: Tensor) -> Kernel:
    operations: Any = torch.ops.mkldnn
    packed = operations._reorder_linear_weight(weight.contiguous(), TRIAL[0])

    def product(x: Tensor, bias: Tensor | None) -> Tensor:
        if not len(x):
            return x.new_zeros((0, weight.shape[0]))
        result: Tensor = operations._linear_pointwise(x, packed, bias, "none", [], "")
        return result

    return product


@functools.cache
def prefers_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN's kernel is there, as exact as torch's own and not clearly slower, by one trial in this process.

    "Clearly" leaves room for a busy machine: which kernel runs must not depend on chance, because the last bits of
    results depend on it.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    rows, inputs, outputs = TRIAL
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, inputs), generator=generator).to(dtype)
    weight = torch.randn((outputs, inputs), generator=generator).to(dtype)
    exact = x.double() @ weight.double().t()
    usual = functional.linear(x, weight)
    try:
        kernel = _onednn(weight)
        error = (kernel(x, None) - exact).abs().max()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    if not error <= 4 * (usual - exact).abs().max():
        return False
    return _seconds(lambda: kernel(x, None)) <= 1.5 * _seconds(lambda: functional.linear(x, weight))


def _seconds(call: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(5):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)
