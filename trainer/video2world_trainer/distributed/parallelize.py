"""Distribute a model and its clips over ranks: device mesh, FSDP2 and context parallelism.

Ranks form a data-parallel x context-parallel mesh. The ranks of a context-parallel group have
consecutive numbers, so that they share a node and its fast links. They train on the same clip, each
on some of its latent frames, and exchange heads for tokens in self-attention (see
:mod:`video2world_trainer.distributed.ulysses`); all other layers work on each token separately.
FSDP shards parameters, gradients and optimizer state over a group of ranks, independently of the
clips that they train on.
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
from video2world_trainer.distributed.process_group import World, new_group
from video2world_trainer.distributed.ulysses import all_to_all, ulysses
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.dit import VideoDiT

__all__ = ["ParallelMesh", "apply_context_parallel", "apply_fsdp", "build_mesh", "frame_slice"]


def frame_slice(frames: int, parts: int, index: int) -> slice:
    """Return rank ``index``'s latent frames; the first ranks take one more if they are uneven."""
    size, remainder = divmod(frames, parts)
    first = index * size + min(index, remainder)
    return slice(first, first + size + (index < remainder))


@dataclass(frozen=True)
class ParallelMesh:
    """This rank's place in the data-parallel x context-parallel mesh, and its groups.

    ``shard_mesh`` is FSDP's mesh, whose last dimension parameters are sharded over. ``host_mesh``
    has the same ranks on their CPUs, for copies of sharded tensors. Both are None without FSDP.
    """

    world: World
    context_size: int = 1
    context_group: dist.ProcessGroup | None = None
    shard_mesh: DeviceMesh | None = None
    host_mesh: DeviceMesh | None = None

    @property
    def context_rank(self) -> int:
        """Rank within the context-parallel group."""
        return self.world.rank % self.context_size

    @property
    def data_rank(self) -> int:
        """Rank in the data-parallel dimension."""
        return self.world.rank // self.context_size

    @property
    def data_size(self) -> int:
        """Size of the data-parallel dimension: the number of distinct clips at batch size 1."""
        return self.world.size // self.context_size

    def frames(self, count: int) -> slice:
        """Return this rank's slice of a clip's ``count`` latent frames."""
        return frame_slice(count, self.context_size, self.context_rank)

    def weight(self, count: int) -> float:
        """Return the weight of this rank's loss for clips of ``count`` latent frames.

        With it the mean over all ranks equals the mean over all frames of all clips.
        """
        own = self.frames(count)
        own_count: int = own.stop - own.start
        return own_count * self.context_size / count

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of all gradients, given this rank's shards of them."""
        norm = total_norm(gradients)
        if self.shard_mesh is None:
            return norm
        square = norm.square()
        dist.all_reduce(square, group=self.shard_mesh.get_group(self.shard_mesh.ndim - 1))
        return square.sqrt()


def build_mesh(
    world: World,
    *,
    context: int,
    shard_size: int,
    frames: int,
    heads: int,
    setting: str | None = None,
) -> ParallelMesh:
    """Arrange the ranks into a mesh and create its process groups (a collective call).

    Args:
        world: all ranks.
        context: ranks that share a clip.
        shard_size: the most ranks to shard over with FSDP; 1 disables FSDP, -1 means all ranks.
        frames: latent frames of a clip.
        heads: attention heads of the network.
        setting: the user's setting that determines ``context``, for messages.

    Raises:
        UserError: the ranks, frames or heads cannot be divided in this way.
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
    context_group = None
    if context > 1:
        for first in range(0, world.size, context):  # every rank must create every group
            group = new_group(range(first, first + context))
            if group is not None:
                context_group = group
    if size == 1:
        return ParallelMesh(world, context, context_group)
    shape: tuple[int, ...] = (size,)
    names: tuple[str, ...] = ("shard",)
    if size < world.size:
        shape, names = (world.size // size, size), ("replicate", "shard")
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    host_mesh = mesh
    if world.device.type != "cpu":
        host_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    return ParallelMesh(world, context, context_group, mesh, host_mesh)


def apply_fsdp(net: VideoDiT, mesh: ParallelMesh) -> None:
    """Shard the parameters of ``net`` block by block; gradients are averaged in float32."""
    if mesh.shard_mesh is None:
        return
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in net.blocks:
        fully_shard(block, mesh=mesh.shard_mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh.shard_mesh, mp_policy=policy)


def apply_context_parallel(
    net: VideoDiT,
    attend: Attend | Sequence[Attend],
    cross_attention: Attend,
    mesh: ParallelMesh,
    frames: int,
) -> None:
    """Let ``net`` process this rank's latent frames only, with self-attention over all frames.

    Args:
        net: the network.
        attend: self-attention of a single rank, for all blocks or one for each.
        cross_attention: cross-attention to the caption.
        mesh: the ranks; without a context-parallel group, attention is set as it is.
        frames: latent frames of a clip.
    """
    group = mesh.context_group
    if group is None:
        net.set_attention(cross_attention, attend)
        return
    own = mesh.frames(frames)
    net.first_frame, net.all_frames = own.start, frames
    slices = [frame_slice(frames, mesh.context_size, i) for i in range(mesh.context_size)]
    counts = [one.stop - one.start for one in slices]
    transfer = partial(all_to_all, group=group)

    def over_all_ranks(attend_locally: Attend) -> Attend:
        def attend_over_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            tokens_per_frame = query.shape[1] // counts[mesh.context_rank]
            sizes = [count * tokens_per_frame for count in counts]
            sharded = ulysses(attend_locally, sizes, transfer, mesh.context_rank)
            return sharded(query, key, value)

        return attend_over_tokens

    per_block = list(attend) if isinstance(attend, Sequence) else [attend] * len(net.blocks)
    wrapped = {one: over_all_ranks(one) for one in per_block}
    net.set_attention(cross_attention, [wrapped[one] for one in per_block])
