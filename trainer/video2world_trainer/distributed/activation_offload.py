"""Block inputs kept in host memory between forward and backward, moved while the GPU computes.

It makes room for 2 * width * tokens bytes a block at the price of as much traffic over the bus each
way, which a block's attention outlasts many times over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["offloaded"]


@dataclass
class _Kept:
    """One input: in host memory, and again on its device once it is fetched."""

    host: Tensor
    device: torch.device
    before: _Kept | None  # of the block before, which the backward pass needs next
    moved: torch.cuda.Event | None = None
    fetched: Tensor | None = None

    def fetch(self, side: torch.cuda.Stream | None) -> None:
        """Start moving it back."""
        if self.fetched is not None:
            return
        if side is None:
            self.fetched = self.host.clone()
            return
        with torch.cuda.stream(side):
            self.fetched = self.host.to(self.device, non_blocking=True)
            self.moved = torch.cuda.Event()
            self.moved.record(side)


class _Offload:
    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._newest: _Kept | None = None
        self._free: list[Tensor] = []  # pinned memory to use again
        self._side: torch.cuda.Stream | None = None

    def __call__(self, block: Any, x: Tensor, *rest: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._run(block, x, *rest)
        if x.is_cuda and self._side is None:
            self._side = torch.cuda.Stream(x.device)

        def pack(saved: Tensor) -> Tensor | _Kept:
            same = saved.data_ptr() == x.data_ptr() and saved.numel() == x.numel()
            return self._move(saved) if same else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
            return self._run(block, x, *rest)

    def _move(self, x: Tensor) -> _Kept:
        x = x.detach()
        fitting = [one for one in self._free if one.shape == x.shape and one.dtype == x.dtype]
        if fitting:
            host = fitting[0]
            self._free = [one for one in self._free if one is not host]
        else:
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        if self._side is None:
            host.copy_(x)
        else:
            self._side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(self._side):
                host.copy_(x, non_blocking=True)
            x.record_stream(self._side)
        self._newest = _Kept(host, x.device, self._newest)
        return self._newest

    def _unpack(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        kept.fetch(self._side)
        if kept.before is not None:
            kept.before.fetch(self._side)
        x = kept.fetched
        assert x is not None
        if kept.moved is not None:
            current = torch.cuda.current_stream(kept.device)
            current.wait_event(kept.moved)
            x.record_stream(current)
        # the side stream has read the host's copy before it writes it again
        self._free.append(kept.host)
        self._newest, kept.before, kept.fetched = kept.before, None, None
        return x


def offloaded(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``run`` (a compiled runner of blocks), with its block's input kept on the host."""
    return _Offload(run)
