"""Sampling against a plain loop: batched, one branch at a time, offloaded, and extrapolated."""

import copy
import itertools

import pytest
import torch

from small_network import network
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.generation.denoise import (
    SamplingSettings,
    conditioning_mask,
    denoise,
    network_velocity,
)
from video2world_trainer.generation.solver import initial_noise, karras_sigmas, solver_step
from video2world_trainer.generation.step_cache import computed_steps, with_extrapolation
from video2world_trainer.generation.weight_offload import offload_weights
from video2world_trainer.training.loss import condition_mask

torch.set_num_threads(1)
CLIP = (1, 16, 3, 4, 6)


@pytest.fixture(scope="module")
def net():
    return network(blocks=3).requires_grad_(False)


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(CLIP, generator=generator), torch.randn(2, 5, 32, generator=generator)


@torch.no_grad()
def plain_loop(net, clean, text, settings):
    """Upstream's sampling line by line: one network call per branch, with its embedding."""
    mask = condition_mask(torch.tensor([1]), CLIP)
    sigmas = karras_sigmas(settings.steps)
    x, before = initial_noise(CLIP, settings.seed), None

    def estimate(x, sigma, caption):
        t, c_in, c_skip, c_out = (
            sigma / (1 + sigma),
            1 / (1 + sigma),
            1 / (1 + sigma),
            -sigma / (1 + sigma),
        )
        times = torch.full((1, CLIP[2]), t)
        times[:, 0] = 1e-4 / (1 + 1e-4)
        network_input = torch.where(mask.bool(), clean, c_in * x)
        x0 = c_skip * x + c_out * net(network_input, times, caption, mask)
        return torch.where(mask.bool(), clean, x0)

    def guided(x, sigma):
        cond = estimate(x, sigma, text[:1])
        return cond + settings.guidance * (cond - estimate(x, sigma, text[1:]))

    for sigma, target in itertools.pairwise(sigmas):
        clean_now = guided(x, sigma)
        x = solver_step(x, clean_now, before, sigma, target).float()
        before = (sigma, clean_now)
    return guided(x, sigmas[-1])


SETTINGS = SamplingSettings(seed=3, steps=6, guidance=1.5)


@pytest.mark.parametrize("batch_branches", [True, False])
def test_latents_equal_those_of_a_plain_loop(net, given, batch_branches):
    clean, text = given
    expected = plain_loop(net, clean, text, SETTINGS)
    velocity = network_velocity(
        net, text, conditioning_mask(clean, 1), batch_branches=batch_branches
    )
    calls = []
    found = denoise(velocity, clean, 1, SETTINGS, after_step=lambda: calls.append(1))
    assert len(calls) == 7
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:, :, 0], clean[:, :, 0])
    assert expected.std() > 0.5


def test_without_guidance_only_the_prompt_is_evaluated(net, given):
    clean, text = given
    velocity = network_velocity(net, text[:1], conditioning_mask(clean, 1))
    found = denoise(velocity, clean, 1, SETTINGS)
    alone = plain_loop(net, clean, text[:1].expand(2, -1, -1), SETTINGS)  # cond - uncond is 0
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3)


def test_offloaded_weights_give_the_same_and_leave_the_blocks_empty(net, given):
    clean, text = given
    mask = conditioning_mask(clean, 1)
    expected = denoise(network_velocity(net, text, mask), clean, 1, SETTINGS)
    offloaded = copy.deepcopy(net)
    prepare_blocks(offloaded)
    offload_weights(offloaded, torch.device("cpu"))
    held = sum(one.numel() for one in offloaded.blocks.parameters())
    assert held < 0.1 * sum(one.numel() for one in net.blocks.parameters())
    velocity = network_velocity(offloaded, text, mask, batch_branches=False)
    found = denoise(velocity, clean, 1, SETTINGS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    again = denoise(velocity, clean, 1, SETTINGS)
    assert torch.equal(found, again)


def test_approximate_sampling_computes_less_than_half_of_the_evaluations():
    assert computed_steps(36) == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35]
    assert computed_steps(1) == [0]
    assert computed_steps(4) == [0, 1, 2, 3]


def test_extrapolation_is_exact_on_parabolas_and_computes_the_listed_steps_only():
    asked = []

    def velocity(step, times):
        asked.append(step)
        return torch.tensor([0.1 * step**2 - 2.0 * step + 3])

    approximate = with_extrapolation(velocity, 20)
    found = [float(approximate(step, None)) for step in range(20)]
    expected = [0.1 * step**2 - 2.0 * step + 3 for step in range(20)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert asked == computed_steps(20)


def test_approximate_latents_are_near_the_exact_ones(net, given):
    clean, text = given
    mask = conditioning_mask(clean, 1)
    exact, approximate = (
        denoise(
            network_velocity(net, text, mask),
            clean,
            1,
            SamplingSettings(seed=3, steps=35, guidance=1.5, approximate=flag),
        )
        for flag in (False, True)
    )
    assert not torch.equal(exact, approximate)
    assert (exact - approximate).norm() < 0.1 * exact.norm()
