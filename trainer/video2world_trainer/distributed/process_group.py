"""Join the process group, and let its ranks agree, share values and average gradients.

Without torchrun's environment there is one rank and no communication. How ranks share a model and a
clip is defined in :mod:`video2world_trainer.distributed.parallelize`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from video2world_common.exit_codes import UserError

__all__ = ["World", "join", "new_group", "peer_lost"]

T = TypeVar("T")
BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MiB of float32 per all-reduce


@dataclass(frozen=True)
class World:
    """This process's rank, the world size and the rank's device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main_rank(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    def average(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its mean over all ranks, in place, and return it."""
        return self.sum(tensor).div_(self.size) if self.size > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any rank, without waiting for the GPUs."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared)

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its mean over the ranks, summed in float32 in a fixed order.

        All ranks must pass the same shapes.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        elements = 0
        for gradient in gradients:
            bucket.append(gradient)
            elements += gradient.numel()
            if elements >= BUCKET_ELEMENTS:
                self._average_bucket(bucket)
                bucket, elements = [], 0
        if bucket:
            self._average_bucket(bucket)

    def _average_bucket(self, bucket: Sequence[Tensor]) -> None:
        flat = self.average(torch.cat([one.reshape(-1).float() for one in bucket]))
        parts = flat.split([one.numel() for one in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: T) -> list[T]:
        """Return every rank's ``value`` (plain Python data), in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size  # filled in place, with no type of its own
        dist.all_gather_object(values, value)
        return values

    def on_main_rank(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the main rank and return its result (plain Python data) on every rank.

        Raises:
            UserError: on every rank, if ``work`` raised it.
        """
        if self.size == 1:
            return work()
        shared: list[Any] = [None, None]  # the result, or the message of a UserError
        if self.is_main_rank:
            try:
                shared[0] = work()
            except UserError as error:
                shared[1] = str(error)
        dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        if shared[1] is not None:
            raise UserError(shared[1])
        result: T = shared[0]
        return result

    def leave(self) -> None:
        """Destroy the process group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


def new_group(
    ranks: Sequence[int] | None = None, *, backend: str | None = None
) -> dist.ProcessGroup | None:
    """Create a process group of ``ranks`` (default: all); None on ranks outside of it.

    All ranks must call this in the same order.
    """
    group = dist.new_group(None if ranks is None else list(ranks), backend=backend)
    return group if isinstance(group, dist.ProcessGroup) else None


def peer_lost(error: RuntimeError) -> bool:
    """Return whether ``error`` is a collective's that lost a rank; gloo has no class for it."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


def join(timeout: float = 1800.0, *, on_cpu: bool = False) -> World:
    """Join the process group that torchrun's environment describes: NCCL on GPUs, gloo on CPUs.

    In a GPU run, CPU tensors such as flags and counts go through gloo, so that agreement between
    hosts does not wait for the GPUs.

    Args:
        timeout: seconds after which the watchdog ends the process; collectives time out a minute
            later.
        on_cpu: do not use GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available() and not on_cpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout + 60),
        )
    return World(rank, size, device)
