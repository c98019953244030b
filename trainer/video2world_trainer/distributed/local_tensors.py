"""Convert between sharded tensors and this rank's shard of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["as_sharded_like", "to_local", "total_norm"]


def to_local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, or ``tensor`` itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_sharded_like(parameter: Tensor, shard: Tensor) -> Tensor:
    """Wrap this rank's ``shard`` into a DTensor with the placements of ``parameter``.

    Returns ``shard`` itself if ``parameter`` is not sharded.
    """
    if not isinstance(parameter, DTensor):
        return shard
    sharded: Tensor = DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded


@torch.no_grad()
def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the Euclidean norm over all ``gradients`` as a float32 scalar."""
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
