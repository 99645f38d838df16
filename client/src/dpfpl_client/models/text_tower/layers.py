"""The frozen encoder layers of a CLIP text tower, rearranged so that nothing constant is computed twice.

Three identities, exact up to rounding. The affine part of a LayerNorm goes into the product that follows. Nothing
reads the mean over channels of the residual stream, since every reader is a LayerNorm; so all that is written to the
stream is centred once, in the weights, and a LayerNorm is then a division by the root mean square. The columns of what
follows a LayerNorm are centred too, so that its pullback needs no mean either.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ACTIVATIONS", "FoldedLayer", "FrozenProduct", "Normed", "centred", "folded_projection", "onednn_product",
    "prefers_onednn",
]  # fmt: skip


# Products with frozen weights, forward and backward, through whichever exact kernel serves this machine best.
#
# Torch's default matrix library is slow on some processors, and torch's own switch to another one is global and may
# lower the precision elsewhere. Here oneDNN is called directly, with weights laid out for it once, and only after a
# trial in this process showed that it is there and exact to float32's rounding. No global setting is touched.


TRIAL: Final = (64, 256, 1024)
"""Rows, inputs and outputs of the trial product."""

Kernel = Callable[[Tensor, Tensor | None], Tensor]


class FrozenProduct:
    """``x -> x W^T + b`` and its pullback ``g -> g W`` with constant W [outputs, inputs].

    Args:
        weight: [outputs, inputs], of the type in which to compute.
        bias: [outputs], or None.
        coarse: also keep W rounded to bfloat16 for pullbacks that may be rounded.
        any_rows: the pullback is asked for as many rows as a batch has, which changes from step to step. oneDNN makes
            and keeps a program of up to a megabyte for every number of rows that it meets, so torch's own kernel is
            used for it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, coarse: bool = False, any_rows: bool = False) -> None:
        self.inputs, self.outputs = weight.shape[1], weight.shape[0]
        self._bias, self._weight, self._any_rows = bias, weight, any_rows
        self._forward = _kernel(weight)
        self._coarse = _rounded(weight.t().contiguous()) if coarse else None

    @functools.cached_property
    def _pullback(self) -> Kernel:
        """Laid out for the first pullback: who only classifies has none."""
        transposed = self._weight.t().contiguous()
        return _usual(transposed) if self._any_rows else _kernel(transposed)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self._forward(x.reshape(-1, self.inputs), self._bias).view(*x.shape[:-1], self.outputs)

    def pullback(self, g: Tensor, *, coarse: bool = False) -> Tensor:
        """[..., outputs] to [..., inputs]; coarse: both factors rounded to bfloat16, sums in float32."""
        flat = g.reshape(-1, self.outputs)
        if coarse:
            assert self._coarse is not None
            result = self._coarse(flat, None).to(g.dtype)
        else:
            result = self._pullback(flat, None)
        return result.view(*g.shape[:-1], self.inputs)


def _kernel(weight: Tensor) -> Kernel:
    """The product of 2-D inputs [rows, inputs] with a constant weight [outputs, inputs]."""
    if weight.device.type == "cpu" and prefers_onednn(weight.dtype):
        return onednn_product(weight)
    return _usual(weight.contiguous())


def _usual(weight: Tensor) -> Kernel:
    return lambda x, bias: functional.linear(x, weight, bias)


def _rounded(weight: Tensor) -> Kernel:
    """The same with both factors rounded to bfloat16; sums are float32 at the least.

    With AVX2, which has no such products, the rounded numbers are multiplied in float32: emulated, bfloat16 took eight
    times as long as float32.
    """
    half = weight.bfloat16()
    if weight.device.type == "cpu" and not prefers_onednn(torch.bfloat16):
        wide = half.float()
        return lambda x, bias: functional.linear(x.bfloat16().float(), wide, bias)
    kernel = _kernel(half)
    return lambda x, bias: kernel(x.bfloat16(), bias)


def onednn_product(weight: Tensor, rows: int = TRIAL[0], after: str = "none") -> Kernel:
    """The product through oneDNN, of inputs [n, inputs] on the processor; ask ``prefers_onednn`` before.

    Args:
        weight: [outputs, inputs].
        rows: the n to lay the weight out for; any other is computed too.
        after: what is applied to the result: ``swish``, ``gelu`` (by the error function) or ``none``.
    """
    operations: Any = torch.ops.mkldnn
    packed = operations._reorder_linear_weight(weight.contiguous(), rows)
    outputs, kind = len(weight), "none" if after == "gelu" else ""  # the weight itself is not kept

    def product(x: Tensor, bias: Tensor | None) -> Tensor:
        if not len(x):
            return x.new_zeros((0, outputs))
        result: Tensor = operations._linear_pointwise(x, packed, bias, after, [], kind)
        return result

    return product


@functools.cache
def prefers_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN's kernel is there, faster on such a processor, and as exact as torch's own, by one trial in this
    process.

    Never by the clock: the last bits of results depend on the kernel, and two processes of one machine must choose
    the same one however busy it is. Measured, one thread: oneDNN's took 1.1 to 1.2 times torch's own on an AMD EPYC
    with AVX2 and 0.4 times on one with AVX-512; in bfloat16, which AVX2 lacks, eight times.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    rows, inputs, outputs = TRIAL
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, inputs), generator=generator).to(dtype)
    weight = torch.randn((outputs, inputs), generator=generator).to(dtype)
    exact = x.double() @ weight.double().t()
    usual = functional.linear(x, weight)
    try:
        kernel = onednn_product(weight)
        error = (kernel(x, None) - exact).abs().max()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(error <= 4 * (usual - exact).abs().max())


Activation = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Normed:
    """A centred row x [..., d] over its root mean square.

    Attributes:
        unit: x / rms, [..., d].
        inverse: 1 / rms, [..., 1].
    """

    unit: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, x: Tensor, eps: float) -> "Normed":
        """Of centred rows."""
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return cls(x * inverse, inverse)

    def add_pullback(self, g: Tensor, w: Tensor) -> None:
        """``g += pullback(w)``, in place; w [batch, ..., d] is centred."""
        mean = (w * self.unit).mean(-1, keepdim=True)
        g.addcmul_(w, self.inverse).addcmul_(self.unit, mean.mul_(self.inverse), value=-1.0)


class FoldedLayer:
    """One encoder layer: weights as products, and its second half (the other half is attention, see the tower).

    Attributes:
        heads, eps: of the layer.
        into_attention: normed rows to scaled queries, keys and values, [d -> 3 d]; of the last layer None.
        queries, keys_values: the same in two parts; of the last layer only, where few rows ask.
        out: attended rows to the stream.
    """

    def __init__(self, layer: Any, activation: Activation, *, last: bool, coarse: bool) -> None:
        attention = layer.self_attn
        self.heads = int(attention.num_heads)
        self.eps = float(layer.layer_norm1.eps)
        self.eps_of_half = float(layer.layer_norm2.eps)
        self._activation = activation
        query, query_bias = _after_norm(attention.q_proj, layer.layer_norm1)
        key, key_bias = _after_norm(attention.k_proj, layer.layer_norm1)
        value, value_bias = _after_norm(attention.v_proj, layer.layer_norm1)
        scale = float(attention.scale)
        dtype = attention.q_proj.weight.dtype

        def product(weight: Tensor, bias: Tensor) -> FrozenProduct:
            return FrozenProduct(weight.to(dtype), bias.to(dtype), coarse=coarse)

        self.into_attention = self.queries = self.keys_values = None
        if last:
            self.queries = product(query * scale, query_bias * scale)
            self.keys_values = product(torch.cat([key, value]), torch.cat([key_bias, value_bias]))
        else:
            self.into_attention = product(
                torch.cat([query * scale, key, value]), torch.cat([query_bias * scale, key_bias, value_bias])
            )
        self.out = product(*_into_stream(attention.out_proj))
        self._up = product(*_after_norm(layer.mlp.fc1, layer.layer_norm2))
        self._down = product(*_into_stream(layer.mlp.fc2))

    def half(self, x: Tensor) -> tuple[Tensor, Normed, Tensor]:
        """The perceptron's half on rows [..., d]: the new rows, and what its pullback needs."""
        normed = Normed.of(x, self.eps_of_half)
        active, slope = self._activation(self._up(normed.unit))
        return x + self._down(active), normed, slope

    def half_pullback(self, g: Tensor, normed: Normed, slope: Tensor, *, coarse: bool) -> None:
        """Turns g [batch, ..., d], a gradient towards the half's rows out, into the one towards its rows in."""
        u = self._down.pullback(g, coarse=coarse).mul_(slope)
        normed.add_pullback(g, self._up.pullback(u, coarse=coarse))


def folded_projection(projection: Any, norm: Any) -> FrozenProduct:
    """The last LayerNorm's affine part with the projection to features."""
    weight, bias = _after_norm(projection, norm)
    dtype = projection.weight.dtype
    return FrozenProduct(weight.to(dtype), bias.to(dtype), any_rows=True)


def centred(x: Tensor) -> Tensor:
    """Rows without their mean."""
    return x - x.mean(-1, keepdim=True)


def _after_norm(linear: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of ``linear(norm(.))`` as a function of the normed, not yet affine, row."""
    weight, bias = _parameters(linear)
    gain, shift = norm.weight.double(), norm.bias.double()
    return centred(weight * gain), bias + weight @ shift


def _into_stream(linear: Any) -> tuple[Tensor, Tensor]:
    weight, bias = _parameters(linear)
    return weight - weight.mean(0, keepdim=True), centred(bias)


def _parameters(linear: Any) -> tuple[Tensor, Tensor]:
    weight = linear.weight.detach().double()
    bias = linear.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double()


def _quick_gelu(a: Tensor) -> tuple[Tensor, Tensor]:
    """a sigmoid(1.702 a) and its derivative."""
    gate = torch.sigmoid(1.702 * a)
    active = a * gate
    return active, gate + 1.702 * active * (1.0 - gate)


def _gelu(a: Tensor) -> tuple[Tensor, Tensor]:
    """The exact Gaussian error linear unit a Phi(a) and its derivative Phi(a) + a phi(a)."""
    normal = 0.5 * (1.0 + torch.erf(a * 0.5**0.5))
    return functional.gelu(a), normal + a * torch.exp(-0.5 * a.square()) * (2.0 * torch.pi) ** -0.5


ACTIVATIONS: Final[dict[str, Activation]] = {"quick_gelu": _quick_gelu, "gelu": _gelu}
"""By the name in a model's configuration: value and derivative."""
