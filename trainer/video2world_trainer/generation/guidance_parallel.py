"""Split one sample over several GPUs: by guidance's two branches, then by latent frames.

With guidance and an even number of ranks, half of them evaluate the prompt and half the negative
prompt; they exchange velocities only. Ranks of one branch split the clip's latent frames as in
training (:mod:`video2world_trainer.distributed.parallelize`). Every rank has the complete latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from video2world_trainer.distributed.parallelize import (
    ParallelMesh,
    apply_context_parallel,
    build_mesh,
    frame_slice,
)
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.denoise import Velocity, network_velocity
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.dit import VideoDiT

__all__ = ["parallel_velocity", "shard_sample", "splits_branches"]


def splits_branches(world: World, branches: int) -> bool:
    """Return whether each branch of guidance has ranks of its own."""
    return branches == 2 and world.size % 2 == 0


def shard_sample(
    net: VideoDiT,
    attend: Attend | Sequence[Attend],
    cross_attention: Attend,
    world: World,
    branches: int,
    frames: int,
) -> ParallelMesh:
    """Prepare ``net`` for this rank's part of a sample.

    Args:
        net: the network, changed in place.
        attend: self-attention, for all blocks or one for each.
        cross_attention: cross-attention.
        world: all ranks.
        branches: branches of guidance, 1 or 2.
        frames: latent frames of the clip.

    Raises:
        UserError: the heads or frames cannot be divided by the ranks.
    """
    context = world.size // 2 if splits_branches(world, branches) else world.size
    mesh = build_mesh(
        world,
        context=context,
        shard_size=1,
        frames=frames,
        heads=net.config.num_heads,
        setting=f"--num_gpus {world.size}",
    )
    apply_context_parallel(net, attend, cross_attention, mesh, frames)
    return mesh


def parallel_velocity(
    net: VideoDiT,
    text: Tensor,
    mask: Tensor,
    mesh: ParallelMesh,
    *,
    actions: Tensor | None = None,
    batch_branches: bool = True,
) -> Velocity:
    """Evaluate the network on all ranks; every rank gets all branches and frames.

    Arguments are those of :func:`video2world_trainer.generation.denoise.network_velocity`, for the
    complete sample and the same on every rank.
    """
    world, frames = mesh.world, mask.shape[2]
    if world.size == 1:
        return network_velocity(net, text, mask, actions=actions, batch_branches=batch_branches)
    split = splits_branches(world, len(text))
    mine = text[mesh.data_rank : mesh.data_rank + 1] if split else text
    own = mesh.frames(frames)
    local = network_velocity(
        net, mine, mask[:, :, own], actions=actions, batch_branches=batch_branches
    )
    parts = [frame_slice(frames, mesh.context_size, i) for i in range(mesh.context_size)]
    longest = max(one.stop - one.start for one in parts)

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        found = local(x[:, :, own], times[:, own])
        # collectives need equal shapes, so shorter parts are padded
        padded = found.new_zeros(*found.shape[:2], longest, *found.shape[3:])
        padded[:, :, : found.shape[2]] = found
        gathered = [torch.empty_like(padded) for _ in range(world.size)]
        dist.all_gather(gathered, padded)
        rows = [
            torch.cat(
                [gathered[first + i][:, :, : one.stop - one.start] for i, one in enumerate(parts)],
                2,
            )
            for first in range(0, world.size, mesh.context_size)
        ]
        return torch.cat(rows)

    return velocity
