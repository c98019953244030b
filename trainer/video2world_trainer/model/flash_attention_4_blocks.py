"""Block-sparse FlashAttention-4 as a PyTorch operator with gradients.

The kernels skip blocks of :data:`~video2world_trainer.model.sparse_attention.BLOCK` queries by as
many keys. The forward pass takes, for each block of queries, the blocks of keys it attends to; the
backward pass takes the transpose. As an operator of its own, its output and log-sum-exp can be kept
by activation checkpointing (:mod:`video2world_trainer.distributed.activation_checkpoint`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from video2world_trainer.model.sparse_attention import BLOCK

__all__ = ["OPERATOR", "flash_attention_4_blocks"]

OPERATOR = "video2world::flash_attention_4_blocks"


def _blocks(count: Tensor, index: Tensor) -> Any:
    """The package's form of "these blocks completely, no block in part"."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(count)[None, None],
        mask_block_idx=torch.zeros_like(index[:, :1])[None, None],
        full_block_cnt=count[None, None],
        full_block_idx=index[None, None],
        block_size=(BLOCK, BLOCK),
    )


@torch.library.custom_op(OPERATOR, mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_count: Tensor,
    key_index: Tensor,
    query_count: Tensor,
    query_index: Tensor,
) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(
        query, key, value, return_lse=True, block_sparse_tensors=_blocks(key_count, key_index)
    )
    return out, lse


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_count: Tensor,
    key_index: Tensor,
    query_count: Tensor,
    query_index: Tensor,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return (
        query.new_empty(query.shape),
        query.new_empty((batch, heads, length), dtype=torch.float32),
    )


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_count: Tensor,
    query_index: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    grads = _flash_attn_bwd(
        query,
        key,
        value,
        out,
        gradient,
        lse,
        block_sparse_tensors=_blocks(query_count, query_index),
    )
    return grads[0], grads[1], grads[2]


@_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_count: Tensor,
    query_index: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, _, _, query_count, query_index = inputs
    ctx.save_for_backward(query, key, value, *output, query_count, query_index)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
    grads = _backward(gradient.contiguous(), *ctx.saved_tensors)
    return *grads, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def flash_attention_4_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_count: Tensor,
    key_index: Tensor,
    query_count: Tensor,
    query_index: Tensor,
) -> Tensor:
    """Attend block-sparsely over [B, S, heads, head_dim] in bfloat16 or float16 on Hopper.

    Args:
        query, key, value: S is a multiple of ``BLOCK``.
        key_count: how many blocks of keys each block of queries attends to, [S / BLOCK] int32.
        key_index: which, the first ``key_count`` of a row, [S / BLOCK, S / BLOCK] int32.
        query_count, query_index: the same by block of keys (the transpose), for the gradients.
    """
    out: Tensor = _forward(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        key_count,
        key_index,
        query_count,
        query_index,
    )[0]
    return out
