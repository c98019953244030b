"""One sample on several GPUs: guidance's two branches apart, and each branch's frames shared.

With guidance and an even number of ranks, half of them evaluate the prompt and half what guidance
leads away from: nothing is exchanged but the answers. Ranks of one branch share the clip's latent
frames as in training (:mod:`video2world_trainer.distributed.parallelize`). Every rank follows the
same latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from video2world_trainer.distributed.parallelize import Layout, frame_slice, lay_out, share_frames
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.denoise import Velocity, network_velocity
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.dit import VideoDiT

__all__ = ["branches_apart", "shared_layout", "shared_velocity"]


def branches_apart(world: World, branches: int) -> bool:
    """Whether each branch has ranks of its own."""
    return branches == 2 and world.size % 2 == 0


def shared_layout(
    net: VideoDiT,
    attend: Attend | Sequence[Attend],
    to_caption: Attend,
    world: World,
    branches: int,
    frames: int,
) -> Layout:
    """Prepare ``net`` for its rank's part of ``frames`` latent frames.

    Raises:
        UserError: heads or frames cannot be shared by so many.
    """
    context = world.size // 2 if branches_apart(world, branches) else world.size
    layout = lay_out(
        world,
        context=context,
        shard_size=1,
        frames=frames,
        heads=net.config.num_heads,
        setting=f"--num_gpus {world.size}",
    )
    share_frames(net, attend, to_caption, layout, frames)
    return layout


def shared_velocity(
    net: VideoDiT, text: Tensor, mask: Tensor, layout: Layout, *, together: bool = True
) -> Velocity:
    """As :func:`video2world_trainer.generation.denoise.network_velocity`, whole on every rank.

    ``text`` and ``mask`` are the whole sample's, the same on every rank.
    """
    world, frames = layout.world, mask.shape[2]
    if world.size == 1:
        return network_velocity(net, text, mask, together=together)
    apart = branches_apart(world, len(text))
    mine = text[layout.data_rank : layout.data_rank + 1] if apart else text
    own = layout.frames(frames)
    local = network_velocity(net, mine, mask[:, :, own], together=together)
    parts = [frame_slice(frames, layout.context_size, i) for i in range(layout.context_size)]
    longest = max(one.stop - one.start for one in parts)

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        found = local(x[:, :, own], times[:, own])
        # collectives want equal shapes: shorter parts are filled up
        padded = found.new_zeros(*found.shape[:2], longest, *found.shape[3:])
        padded[:, :, : found.shape[2]] = found
        gathered = [torch.empty_like(padded) for _ in range(world.size)]
        dist.all_gather(gathered, padded)
        rows = [
            torch.cat(
                [gathered[first + i][:, :, : one.stop - one.start] for i, one in enumerate(parts)],
                2,
            )
            for first in range(0, world.size, layout.context_size)
        ]
        return torch.cat(rows)

    return velocity
