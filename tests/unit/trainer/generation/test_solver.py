"""The solver against upstream's values, exact solutions and an independent solver."""

import itertools
import math

import numpy as np
import pytest
import torch

from video2world_trainer.generation.solver import initial_noise, karras_sigmas, solve, solver_step


def test_noise_levels_equal_upstreams():
    sigmas = karras_sigmas(35)
    assert len(sigmas) == 36
    assert sigmas[:4] == pytest.approx([80, 68.3251, 58.1421, 49.2886], abs=5e-5)
    assert sigmas[-2:] == pytest.approx([0.0039287, 0.002], abs=5e-8)
    assert sigmas == sorted(sigmas, reverse=True)


def test_zero_steps_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        karras_sigmas(0)


def test_initial_noise_is_numpys():
    wanted = np.random.RandomState(3).standard_normal((1, 2, 3)).astype(np.float32) * 80
    assert torch.equal(initial_noise((1, 2, 3), 3), torch.from_numpy(wanted))
    assert not torch.equal(initial_noise((1, 2, 3), 3), initial_noise((1, 2, 3), 4))


def test_constant_estimate_is_the_result_from_any_noise():
    target = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return target

    result = solve(denoise, initial_noise(target.shape, 0), karras_sigmas(35))
    assert torch.equal(result, target)
    assert calls == karras_sigmas(35)  # 35 steps and the final evaluation at sigma_min


def test_second_order_on_gaussian_data():
    """For data N(0, s^2) the flow is x(sigma) = x(80) sqrt((s^2 + sigma^2) / (s^2 + 80^2))."""
    spread = 0.5
    noise = initial_noise((1, 1, 1, 8, 8), 0)

    def denoise(x, sigma):
        return x * spread**2 / (spread**2 + sigma**2)

    def error(steps):
        sigmas = karras_sigmas(steps)
        x, before = noise.double(), None
        for sigma, target in itertools.pairwise(sigmas):
            clean = denoise(x, sigma)
            x = solver_step(x, clean, before, sigma, target)
            before = (sigma, clean)
        exact = noise.double() * math.sqrt((spread**2 + sigmas[-1] ** 2) / (spread**2 + 80**2))
        return (x - exact).abs().max().item()

    errors = [error(steps) for steps in (40, 80, 160)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(order > 1.7 for order in orders), (errors, orders)


def test_equals_an_independent_solver():
    """The exponential integrator of x' = x - D(x) in lambda, its integrals done numerically."""
    random = torch.Generator().manual_seed(5)
    x = torch.randn(6, generator=random, dtype=torch.float64)
    now, earlier = (torch.randn(6, generator=random, dtype=torch.float64) for _ in range(2))
    before, sigma, target = 3.0, 2.0, 1.2
    h, r = math.log(sigma / target), math.log(before / sigma)
    points = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * h
    weight = torch.exp(points - h)
    # D is extended linearly through its last two values
    slope = (weight * points).sum() * h / len(points) / r
    direct = weight.sum() * h / len(points)
    wanted = math.exp(-h) * x + direct * now + slope * (now - earlier)
    got = solver_step(x, now, (before, earlier), sigma, target)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
