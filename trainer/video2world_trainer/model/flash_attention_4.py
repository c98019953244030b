"""Wrap FlashAttention-4 as a PyTorch operator that torch.compile and checkpointing can see.

The package's own function is opaque to both. The operator also returns the log-sum-exp, so that
activation checkpointing can save the output instead of recomputing it
(:mod:`video2world_trainer.distributed.activation_checkpoint`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["OPERATOR", "flash_attention_4"]

OPERATOR = "video2world::flash_attention_4"


@torch.library.custom_op(OPERATOR, mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(query, key, value, return_lse=True)
    return out, lse


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return (
        query.new_empty(query.shape),
        query.new_empty((batch, heads, length), dtype=torch.float32),
    )


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    grads = _flash_attn_bwd(query, key, value, out, gradient, lse)
    return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _backward(gradient.contiguous(), *ctx.saved_tensors)
    return grads


_forward.register_autograd(_gradients, setup_context=_save)


def flash_attention_4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention on Hopper and Blackwell GPUs.

    Args:
        query: [B, L, heads, head_dim] in bfloat16 or float16.
        key: [B, M, heads, head_dim].
        value: as ``key``.

    Returns:
        A tensor like ``query``.
    """
    out: Tensor = _forward(query.contiguous(), key.contiguous(), value.contiguous())[0]
    return out
