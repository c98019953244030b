"""Run by test_guidance_parallel.py under torchrun: several ranks against one process."""

import sys

import torch

from small_network import network
from video2world_trainer.distributed.process_group import World, join
from video2world_trainer.generation.denoise import (
    SamplingSettings,
    conditioning_mask,
    denoise,
    network_velocity,
)
from video2world_trainer.generation.guidance_parallel import (
    parallel_velocity,
    shard_sample,
    splits_branches,
)
from video2world_trainer.model.action_conditioning import ActionConditioning
from video2world_trainer.model.attention import sdpa

torch.set_num_threads(1)
CLIP = (1, 16, 3, 4, 6)  # three frames, which two ranks split unevenly
ACTIONS = ActionConditioning("per_frame", 3)


def twice(query, key, value):
    """Compute another attention, for one block of two."""
    return sdpa(2 * query, key, value)


def check(world: World, branches: int) -> None:
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(CLIP, generator=generator)
    text = torch.randn(branches, 5, 32, generator=generator)
    mask, settings = conditioning_mask(given, 1), SamplingSettings(seed=1, steps=4, guidance=1.5)
    actions = torch.randn(1, 8, 3, generator=generator)
    alone = network(actions=ACTIONS).requires_grad_(False)
    alone.set_attention(sdpa, [sdpa, twice])
    expected = denoise(network_velocity(alone, text, mask, actions=actions), given, 1, settings)
    other = denoise(network_velocity(alone, text, mask, actions=-actions), given, 1, settings)
    assert (expected - other).abs().max() > 1e-2
    net = network(actions=ACTIONS).requires_grad_(False)
    layout = shard_sample(net, [sdpa, twice], sdpa, world, branches, CLIP[2])
    own = layout.frames(CLIP[2])
    branch = layout.data_rank if splits_branches(world, branches) else "*"
    frames = f"{own.start}-{own.stop - 1}"
    print(f"rank {world.rank}: branch {branch} frames {frames}", flush=True)
    velocity = parallel_velocity(net, text, mask, layout, actions=actions)
    found = denoise(velocity, given, 1, settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    same = world.gather(found.double().sum().item())
    assert len(set(same)) == 1, same
    if world.is_main_rank:
        print(f"equal: {world.size} ranks, {branches} branches", flush=True)


if __name__ == "__main__":
    world = join()
    for argument in sys.argv[1:]:
        check(world, int(argument))
    world.leave()
