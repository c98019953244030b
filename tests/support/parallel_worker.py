"""Run by test_parallel.py under torchrun: every arrangement of the ranks against one process."""

import sys
from dataclasses import replace

import torch

from small_network import network
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.distributed.parallelize import (
    apply_context_parallel,
    apply_fsdp,
    build_mesh,
)
from video2world_trainer.distributed.process_group import join
from video2world_trainer.model.action_conditioning import ActionConditioning
from video2world_trainer.model.attention import sdpa
from video2world_trainer.training.loss import (
    NoiseSample,
    collate_noise,
    sample_noise,
    training_loss,
)
from video2world_trainer.training.optimizer import MasterAdamW

torch.set_num_threads(1)
CLIP = (16, 3, 4, 6)  # three frames: two ranks cannot share them evenly
ACTIONS = ActionConditioning("per_frame", 3)


def clips(numbers, device):
    generators = [torch.Generator().manual_seed(100 + n) for n in numbers]
    latents = torch.stack([torch.randn(CLIP, generator=one) for one in generators])
    text = torch.stack([torch.randn(5, 32, generator=one) for one in generators])
    randomness = collate_noise([sample_noise(CLIP, one) for one in generators])
    actions = torch.stack([torch.randn(8, 3, generator=one) for one in generators])
    moved = {name: one.to(device) for name, one in vars(randomness).items()}
    return latents.to(device), text.to(device), NoiseSample(**moved), actions.to(device)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check(world, context, shard_size):
    layout = build_mesh(world, context=context, shard_size=shard_size, frames=CLIP[1], heads=4)
    device = world.device
    alone = network(actions=ACTIONS).to(device)
    *batch, actions = clips(range(layout.data_size), device)
    expected = training_loss(alone, *batch, actions=actions)
    expected.backward()
    wanted = {name: one.grad for name, one in alone.named_parameters()}

    net = network(actions=ACTIONS).to(device)
    apply_context_parallel(net, sdpa, sdpa, layout, CLIP[1])
    prepare_blocks(net, keep="attention")
    apply_fsdp(net, layout)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.1)
    latents, text, randomness, actions = clips([layout.data_rank], device)
    own = layout.frames(CLIP[1])
    randomness = replace(randomness, noise=randomness.noise[:, :, own])
    loss = training_loss(
        net, latents[:, :, own], text, randomness, actions=actions, first_frame=own.start
    )
    loss = loss * layout.weight(CLIP[1])
    loss.backward()
    if layout.shard_mesh is None:
        world.average_gradients(optimizer.gradients())
    mean = world.average(loss.detach().clone())
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-5, atol=1e-5)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(whole(parameter.grad), wanted[name], rtol=1e-3, atol=1e-5)
    norm = layout.norm(optimizer.gradients())
    total = torch.stack([one.norm() for one in wanted.values()]).norm()
    torch.testing.assert_close(norm, total, rtol=1e-4, atol=1e-6)

    reference = MasterAdamW(alone.named_parameters(), weight_decay=0.1)
    for one in (reference, optimizer):
        one.step(
            1e-3, skip=torch.zeros((), device=device), divisor=torch.full((), 2.0, device=device)
        )
    for name, parameter in alone.named_parameters():
        large = wanted[name].abs() > 1e-3  # Adam's first step is the sign of what is rounding else
        found = whole(dict(net.named_parameters())[name].detach())
        torch.testing.assert_close(found[large], parameter[large], rtol=1e-5, atol=1e-5)
    if world.is_main_rank:
        print(f"equal: {world.size} ranks, context {context}, shard {shard_size}", flush=True)


if __name__ == "__main__":
    world = join()
    for argument in sys.argv[1:]:
        check(world, *map(int, argument.split(",")))
    world.leave()
