"""From noise to latents: the Karras noise levels and the two-step Adams-Bashforth solver.

The laws of facts sheet 5.3 (Karras et al. 2022, eq. 5; exponential integrator in -ln sigma with
two-step history, "RES 2AB"), without any network in them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["SIGMA_MAX", "SIGMA_MIN", "initial_noise", "karras_sigmas", "sample", "solver_step"]

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0

# Latents x [B, C, T, H, W] at noise level sigma -> the estimate of the clean latents
Denoise = Callable[[Tensor, float], Tensor]


def karras_sigmas(
    steps: int, *, sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN, rho: float = RHO
) -> list[float]:
    """The ``steps`` + 1 noise levels, falling from ``sigma_max`` to ``sigma_min``.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError("sampling takes at least one step")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(first + i / steps * (last - first)) ** rho for i in range(steps + 1)]


def initial_noise(shape: Sequence[int], seed: int, *, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Where sampling starts: upstream's numpy noise of that seed times ``sigma_max``, float32."""
    noise = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(noise) * sigma_max


def solver_step(
    x: Tensor, clean: Tensor, before: tuple[float, Tensor] | None, sigma: float, target: float
) -> Tensor:
    """Move ``x`` from noise level ``sigma`` to ``target`` in float64.

    ``clean`` is the clean estimate at ``sigma``; ``before`` the level and estimate one step
    earlier, None on the first step, which is Euler's.
    """
    state, now = x.double(), clean.double()
    if before is None:
        ratio = target / sigma
        return (1 - ratio) * now + ratio * state
    earlier_sigma, earlier = before[0], before[1].double()
    step = math.log(sigma / target)
    c2 = math.log(sigma / earlier_sigma) / step
    phi1 = math.expm1(-step) / -step
    phi2 = (phi1 - 1) / -step
    b2 = phi2 / c2
    return math.exp(-step) * state + step * ((phi1 - b2) * now + b2 * earlier)


def sample(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Follow the noise levels down and return the clean estimate at the last of them.

    ``denoise`` is called once at every level, so ``len(sigmas)`` times; the state stays float32
    between steps, as upstream's. ``after_step`` is told after each.
    """
    x = noise
    before: tuple[float, Tensor] | None = None
    for sigma, target in itertools.pairwise(sigmas):
        clean = denoise(x, sigma)
        x = solver_step(x, clean, before, sigma, target).float()
        before = (sigma, clean)
        after_step()
    result = denoise(x, sigmas[-1])
    after_step()
    return result
