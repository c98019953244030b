"""Offload block inputs to host memory between the forward and the backward pass.

This frees 2 * width * tokens bytes of GPU memory per block, for as much PCIe traffic in each
direction. Copies overlap with computation, and a block's attention takes many times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["offloaded"]


@dataclass
class _OffloadedInput:
    """One block's input in host memory, and on its device again once it is fetched."""

    host: Tensor
    device: torch.device
    previous: _OffloadedInput | None  # of the preceding block, which the backward pass needs next
    copied: torch.cuda.Event | None = None
    fetched: Tensor | None = None

    def fetch(self, side: torch.cuda.Stream | None) -> None:
        """Start copying it back to its device."""
        if self.fetched is not None:
            return
        if side is None:
            self.fetched = self.host.clone()
            return
        with torch.cuda.stream(side):
            self.fetched = self.host.to(self.device, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record(side)


class _Offload:
    """Run blocks and keep their inputs on the host; one object serves all blocks of a network."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self._run = run
        self._newest: _OffloadedInput | None = None
        self._free_buffers: list[Tensor] = []  # pinned buffers for reuse
        self._side: torch.cuda.Stream | None = None

    def __call__(self, block: Any, x: Tensor, *rest: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._run(block, x, *rest)
        if x.is_cuda and self._side is None:
            self._side = torch.cuda.Stream(x.device)

        def pack(saved: Tensor) -> Tensor | _OffloadedInput:
            is_input = saved.data_ptr() == x.data_ptr() and saved.numel() == x.numel()
            return self._to_host(saved) if is_input else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
            return self._run(block, x, *rest)

    def _to_host(self, x: Tensor) -> _OffloadedInput:
        x = x.detach()
        fitting = [
            one for one in self._free_buffers if one.shape == x.shape and one.dtype == x.dtype
        ]
        if fitting:
            host = fitting[0]
            self._free_buffers = [one for one in self._free_buffers if one is not host]
        else:
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        if self._side is None:
            host.copy_(x)
        else:
            self._side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(self._side):
                host.copy_(x, non_blocking=True)
            x.record_stream(self._side)
        self._newest = _OffloadedInput(host, x.device, self._newest)
        return self._newest

    def _unpack(self, saved: Tensor | _OffloadedInput) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        saved.fetch(self._side)
        if saved.previous is not None:
            saved.previous.fetch(self._side)
        x = saved.fetched
        assert x is not None
        if saved.copied is not None:
            current = torch.cuda.current_stream(saved.device)
            current.wait_event(saved.copied)
            x.record_stream(current)
        # reuse is safe: the side stream runs this read before the next write
        self._free_buffers.append(saved.host)
        self._newest, saved.previous, saved.fetched = saved.previous, None, None
        return x


def offloaded(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``run``, a compiled runner of blocks, with block inputs saved in host memory."""
    return _Offload(run)
