"""Patterns of the ``-natten`` checkpoints' sparse attention, as blocks that a kernel can skip.

A query attends to a window of keys along time, height and width: generalized neighborhood attention
(Hassani et al. 2025, https://arxiv.org/abs/2504.16922) with window, stride and dilation. Along an
axis, positions with the same residue modulo ``dilation`` form a group. Each ``stride`` consecutive
queries of a group share the window around their middle, shifted to stay inside the group.

With tokens ordered by residue and stride, queries with the same window are adjacent. At the
published sizes, every block of 128 queries then attends to a block of 128 keys completely or not at
all.

The patterns are those of ``cosmos_predict2/configs/base/config_natten.py`` in
https://github.com/nvidia-cosmos/cosmos-predict2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "PATTERNS",
    "BlockPlan",
    "Grid",
    "Pattern",
    "axes",
    "density",
    "patterns_for",
    "plan_blocks",
    "scaled",
    "why_unsupported",
]

BLOCK = 128  # tokens
BASE = (None, 44, 80)  # grid [T, H, W] of tokens that the patterns are defined on

Grid = tuple[int, int, int]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """Window, stride and dilation per axis (time, height, width); window -1 is the full axis."""

    window: Grid
    stride: Grid = (1, 1, 1)
    dilation: Grid = (1, 1, 1)


_A = Pattern((-1, 4, 16), dilation=(1, 11, 5))
_B = Pattern((-1, 12, 16), stride=(1, 4, 1), dilation=(1, 1, 5))
_C = Pattern((-1, 12, 24), stride=(1, 4, 8))
_D = Pattern((-1, 20, 40), stride=(1, 4, 8))
_E = Pattern((-1, 28, 56), stride=(1, 4, 8))


def _by_block(count: int, blocks_of: dict[Pattern | None, Sequence[int]]) -> list[Pattern | None]:
    chosen = {block: pattern for pattern, blocks in blocks_of.items() for block in blocks}
    return [chosen[block] for block in range(count)]


PATTERNS: dict[str, list[Pattern | None]] = {
    "2B": _by_block(
        28,
        {
            _A: (0, 1),
            _B: (2, 5, 10),
            _C: (3, 4, 6, 7, 8, 9, 27),
            _D: (*range(11, 23), 24, 25, 26),
            _E: (23,),
        },
    ),
    "14B": _by_block(
        36,
        {
            _A: range(11),
            _B: (11, 12),
            _C: range(13, 23),
            _D: (23, 25, 29, 30, 33, 35),
            _E: (24, 26, 28, 31, 32, 34),
            None: (27,),
        },
    ),
    # of this project, in the proportions of 2B
    "Tiny": _by_block(4, {_C: (0,), _D: (1, 2, 3)}),
}
"""Each transformer block's pattern by model size; None is dense attention."""


def scaled(pattern: Pattern, grid: Grid) -> Pattern:
    """Scale ``pattern`` from the grid that it is defined on to a ``grid`` of tokens."""
    window, stride, dilation = [], [], []
    for axis, length in enumerate(grid):
        base = BASE[axis] or length
        share = length / base
        wide = pattern.window[axis] if pattern.window[axis] != -1 else base
        window.append(min(max(2, round(wide * share)), length))
        stride.append(min(max(1, round(pattern.stride[axis] * share)), window[-1]))
        dilation.append(
            min(max(1, round(pattern.dilation[axis] * share)), max(1, length // window[-1]))
        )
    return Pattern(_grid(window), _grid(stride), _grid(dilation))


def _grid(values: Sequence[int]) -> Grid:
    time, height, width = values
    return time, height, width


@dataclass(frozen=True)
class Axis:
    """A pattern along one axis, position by position; all arrays are [length].

    ``residue`` names a position's group, ``place`` its index in the group, ``start`` the first
    index of its window, and ``stride_index`` which queries share that window (0 if the window is
    the complete group).
    """

    residue: IntArray
    place: IntArray
    start: IntArray
    stride_index: IntArray
    window: int

    @classmethod
    def of(cls, length: int, window: int, stride: int, dilation: int) -> Axis:
        """Lay the pattern out along an axis of ``length`` positions.

        Raises:
            ValueError: the window is larger than a group.
        """
        position = np.arange(length)
        residue, place = position % dilation, position // dilation
        lengths = (length - residue + dilation - 1) // dilation  # of each position's group
        if window > lengths.min():
            raise ValueError(f"a window of {window} in {length} positions by {dilation}")
        leader = np.minimum(place // stride * stride + stride // 2, lengths - 1)
        start = np.clip(leader - window // 2, 0, lengths - window)
        stride_index = np.where(lengths == window, 0, place // stride)
        return cls(residue, place, start, stride_index, window)

    def mask(self) -> BoolArray:
        """Return [queries, keys], True where a query attends to a key."""
        near = self.place - self.start[:, None]
        inside = (near >= 0) & (near < self.window)
        mask: BoolArray = (self.residue[:, None] == self.residue) & inside
        return mask


def axes(pattern: Pattern, grid: Grid) -> list[Axis]:
    """Return ``pattern`` (already scaled) along time, height and width.

    Its attention is the product of the three axes' masks.
    """
    return [
        Axis.of(*one)
        for one in zip(grid, pattern.window, pattern.stride, pattern.dilation, strict=True)
    ]


@dataclass(frozen=True)
class BlockPlan:
    """A pattern on a grid, for kernels that skip blocks of ``BLOCK`` queries x ``BLOCK`` keys.

    ``order`` [S] lists the tokens in the order that the blocks are cut from; ``place`` [S] is its
    inverse. For each block of queries, ``full_count`` (int32) is the number of key blocks that all
    its queries attend to completely, and the first ``full_count`` entries of its row of
    ``full_index`` (int32) list them. ``part_count`` and ``part_index`` do the same for key blocks
    attended to in part, where ``rows[kind[query]]`` masks the keys. ``query_count`` and
    ``query_index`` transpose the full ones for gradients: by key block, the query blocks that
    attend to it completely. Queries and keys are numbered in the new order.
    """

    order: Tensor
    place: Tensor
    full_count: Tensor  # [S / BLOCK]
    full_index: Tensor  # [S / BLOCK, S / BLOCK]
    part_count: Tensor
    part_index: Tensor
    query_count: Tensor
    query_index: Tensor
    kind: Tensor  # [S] int32
    rows: Tensor  # [kinds, S] bool

    @property
    def has_full_blocks_only(self) -> bool:
        """Whether no key block is attended to in part."""
        return not bool(self.part_count.any())

    def to(self, device: torch.device) -> BlockPlan:
        """Return a copy on ``device``."""
        return BlockPlan(**{name: one.to(device) for name, one in vars(self).items()})


@cache
def plan_blocks(pattern: Pattern, grid: Grid) -> BlockPlan:
    """Lay ``pattern`` (already scaled) out as blocks of a ``grid`` of tokens."""
    along = axes(pattern, grid)
    at = np.unravel_index(np.arange(int(np.prod(grid))), grid)
    sort_keys = [axis.residue[i] for axis, i in zip(along, at, strict=True)]
    sort_keys += [axis.stride_index[i] for axis, i in zip(along, at, strict=True)]
    order = np.lexsort((*at[::-1], *sort_keys[::-1]))
    at = tuple(i[order] for i in at)
    # queries of one kind attend to the same keys: same residue and window along every axis
    marks = np.stack(
        [mark[i] for axis, i in zip(along, at, strict=True) for mark in (axis.residue, axis.start)]
    )
    _, example, kind = np.unique(marks, axis=1, return_index=True, return_inverse=True)
    kind = kind.reshape(-1)
    rows = np.ones((len(example), len(order)), dtype=bool)
    for axis, i in zip(along, at, strict=True):
        rows &= axis.mask()[i[example]][:, i]

    count = -(-len(order) // BLOCK)
    padded = np.zeros((len(rows), count * BLOCK), dtype=bool)
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), count, BLOCK)
    some: BoolArray = np.any(blocks, axis=2)  # [kinds, count]
    every: BoolArray = np.all(blocks, axis=2)
    any_key = np.zeros((count, count), dtype=bool)
    all_keys = np.ones((count, count), dtype=bool)
    for block in range(count):
        kinds = np.unique(kind[block * BLOCK : (block + 1) * BLOCK])
        any_key[block], all_keys[block] = some[kinds].any(0), every[kinds].all(0)
    full, part = _count_and_index(all_keys), _count_and_index(any_key & ~all_keys)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return BlockPlan(
        torch.from_numpy(order),
        torch.from_numpy(place),
        *full,
        *part,
        *_count_and_index(all_keys.T),
        torch.from_numpy(kind.astype(np.int32)),
        torch.from_numpy(rows),
    )


def _count_and_index(chosen: BoolArray) -> tuple[Tensor, Tensor]:
    """Return the number of True entries per row, and their column numbers first in each row."""
    index = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(chosen.sum(1).astype(np.int32)), torch.from_numpy(index)


def patterns_for(size: str, grid: Grid) -> list[Pattern | None]:
    """Return each transformer block's pattern of a model ``size``, scaled to ``grid``."""
    return [one and scaled(one, grid) for one in PATTERNS[size]]


def why_unsupported(size: str, grid: Grid) -> str:
    """Explain why a model ``size`` has no sparse attention on ``grid``; empty if it has."""
    if size == "Tiny":
        return ""
    if grid[1:] != BASE[1:]:
        return "sparse attention exists for frames of 704x1280 only (720p, 16:9)"
    if math.prod(grid) % BLOCK:
        return (
            f"its {grid[0]} latent frames do not divide into blocks of {BLOCK} tokens; the "
            "published clips have 93 or 61 frames"
        )
    return ""


def density(patterns: Sequence[Pattern | None], grid: Grid) -> float:
    """Return the share of query-key pairs that the blocks attend to, averaged over them."""
    shares = [1.0 if one is None else math.prod(one.window) / math.prod(grid) for one in patterns]
    return sum(shares) / len(shares)
