"""Blocks whose weights stay in host memory and come to the GPU just before they are used.

Two blocks' weights lie on the GPU at a time: while one computes, a side stream brings the next. At
2B that is 0.14 GB a block against a tenth of a second of computing, so the bus is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from video2world_trainer.model.dit import VideoDiT

__all__ = ["stream_weights"]

# made once a sample of its caption, before any block runs, so they stay
RESIDENT = ("cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.k_norm")
SLOTS = 2


class _Stream:
    def __init__(self, net: VideoDiT, device: torch.device) -> None:
        self._run: dict[nn.Module, Callable[..., Tensor]] = {}
        self._order = {block: number for number, block in enumerate(net.blocks)}
        self._blocks = list(net.blocks)
        self._moved = [
            [one for name, one in block.named_parameters() if not name.startswith(RESIDENT)]
            for block in self._blocks
        ]
        self._shapes = [[one.shape for one in parameters] for parameters in self._moved]
        pinned = device.type == "cuda"
        self._host = [_packed(parameters, pinned) for parameters in self._moved]
        size = max(len(one) for one in self._host)
        self._slots = [
            torch.empty(size, dtype=self._host[0].dtype, device=device) for _ in range(SLOTS)
        ]
        self._side = torch.cuda.Stream(device) if pinned else None
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(device))
        self._holds: list[int | None] = [None] * SLOTS  # which block's weights a slot holds
        self._brought: list[Any] = [None] * SLOTS  # events: a slot's weights are there
        self._used: list[Any] = [None] * SLOTS  # events: what a slot held is no longer needed
        for block in self._blocks:
            self._run[block], block.runner = block.runner, self
        for parameters in self._moved:
            for one in parameters:
                one.data = one.data.new_empty(0, device=device)
        net.to(device)

    def __call__(self, block: nn.Module, *args: Any) -> Tensor:
        number = self._order[block]
        if number not in self._holds:
            self._bring(number, 0)
        slot = self._holds.index(number)
        if self._side is not None:
            torch.cuda.current_stream().wait_event(self._brought[slot])
        _point(self._moved[number], self._shapes[number], self._slots[slot])
        self._bring((number + 1) % len(self._blocks), 1 - slot)
        out = self._run[block](block, *args)
        if self._side is not None:
            self._used[slot] = torch.cuda.Event()
            self._used[slot].record()
        return out

    def _bring(self, number: int, slot: int) -> None:
        """Start copying a block's weights into a slot, once what the slot held was used."""
        if number in self._holds:
            return
        self._holds[slot] = number
        host = self._host[number]
        if self._side is None:
            self._slots[slot][: len(host)].copy_(host)
            return
        if self._used[slot] is not None:
            self._side.wait_event(self._used[slot])
        with torch.cuda.stream(self._side):
            self._slots[slot][: len(host)].copy_(host, non_blocking=True)
            self._brought[slot] = torch.cuda.Event()
            self._brought[slot].record(self._side)


def _packed(parameters: list[nn.Parameter], pinned: bool) -> Tensor:
    """The parameters one after another in host memory."""
    size = sum(one.numel() for one in parameters)
    host = torch.empty(size, dtype=parameters[0].dtype, pin_memory=pinned)
    parts = host.split([one.numel() for one in parameters])
    for part, one in zip(parts, parameters, strict=True):
        part.view_as(one).copy_(one.detach())
    return host


def _point(parameters: list[nn.Parameter], shapes: list[torch.Size], slot: Tensor) -> None:
    """Let the parameters be views of a slot."""
    offset = 0
    for one, shape in zip(parameters, shapes, strict=True):
        one.data = slot[offset : offset + shape.numel()].view(shape)
        offset += shape.numel()


def stream_weights(net: VideoDiT, device: torch.device) -> None:
    """Keep the weights of the blocks of ``net`` on the host; all else moves to ``device``.

    For inference. The blocks' runners (``distributed.activation_checkpoint.prepare_blocks``) must
    have been chosen before.
    """
    _Stream(net, device)
