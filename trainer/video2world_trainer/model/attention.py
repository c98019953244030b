"""The network's attention layer: self-attention over tokens and cross-attention to a caption."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video2world_trainer.model.rope import Rotation, apply_rope

__all__ = ["EPS", "Attend", "Attention", "KeyValue", "RMSNorm", "linear", "sdpa"]

# Queries [B, L, heads, head_dim], keys and values [B, M, heads, head_dim] -> shape of the queries
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# A caption's keys and values in one layer, [B, N, heads, head_dim] each
KeyValue = tuple[Tensor, Tensor]

EPS = 1e-6  # of all norms


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute PyTorch's attention without a mask, in the layout of :data:`Attend`."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Create a linear layer without bias, as all of this network's are."""
    return nn.Linear(inputs, outputs, bias=False)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis: float32 inside, rounded once at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` [..., channels]; the result has its shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), EPS).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with normalized queries and keys.

    Args:
        channels: width D of the tokens.
        context: width C of what keys and values are computed from: ``channels`` in self-attention.
        heads: number of heads.
    """

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Attend = sdpa
        self.q_proj = linear(channels, channels)
        self.k_proj = linear(context, channels)
        self.v_proj = linear(context, channels)
        self.output_proj = linear(channels, channels)
        self.q_norm = RMSNorm(channels // heads)
        self.k_norm = RMSNorm(channels // heads)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Attend from every token of ``x`` [B, T, HW, D] to all T * HW tokens."""
        flat = x.flatten(1, 2)
        query, key, value = (
            self._split_heads(projected)
            for projected in (self.q_proj(flat), self.k_proj(flat), self.v_proj(flat))
        )
        query = apply_rope(self.q_norm(query), rotation)
        key = apply_rope(self.k_norm(key), rotation)
        out: Tensor = self.output_proj(self.attend(query, key, value).flatten(2))
        return torch.unflatten(out, 1, x.shape[1:3])

    def keys_values(self, context: Tensor) -> KeyValue:
        """Compute the keys and values of a caption [B, N, C] for :meth:`cross`."""
        key: Tensor = self.k_norm(self._split_heads(self.k_proj(context)))
        return key, self._split_heads(self.v_proj(context))

    def cross(self, x: Tensor, context: Tensor | KeyValue) -> Tensor:
        """Attend from ``x`` [B, T, HW, D] to a caption [B, N, C], or to its keys and values.

        With a caption, frames become items of the batch: the backward pass of an attention kernel
        is parallel over batch, heads and keys, and a caption's few keys alone would leave most of a
        GPU idle. With keys and values, which are for inference, all tokens attend together. Several
        captions' keys and values may share one ``x`` (B = 1): the result then has one item for each
        caption.
        """
        batch, frames = x.shape[:2]
        query: Tensor = self.q_norm(self._split_heads(self.q_proj(x)))
        if isinstance(context, tuple):
            query = query.flatten(1, 2)
            if len(query) != len(context[0]):
                query = query.expand(len(context[0]), -1, -1, -1).contiguous()
            out: Tensor = self.output_proj(self.attend(query, *context).flatten(2))
            return torch.unflatten(out, 1, x.shape[1:3])
        key, value = (
            one.unsqueeze(1).expand(batch, frames, *one.shape[1:]).flatten(0, 1)
            for one in self.keys_values(context)
        )
        out = self.output_proj(self.attend(query.flatten(0, 1), key, value).flatten(2))
        return torch.unflatten(out, 0, (batch, frames))

    def _split_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))
