"""Attention of short rows to themselves and to keys that all rows share, with the pullback for many cotangents at once.

The cotangents of a batch of examples meet the same weights, keys and values; only they themselves have a batch axis.

Symbols: H heads of size e, R rows of Q queries and T own keys each, S shared keys, B cotangents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Attention", "attend"]


@dataclass(frozen=True)
class Attention:
    """One evaluation of attention, and what its pullback needs.

    Attributes:
        queries: [H, R, Q, e], scaled.
        keys, values: own, [H, R, T, e].
        shared_keys, shared_values: [H, S, e].
        own_weights: [H, R, Q, T].
        shared_weights: [H, R, Q, S].
        output: [H, R, Q, e].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    shared_keys: Tensor
    shared_values: Tensor
    own_weights: Tensor
    shared_weights: Tensor
    output: Tensor

    def of_rows(self, rows: Tensor) -> "Attention":
        """The same for some of the rows, in that order, repeated where asked for."""
        return Attention(
            self.queries[:, rows],
            self.keys[:, rows],
            self.values[:, rows],
            self.shared_keys,
            self.shared_values,
            self.own_weights[:, rows],
            self.shared_weights[:, rows],
            self.output[:, rows],
        )

    def pullback(
        self, cotangents: Tensor, *, own: bool = True, shared: bool = True, groups: int = 1
    ) -> "AttentionGradients":
        """Gradients of ``sum(cotangents * output)`` for every cotangent.

        The batch's axis stands right after the queries': then whatever is summed over queries, or over rows and
        queries, is one product of matrices as they lie in memory, without a copy.

        Args:
            cotangents: [B, R, Q, H, e], any strides.
            own: gradients towards queries and own keys and values are wanted.
            shared: gradients towards the shared keys and values are wanted.
            groups: those are summed over the rows of each of so many equal groups; more than one with B = 1 only.
        """
        heads, rows, queries, size = self.queries.shape
        batch, own_keys, shared_keys = len(cotangents), self.keys.shape[2], self.shared_keys.shape[1]
        flat = heads * rows
        g = cotangents.permute(3, 1, 2, 0, 4).contiguous()  # [H, R, Q, B, e]
        # Softmax: ds = p (dp - <g, output>), the last being the mean of dp under p.
        mean = (g * self.output[:, :, :, None]).sum(-1, keepdim=True)
        to_shared = torch.bmm(g.view(heads, -1, size), self.shared_values.transpose(1, 2))
        to_shared = to_shared.view(heads, rows, queries, batch, shared_keys)
        to_shared.sub_(mean).mul_(self.shared_weights[:, :, :, None])
        result = AttentionGradients()
        if own:
            to_own = torch.bmm(g.view(flat, -1, size), self.values.view(flat, own_keys, size).transpose(1, 2))
            to_own = to_own.view(heads, rows, queries, batch, own_keys)
            to_own.sub_(mean).mul_(self.own_weights[:, :, :, None])
            d_queries = torch.bmm(to_shared.view(heads, -1, shared_keys), self.shared_keys).view(flat, -1, size)
            d_queries.baddbmm_(to_own.view(flat, -1, own_keys), self.keys.view(flat, own_keys, size))
            d_keys = torch.bmm(
                to_own.view(flat, queries, batch * own_keys).transpose(1, 2), self.queries.view(flat, queries, size)
            )
            d_values = torch.bmm(
                self.own_weights.view(flat, queries, own_keys).transpose(1, 2), g.view(flat, queries, batch * size)
            )
            result.queries = d_queries.view(heads, rows, queries, batch, size).permute(3, 1, 2, 0, 4)
            result.keys = d_keys.view(heads, rows, batch, own_keys, size).permute(2, 1, 3, 0, 4)
            result.values = d_values.view(heads, rows, own_keys, batch, size).permute(3, 1, 2, 0, 4)
        if shared:
            result.shared_keys, result.shared_values = self._towards_shared(g, to_shared, groups)
        return result

    def _towards_shared(self, g: Tensor, scores: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Sums over rows and queries, [H, groups or B, S, e], from cotangents and gradients towards the scores."""
        heads, rows, queries, batch, size = g.shape
        assert groups == 1 or batch == 1
        count, shared = rows // groups * queries, scores.shape[-1]
        keys = torch.bmm(
            scores.view(heads * groups, count, batch * shared).transpose(1, 2),
            self.queries.view(heads * groups, count, size),
        )
        values = torch.bmm(
            self.shared_weights.view(heads * groups, count, shared).transpose(1, 2),
            g.view(heads * groups, count, batch * size),
        )
        values = values.view(heads, groups, shared, batch, size).transpose(2, 3)
        return keys.view(heads, -1, shared, size), values.flatten(1, 2)


class AttentionGradients:
    """Gradients [B, R, Q or T, H, e] and [H, B or groups, S, e], any strides; what was not asked for is missing."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    shared_keys: Tensor
    shared_values: Tensor


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, shared_keys: Tensor, shared_values: Tensor, allowed: Tensor
) -> Attention:
    """Softmax attention over shared and own keys.

    Args:
        queries: [H, R, Q, e], scaled, contiguous as all others.
        keys: [H, R, T, e].
        values: [H, R, T, e].
        shared_keys: [H, S, e]; every query sees all of them, S is at least 1.
        shared_values: [H, S, e].
        allowed: [R, Q, T] bool, which own keys a query sees.
    """
    heads, rows, count, size = queries.shape
    own_keys, shared = keys.shape[2], shared_keys.shape[1]
    flat = heads * rows
    to_shared = torch.bmm(queries.view(heads, rows * count, size), shared_keys.transpose(1, 2))
    to_own = torch.bmm(queries.view(flat, count, size), keys.view(flat, own_keys, size).transpose(1, 2))
    to_own = to_own.view(heads, rows, count, own_keys).masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(torch.cat([to_shared.view(heads, rows, count, shared), to_own], dim=-1), dim=-1)
    shared_weights = weights[..., :shared].contiguous()
    own_weights = weights[..., shared:].contiguous()
    output = torch.bmm(shared_weights.view(heads, rows * count, shared), shared_values).view(flat, count, size)
    output.baddbmm_(own_weights.view(flat, count, own_keys), values.view(flat, own_keys, size))
    output = output.view(heads, rows, count, size)
    return Attention(queries, keys, values, shared_keys, shared_values, own_weights, shared_weights, output)
