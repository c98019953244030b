"""The ranks of a training group: joining, agreeing, averaging gradients.

Without torchrun's environment there is one rank and nothing is communicated. What ranks hold of a
model, and how they share a clip, is :mod:`video2world_trainer.distributed.parallelize`.
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

__all__ = ["World", "join", "peer_lost"]

T = TypeVar("T")
BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MiB of float32 on the wire at a time


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    def average(self, tensor: Tensor) -> Tensor:
        """The mean of ``tensor`` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; the GPUs are not waited for."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared)

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the ranks, summed in float32, in fixed order."""
        if self.size == 1:
            return
        bucket: list[torch.nn.Parameter] = []
        elements = 0
        for parameter in parameters:
            if parameter.grad is None:  # every rank must send the same layout
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            elements += parameter.numel()
            if elements >= BUCKET_ELEMENTS:
                self._average_bucket(bucket)
                bucket, elements = [], 0
        if bucket:
            self._average_bucket(bucket)

    def _average_bucket(self, bucket: Sequence[torch.nn.Parameter]) -> None:
        gradients = [one.grad for one in bucket if one.grad is not None]
        flat = self.average(torch.cat([one.reshape(-1).float() for one in gradients]))
        parts = flat.split([one.numel() for one in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (plain Python data), in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def leader_does(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on rank 0 (plain Python data), on every rank.

        Raises:
            UserError: on every rank, if ``work`` raised it.
        """
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = work()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if box[1] is not None:
            raise UserError(box[1])
        result: T = box[0]
        return result

    def leave(self) -> None:
        """Close the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


def peer_lost(error: RuntimeError) -> bool:
    """Whether ``error`` is a collective's that lost another rank; gloo has no class for it."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


def join(timeout: float = 1800.0, *, on_cpu: bool = False) -> World:
    """Join the group that torchrun's environment describes: NCCL on GPUs, gloo on CPUs.

    Tensors of a GPU run that lie on the CPU, flags and counts, go through gloo as well: what the
    hosts agree on does not wait for the GPUs. ``timeout`` (seconds) is when the watchdog acts; a
    collective gives up by itself somewhat later. ``on_cpu`` leaves the GPUs alone.
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
