"""Sparse attention of the ``-natten`` checkpoints: who sees whom, and as blocks a kernel can skip.

Each query sees a window of keys along time, height and width (generalized neighborhood attention:
window, stride, dilation; Hassani et al. 2025; facts sheet 1.8). Along an axis, positions of equal
residue modulo ``dilation`` are a group of their own; queries of the same ``stride`` positions of a
group share the window around their middle, moved inside the group's ends.

Put in the order of residues and strides, queries with the same window lie side by side, and at the
published sizes every block of 128 queries sees a block of 128 keys wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from video2world_common.exit_codes import UserError

__all__ = [
    "BLOCK",
    "PATTERNS",
    "Grid",
    "Pattern",
    "Plan",
    "dense_mask",
    "patterns_for",
    "plan",
    "scaled",
]

BLOCK = 128  # tokens
BASE = (None, 44, 80)  # the grid [T, H, W] of tokens that the patterns are written for

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Pattern:
    """Per axis (time, height, width); a window of -1 is the whole axis."""

    window: Grid
    stride: Grid = (1, 1, 1)
    dilation: Grid = (1, 1, 1)


_A = Pattern((-1, 4, 16), dilation=(1, 11, 5))
_B = Pattern((-1, 12, 16), stride=(1, 4, 1), dilation=(1, 1, 5))
_C = Pattern((-1, 12, 24), stride=(1, 4, 8))
_D = Pattern((-1, 20, 40), stride=(1, 4, 8))
_E = Pattern((-1, 28, 56), stride=(1, 4, 8))


def _by_block(count: int, chosen: dict[Pattern | None, Sequence[int]]) -> list[Pattern | None]:
    found = {block: pattern for pattern, blocks in chosen.items() for block in blocks}
    return [found[block] for block in range(count)]


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
}
"""Each block's pattern by model size; None attends to everything."""


def scaled(pattern: Pattern, grid: Grid) -> Pattern:
    """``pattern`` for a ``grid`` of tokens, in proportion to the one it is written for."""
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
    t, h, w = zip(window, stride, dilation, strict=True)
    return Pattern(*zip(t, h, w, strict=True))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Axis:
    """Of each position along an axis: its group, its place there, and the window it sees."""

    residue: np.ndarray
    place: np.ndarray
    start: np.ndarray
    group: np.ndarray  # positions whose queries share a window; 0 where the window is the group
    window: int

    @classmethod
    def of(cls, length: int, window: int, stride: int, dilation: int) -> _Axis:
        position = np.arange(length)
        residue, place = position % dilation, position // dilation
        lengths = (length - residue + dilation - 1) // dilation  # of each one's group
        if window > lengths.min():
            raise ValueError(f"a window of {window} in {length} positions by {dilation}")
        leader = np.minimum(place // stride * stride + stride // 2, lengths - 1)
        start = np.clip(leader - window // 2, 0, lengths - window)
        group = np.where(lengths == window, 0, place // stride)
        return cls(residue, place, start, group, window)

    def sees(self) -> np.ndarray:
        """[queries, keys] bool."""
        near = self.place - self.start[:, None]
        inside = (near >= 0) & (near < self.window)
        return (self.residue[:, None] == self.residue) & inside


def _axes(pattern: Pattern, grid: Grid) -> list[_Axis]:
    return [
        _Axis.of(*one)
        for one in zip(grid, pattern.window, pattern.stride, pattern.dilation, strict=True)
    ]


def dense_mask(pattern: Pattern, grid: Grid) -> Tensor:
    """The definition, [T*H*W queries, T*H*W keys] bool, time slowest; for small grids."""
    t, h, w = (torch.from_numpy(axis.sees()) for axis in _axes(pattern, grid))
    tokens = int(np.prod(grid))
    mask = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
    return mask.reshape(tokens, tokens)


@dataclass(frozen=True)
class Plan:
    """A pattern on a grid, for kernels that skip blocks of ``BLOCK`` queries x ``BLOCK`` keys.

    ``order`` [S] is the token at each place, ``place`` [S] its inverse. Of each block of queries
    (int32): how many blocks of keys it sees wholly, which (the first ``count`` of a row), and the
    same of those it sees in part, where ``rows[kind[query]]`` tells which keys, places all.
    """

    order: Tensor
    place: Tensor
    full_count: Tensor  # [S / BLOCK]
    full_index: Tensor  # [S / BLOCK, S / BLOCK]
    part_count: Tensor
    part_index: Tensor
    kind: Tensor  # [S] int32
    rows: Tensor  # [kinds, S] bool

    @property
    def whole(self) -> bool:
        """Whether no block is seen in part only."""
        return not bool(self.part_count.any())

    def to(self, device: torch.device) -> Plan:
        """The same on ``device``."""
        return Plan(**{name: one.to(device) for name, one in vars(self).items()})


@cache
def plan(pattern: Pattern, grid: Grid) -> Plan:
    """The blocks of ``pattern`` (already scaled) on a ``grid`` of tokens."""
    axes = _axes(pattern, grid)
    at = np.unravel_index(np.arange(int(np.prod(grid))), grid)
    keys = [axis.residue[i] for axis, i in zip(axes, at, strict=True)]
    keys += [axis.group[i] for axis, i in zip(axes, at, strict=True)]
    order = np.lexsort((*at[::-1], *keys[::-1]))
    at = tuple(i[order] for i in at)
    # queries of one kind see the same keys: the same residue and window along every axis
    marks = np.stack(
        [mark[i] for axis, i in zip(axes, at, strict=True) for mark in (axis.residue, axis.start)]
    )
    _, example, kind = np.unique(marks, axis=1, return_index=True, return_inverse=True)
    kind = kind.reshape(-1)
    rows = np.ones((len(example), len(order)), dtype=bool)
    for axis, i in zip(axes, at, strict=True):
        rows &= axis.sees()[i[example]][:, i]

    count = -(-len(order) // BLOCK)
    padded = np.zeros((len(rows), count * BLOCK), dtype=bool)
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), count, BLOCK)
    some, every = blocks.any(2), blocks.all(2)
    seen_some = np.zeros((count, count), dtype=bool)
    seen_all = np.ones((count, count), dtype=bool)
    for block in range(count):
        kinds = np.unique(kind[block * BLOCK : (block + 1) * BLOCK])
        seen_some[block], seen_all[block] = some[kinds].any(0), every[kinds].all(0)
    full, part = _listed(seen_all), _listed(seen_some & ~seen_all)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Plan(
        torch.from_numpy(order),
        torch.from_numpy(place),
        *full,
        *part,
        torch.from_numpy(kind.astype(np.int32)),
        torch.from_numpy(rows),
    )


def _listed(seen: np.ndarray) -> tuple[Tensor, Tensor]:
    """How many of each row, and which, those first."""
    index = np.argsort(~seen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(seen.sum(1).astype(np.int32)), torch.from_numpy(index)


def patterns_for(size: str, grid: Grid) -> list[Pattern | None]:
    """Each block's pattern of a model ``size`` on a ``grid``.

    Raises:
        UserError: there are no sparse checkpoints of that size.
    """
    if size not in PATTERNS:
        raise UserError(f"--natten: there is no sparse {size} model, only {', '.join(PATTERNS)}")
    return [one and scaled(one, grid) for one in PATTERNS[size]]
