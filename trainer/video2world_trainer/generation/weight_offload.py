"""Keep the blocks' weights in host memory, and copy them to the GPU just before they are used.

The GPU holds the weights of two blocks: while one computes, a side stream copies the next. At 2B, a
block is 0.14 GB and computes for a tenth of a second, so the copy is hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from video2world_trainer.model.dit import Block, VideoDiT

__all__ = ["offload_weights"]

# used once per sample, for the caption and before any block runs, so they stay on the GPU
RESIDENT = ("cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.k_norm")
SLOTS = 2


class _OffloadedBlocks:
    """The blocks' runner: copy a block's weights into one of two buffers, then run the block."""

    def __init__(self, net: VideoDiT, device: torch.device) -> None:
        self._run: dict[Block, Callable[..., Tensor]] = {}
        self._order = {block: number for number, block in enumerate(net.blocks)}
        self._blocks = list(net.blocks)
        self._offloaded = [
            [one for name, one in block.named_parameters() if not name.startswith(RESIDENT)]
            for block in self._blocks
        ]
        self._shapes = [[one.shape for one in parameters] for parameters in self._offloaded]
        pinned = device.type == "cuda"
        self._host = [_packed(parameters, pinned) for parameters in self._offloaded]
        size = max(len(one) for one in self._host)
        self._slots = [
            torch.empty(size, dtype=self._host[0].dtype, device=device) for _ in range(SLOTS)
        ]
        self._side = torch.cuda.Stream(device) if pinned else None
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(device))
        self._holds: list[int | None] = [None] * SLOTS  # number of the block in each slot
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS  # the slot is filled
        self._used: list[torch.cuda.Event | None] = [None] * SLOTS  # the slot may be overwritten
        for block in self._blocks:
            self._run[block], block.runner = block.runner, self
        for parameters in self._offloaded:
            for one in parameters:
                one.data = one.data.new_empty(0, device=device)
        net.to(device)

    def __call__(self, block: Block, *args: Any) -> Tensor:
        number = self._order[block]
        if number not in self._holds:
            self._copy(number, 0)
        slot = self._holds.index(number)
        copied = self._copied[slot]
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)
        _point(self._offloaded[number], self._shapes[number], self._slots[slot])
        self._copy((number + 1) % len(self._blocks), 1 - slot)
        out = self._run[block](block, *args)
        if self._side is not None:
            used = self._used[slot] = torch.cuda.Event()
            used.record()
        return out

    def _copy(self, number: int, slot: int) -> None:
        """Start copying a block's weights into a slot, after the last use of its content."""
        if number in self._holds:
            return
        self._holds[slot] = number
        host = self._host[number]
        if self._side is None:
            self._slots[slot][: len(host)].copy_(host)
            return
        used = self._used[slot]
        if used is not None:
            self._side.wait_event(used)
        with torch.cuda.stream(self._side):
            self._slots[slot][: len(host)].copy_(host, non_blocking=True)
            copied = self._copied[slot] = torch.cuda.Event()
            copied.record(self._side)


def _packed(parameters: list[nn.Parameter], pinned: bool) -> Tensor:
    """Copy the parameters one after another into host memory."""
    size = sum(one.numel() for one in parameters)
    host = torch.empty(size, dtype=parameters[0].dtype, pin_memory=pinned)
    parts = host.split([one.numel() for one in parameters])
    for part, one in zip(parts, parameters, strict=True):
        part.view_as(one).copy_(one.detach())
    return host


def _point(parameters: list[nn.Parameter], shapes: list[torch.Size], slot: Tensor) -> None:
    """Make the parameters views of a slot."""
    offset = 0
    for one, shape in zip(parameters, shapes, strict=True):
        one.data = slot[offset : offset + shape.numel()].view(shape)
        offset += shape.numel()


def offload_weights(net: VideoDiT, device: torch.device) -> None:
    """Keep the weights of the blocks of ``net`` on the host; everything else moves to ``device``.

    For inference. Call ``distributed.activation_checkpoint.prepare_blocks``, which sets the blocks'
    runners, before.
    """
    _OffloadedBlocks(net, device)
