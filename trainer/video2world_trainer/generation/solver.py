"""Solve the sampling ODE: Karras noise levels and a two-step exponential integrator ("RES 2AB").

Noise levels are those of Karras et al. 2022 (https://arxiv.org/abs/2206.00364, eq. 5). The solver
is the second-order multistep method in -ln sigma of Zhang et al. 2023
(https://arxiv.org/abs/2308.02157), as in upstream's ``cosmos_predict2/functional/runge_kutta.py``
and ``cosmos_predict2/schedulers/rectified_flow_scheduler.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["SIGMA_MAX", "SIGMA_MIN", "initial_noise", "karras_sigmas", "solve", "solver_step"]

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0

# Latents x [B, C, T, H, W] at noise level sigma -> the estimate of the clean latents
EstimateClean = Callable[[Tensor, float], Tensor]


def karras_sigmas(
    steps: int, *, sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN, rho: float = RHO
) -> list[float]:
    """Return ``steps`` + 1 noise levels, falling from ``sigma_max`` to ``sigma_min``.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError("sampling takes at least one step")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(first + i / steps * (last - first)) ** rho for i in range(steps + 1)]


def initial_noise(shape: Sequence[int], seed: int, *, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Draw the initial state: upstream's numpy noise for ``seed`` times ``sigma_max``, float32."""
    noise = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(noise) * sigma_max


def solver_step(
    x: Tensor, clean: Tensor, previous: tuple[float, Tensor] | None, sigma: float, target: float
) -> Tensor:
    """Move ``x`` from noise level ``sigma`` to ``target``, computing in float64.

    Args:
        x: latents at ``sigma``.
        clean: the estimate of the clean latents at ``sigma``.
        previous: noise level and estimate of the step before; None on the first step, which is
            an Euler step.
        sigma: current noise level.
        target: next noise level.
    """
    state, now = x.double(), clean.double()
    if previous is None:
        ratio = target / sigma
        return (1 - ratio) * now + ratio * state
    earlier_sigma, earlier = previous[0], previous[1].double()
    step = math.log(sigma / target)
    c2 = math.log(sigma / earlier_sigma) / step
    phi1 = math.expm1(-step) / -step
    phi2 = (phi1 - 1) / -step
    b2 = phi2 / c2
    return math.exp(-step) * state + step * ((phi1 - b2) * now + b2 * earlier)


def solve(
    estimate_clean: EstimateClean,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Step through the noise levels and return the clean estimate at the last of them.

    The state is float32 between steps, as in upstream.

    Args:
        estimate_clean: called once at every level.
        noise: the initial state, at ``sigmas[0]``.
        sigmas: falling noise levels.
        after_step: called after each call of ``estimate_clean``.
    """
    x = noise
    previous: tuple[float, Tensor] | None = None
    for sigma, target in itertools.pairwise(sigmas):
        clean = estimate_clean(x, sigma)
        x = solver_step(x, clean, previous, sigma, target).float()
        previous = (sigma, clean)
        after_step()
    result = estimate_clean(x, sigmas[-1])
    after_step()
    return result
