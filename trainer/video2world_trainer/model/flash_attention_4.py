"""FlashAttention-4 as a PyTorch operator, so that compilers and checkpointing can see it.

The package's own function is opaque to both. As an operator with the log-sum-exp among its
answers, the forward pass need not be run again in the backward pass: what it gave can be kept
(:mod:`video2world_trainer.distributed.activation_checkpoint`).
"""

from __future__ import annotations

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


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, gradient, _):  # type: ignore[no-untyped-def]
    return _backward(gradient.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_gradients, setup_context=_keep)


def flash_attention_4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [B, L, heads, head_dim] in bfloat16 or float16 on Hopper and Blackwell."""
    return _forward(query.contiguous(), key.contiguous(), value.contiguous())[0]
