"""Many GPUs: the mesh of ranks, FSDP2, and context parallelism.

Ranks are laid out data parallel x context parallel, the ranks of one context group side by side
(on one node, where links are fast). A context group trains on one clip together, each rank on its
latent frames. In self-attention the ranks trade tokens for heads (Ulysses, facts 1.9); everything
else is local to a token. FSDP cuts parameters, gradients and optimizer state over a group of ranks
whatever they train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.local_tensors import total_norm
from video2world_trainer.distributed.process_group import World
from video2world_trainer.distributed.ulysses import all_to_all, ulysses
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.dit import VideoDiT

__all__ = ["Layout", "frame_slice", "lay_out", "shard", "share_frames"]


def frame_slice(frames: int, parts: int, index: int) -> slice:
    """The latent frames of one of ``parts`` ranks; the first ranks take what does not divide."""
    size, more = divmod(frames, parts)
    first = index * size + min(index, more)
    return slice(first, first + size + (index < more))


@dataclass(frozen=True)
class Layout:
    """Where this rank stands among the others."""

    world: World
    context_size: int = 1
    context_group: dist.ProcessGroup | None = None
    shard_mesh: DeviceMesh | None = None  # of FSDP; its last dimension is cut over
    host_mesh: DeviceMesh | None = None  # the same ranks' CPUs, for copies of sharded tensors

    @property
    def context_rank(self) -> int:
        """Place within the context group."""
        return self.world.rank % self.context_size

    @property
    def data_rank(self) -> int:
        """Which clips of a global batch this rank works on."""
        return self.world.rank // self.context_size

    @property
    def data_size(self) -> int:
        """How many different clips are trained on at once, for one a rank."""
        return self.world.size // self.context_size

    def frames(self, count: int) -> slice:
        """This rank's part of a clip's latent frames."""
        return frame_slice(count, self.context_size, self.context_rank)

    def weight(self, count: int) -> float:
        """What the mean over this rank's frames counts, so that the mean over all ranks is the
        mean over all frames of all clips."""
        own = self.frames(count)
        return (own.stop - own.start) * self.context_size / count

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients, of which FSDP leaves each rank a part."""
        norm = total_norm(gradients)
        if self.shard_mesh is None:
            return norm
        square = norm.square()
        dist.all_reduce(square, group=self.shard_mesh.get_group(self.shard_mesh.ndim - 1))
        return square.sqrt()


def lay_out(
    world: World,
    *,
    context: int,
    shard_size: int,
    frames: int,
    heads: int,
    setting: str | None = None,
) -> Layout:
    """Arrange the ranks.

    Args:
        world: all ranks.
        context: ranks that share a clip.
        shard_size: ranks that FSDP cuts over at most; 1 is no FSDP, -1 all ranks.
        frames: latent frames of a clip.
        heads: attention heads of the network.
        setting: what the user said that decides ``context``, for messages.

    Raises:
        UserError: the ranks, frames or heads cannot be shared so.
    """
    key = setting or f"model_parallel.context_parallel_size={context}"
    if world.size % context:
        raise UserError(
            f"{key}: the {world.size} ranks cannot be divided into groups of {context}; use a "
            "multiple of it, or set it to 1"
        )
    if heads % context or context > frames:
        fitting = [n for n in range(1, min(heads, frames) + 1) if heads % n == 0]
        raise UserError(
            f"{key}: it must divide the {heads} attention heads and be at most the {frames} "
            f"latent frames; possible are {', '.join(map(str, fitting))}"
        )
    limit = world.size if shard_size == -1 else min(shard_size, world.size)
    size = max(n for n in range(1, limit + 1) if world.size % n == 0)
    group = None
    if context > 1:
        for first in range(0, world.size, context):  # every rank must take part in making each
            made = dist.new_group(list(range(first, first + context)))
            if first <= world.rank < first + context:
                group = made
    if size == 1:
        return Layout(world, context, group)
    shape: tuple[int, ...] = (size,)
    names: tuple[str, ...] = ("shard",)
    if size < world.size:
        shape, names = (world.size // size, size), ("replicate", "shard")
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    host = mesh
    if world.device.type != "cpu":
        host = init_device_mesh("cpu", shape, mesh_dim_names=names)
    return Layout(world, context, group, mesh, host)


def shard(net: VideoDiT, layout: Layout) -> None:
    """Cut the parameters of ``net``, block by block; gradients are averaged in float32."""
    if layout.shard_mesh is None:
        return
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in net.blocks:
        fully_shard(block, mesh=layout.shard_mesh, mp_policy=policy)
    fully_shard(net, mesh=layout.shard_mesh, mp_policy=policy)


def share_frames(
    net: VideoDiT,
    attend: Attend | Sequence[Attend],
    to_caption: Attend,
    layout: Layout,
    frames: int,
) -> None:
    """Let ``net`` work on this rank's of ``frames`` latent frames, and attend over them all.

    ``attend`` is one rank's self-attention, of all blocks or of each; ``to_caption`` its
    cross-attention.
    """
    group = layout.context_group
    if group is None:
        net.set_attention(to_caption, attend)
        return
    own = layout.frames(frames)
    net.first_frame, net.all_frames = own.start, frames
    counts = [
        (one.stop - one.start)
        for one in (frame_slice(frames, layout.context_size, i) for i in range(layout.context_size))
    ]
    transfer = partial(all_to_all, group=group)

    def over_all(one: Attend) -> Attend:
        def over_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cells = query.shape[1] // counts[layout.context_rank]
            sizes = [count * cells for count in counts]
            return ulysses(one, sizes, transfer, layout.context_rank)(query, key, value)

        return over_tokens

    every = list(attend) if isinstance(attend, Sequence) else [attend] * len(net.blocks)
    made = {one: over_all(one) for one in every}
    net.set_attention(to_caption, [made[one] for one in every])
