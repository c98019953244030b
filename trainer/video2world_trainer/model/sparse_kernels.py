"""Run sparse attention with a kernel of NATTEN, FlashAttention-4, flex attention or PyTorch.

FlashAttention-4 and flex attention are opaque to torch.compile, and at the published sizes their
arguments have the same shapes for all patterns, so transformer blocks with different patterns share
one compilation. Flex attention is hidden by a disabled compiler instead of a custom operator:
inside an operator it would not be compiled itself, and could not create its block mask.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention, noop_mask

from video2world_trainer.model.attention import Attend
from video2world_trainer.model.attention_backends import HALF, installed
from video2world_trainer.model.flash_attention_4_blocks import flash_attention_4_blocks
from video2world_trainer.model.sparse_attention import (
    BLOCK,
    BlockPlan,
    Grid,
    Pattern,
    patterns_for,
    plan_blocks,
)

__all__ = ["KERNELS", "choose", "in_order", "sparse_attention", "sparse_for"]

# Batch, head, query and key indices, each [] -> whether the query attends to the key
Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

KERNELS = ("natten", "flash_attention_4", "flex", "masked")


def _available(module: str) -> bool:
    """Return whether a kernel's package can be used on GPUs.

    NATTEN installs without its CUDA kernels where it finds no compiler, and then needs memory for
    all query-key pairs.
    """
    if module != "natten":
        return installed(module)
    try:
        return bool(importlib.import_module(module).HAS_LIBNATTEN)
    except (ImportError, AttributeError, OSError):
        return False


def choose(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    *,
    has: Callable[[str], bool] = _available,
) -> str:
    """Return the first of :data:`KERNELS` that runs on a GPU of that capability (None: no GPU)."""
    if capability is None:
        return "masked"
    if dtype in HALF:
        if capability[0] in (9, 10) and has("natten"):
            return "natten"
        if capability[0] == 9 and has("flash_attn.cute"):
            return "flash_attention_4"
    return "flex"


def sparse_for(
    size: str, grid: Grid, device: torch.device, dtype: torch.dtype, dense: Attend
) -> tuple[str, list[Attend]]:
    """Return the kernel for ``device``, and each block's self-attention of a model ``size``.

    ``grid`` must have a pattern (see :func:`.sparse_attention.why_unsupported`); ``dense`` serves
    the blocks without one.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernel = choose(capability, dtype)
    return kernel, sparse_attention(patterns_for(size, grid), grid, device, kernel, dense)


def sparse_attention(
    patterns: Sequence[Pattern | None], grid: Grid, device: torch.device, kernel: str, dense: Attend
) -> list[Attend]:
    """Return the self-attention of each transformer block.

    Args:
        patterns: each block's pattern, scaled to ``grid``; None for dense attention.
        grid: tokens along time, height and width.
        device: where queries, keys and values are.
        kernel: one of :data:`KERNELS`.
        dense: kernel of dense attention.
    """
    made: dict[Pattern, Attend] = {}
    for pattern in patterns:
        if pattern is not None and pattern not in made:
            made[pattern] = _attend(pattern, grid, device, kernel)
    return [dense if one is None else made[one] for one in patterns]


def _attend(pattern: Pattern, grid: Grid, device: torch.device, kernel: str) -> Attend:
    if kernel == "natten":
        return _natten(pattern, grid)
    blocks = plan_blocks(pattern, grid).to(device)
    if (
        kernel == "flash_attention_4"
        and blocks.has_full_blocks_only
        and len(blocks.order) % BLOCK == 0
    ):
        lists = (blocks.full_count, blocks.full_index, blocks.query_count, blocks.query_index)
        return in_order(blocks, lambda q, k, v: flash_attention_4_blocks(q, k, v, *lists))
    if kernel == "masked":
        return _masked(blocks)
    rows = () if blocks.has_full_blocks_only else (blocks.kind, blocks.rows)
    return in_order(
        blocks,
        lambda q, k, v: _flex(
            q,
            k,
            v,
            blocks.full_count,
            blocks.full_index,
            blocks.part_count,
            blocks.part_index,
            rows,
        ),
    )


class _Reorder(torch.autograd.Function):
    """Gather tokens of [B, S, ...]; the gradient gathers too, where autograd would scatter."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


def in_order(blocks: BlockPlan, kernel: Attend) -> Attend:
    """Wrap ``kernel``, which takes and returns tokens in the order of ``blocks``."""
    order, place = blocks.order, blocks.place

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own = (_Reorder.apply(one, order, place) for one in (query, key, value))
        return cast("Tensor", _Reorder.apply(kernel(*own), place, order))

    return attend


def _masked(blocks: BlockPlan) -> Attend:
    """Attend with a mask of S x S: for the CPU, where flex attention has no gradients."""
    mask = blocks.rows[blocks.kind.long()][blocks.place][:, blocks.place]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    return attend


def _natten(pattern: Pattern, grid: Grid) -> Attend:
    na3d = importlib.import_module("natten").na3d

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = na3d(
            *(torch.unflatten(one, 1, grid) for one in (query, key, value)),
            kernel_size=pattern.window,
            stride=pattern.stride,
            dilation=pattern.dilation,
        )
        return out.flatten(1, 3)

    return cast("Attend", attend)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def _mask_of(kind: Tensor, rows: Tensor) -> Mask:
    """Return the mask of key blocks that are attended to in part; see :class:`BlockPlan`."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rows[kind[query], key]

    return mask


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    full_count: Tensor,
    full_index: Tensor,
    part_count: Tensor,
    part_index: Tensor,
    rows: tuple[Tensor, ...],
) -> Tensor:
    mask = _mask_of(*rows) if rows else noop_mask
    length = query.shape[1]
    blocks = BlockMask.from_kv_blocks(
        part_count[None, None],
        part_index[None, None],
        full_count[None, None],
        full_index[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask,
        seq_lengths=(length, length),
    )
    flex = _compiled_flex()
    out = flex(*(one.transpose(1, 2) for one in (query, key, value)), block_mask=blocks)
    return out.transpose(1, 2).contiguous()
