"""Compute the training loss: noise levels, flow interpolation, conditioning, velocity error.

The network predicts the velocity noise - clean of rectified flow (Liu et al.,
https://arxiv.org/abs/2209.03003), with noise levels sigma as in EDM (Karras et al.,
https://arxiv.org/abs/2206.00364) and flow times t = sigma / (1 + sigma). All values follow
Cosmos-Predict2 (https://github.com/nvidia-cosmos/cosmos-predict2):
cosmos_predict2/models/video2world_model.py for noise levels and loss,
cosmos_predict2/module/denoiser_scaling.py for the preconditioning, and
cosmos_predict2/conditioner.py for conditional frames and text dropout.

Everything here is a pure function. All randomness of one training sample is drawn by
:func:`sample_noise` from a generator that the caller seeds, so it depends neither on the number of
ranks nor on what was trained before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = [
    "CONDITION_SIGMA",
    "HIGH_SIGMA",
    "HIGH_SIGMA_RATIO",
    "LOSS_SCALE",
    "TEXT_DROPOUT",
    "NoiseDistribution",
    "NoiseSample",
    "collate_noise",
    "condition_mask",
    "edm_weight",
    "interpolate",
    "sample_noise",
    "sample_sigma",
    "sigma_at",
    "sigma_to_time",
    "training_loss",
    "velocity_loss",
]

HIGH_SIGMA_RATIO = 0.05  # share of samples that are almost pure noise
HIGH_SIGMA = (200.0, 100_000.0)  # range of their noise levels
CONDITION_SIGMA = 1e-4  # noise level passed to the network for conditional frames
TEXT_DROPOUT = 0.2
LOSS_SCALE = 10.0

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class NoiseDistribution:
    """Distribution of a sample's randomness; the defaults are the guide's."""

    conditional_frames: tuple[int, int] = (1, 1)  # fewest and most latent frames to condition on
    text_dropout: float = TEXT_DROPOUT
    high_sigma_ratio: float = HIGH_SIGMA_RATIO
    adjusted: bool = True  # multiply noise levels by the square root of the latent frame count


def sample_sigma(
    count: int,
    latent_frames: int,
    generator: torch.Generator,
    distribution: NoiseDistribution | None = None,
) -> Tensor:
    """Draw noise levels ``[count]`` (float32), one per sample and shared by its frames.

    sigma = exp(N(0, 1)) * sqrt(latent_frames); 5% are replaced by log-uniform on [200, 1e5].
    """
    distribution = distribution or NoiseDistribution()
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    chosen = (
        torch.rand(count, generator=generator, dtype=torch.float64) < distribution.high_sigma_ratio
    )
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    low, high = (math.log(bound) for bound in HIGH_SIGMA)
    factor = math.sqrt(latent_frames) if distribution.adjusted else 1.0
    sigma = torch.where(chosen, torch.exp(low + share * (high - low)), normal.exp() * factor)
    return sigma.float()


def sigma_at(
    share: float, latent_frames: int, distribution: NoiseDistribution | None = None
) -> float:
    """Return the noise level below which ``share`` (within 0 and 1) of the drawn ones lie.

    This is the inverse of the cumulative distribution that :func:`sample_sigma` draws from, found
    by bisection over log sigma.
    """
    distribution = distribution or NoiseDistribution()
    factor = math.sqrt(latent_frames) if distribution.adjusted else 1.0
    ratio, normal = distribution.high_sigma_ratio, NormalDist(math.log(factor))
    lowest, highest = (math.log(bound) for bound in HIGH_SIGMA)

    def share_below(log_sigma: float) -> float:
        high = min(max((log_sigma - lowest) / (highest - lowest), 0.0), 1.0)
        return (1 - ratio) * normal.cdf(log_sigma) + ratio * high

    low, high = -30.0, 30.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if share_below(middle) < share else (low, middle)
    return math.exp(high)


def sigma_to_time(sigma: Tensor) -> Tensor:
    """Return the flow time t = sigma / (1 + sigma): 0 is data, 1 is noise."""
    return sigma / (1 + sigma)


def interpolate(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return (1 - t) * clean + t * noise for ``time`` [B] and the others [B, C, T, H, W]."""
    time = time.view(-1, 1, 1, 1, 1)
    return (1 - time) * clean + time * noise


def condition_mask(conditional: Tensor, shape: Sequence[int], *, first_frame: int = 0) -> Tensor:
    """Return a mask of conditional frames: float32 ``[B, 1, T, H, W]``, 1 where conditional.

    Args:
        conditional: number of leading conditional latent frames of each sample, ``[B]``.
        shape: shape of the latents, ``[B, C, T, H, W]``.
        first_frame: index within the clip of the first of these ``T`` frames.
    """
    batch, _, frames, height, width = shape
    index = first_frame + torch.arange(frames, device=conditional.device)
    is_conditional = index < conditional.view(-1, 1)
    mask = is_conditional.float().view(batch, 1, frames, 1, 1)
    return mask.expand(batch, 1, frames, height, width)


def edm_weight(sigma: Tensor) -> Tensor:
    """Return the EDM weight of noise levels relative to the rectified-flow weight.

    (sigma^2 + 1) / sigma^2 over (1 + sigma)^2 / sigma^2: between 1/2 (at sigma 1) and 1. The commit
    that the guide was written for uses the EDM weight; Cosmos-Predict2 changed it in commit
    58887e8.
    """
    return (sigma.square() + 1) / (1 + sigma).square()


def velocity_loss(
    velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    mask: Tensor,
    *,
    scale: float = LOSS_SCALE,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the mean of (v - (noise - clean))^2 over all elements, times ``scale``.

    This equals Cosmos-Predict2's mean of (x0 - x0_hat)^2 * (1 + sigma)^2 / sigma^2. As there,
    conditional elements are 0 but count in the denominator.

    Args:
        velocity: the network's prediction, ``[B, C, T, H, W]``.
        clean, noise: latents and noise of the same shape.
        mask: mask of conditional frames, ``[B, 1, T, H, W]``.
        scale: factor of the loss.
        weight: weight of each sample, ``[B]``; None for 1.
    """
    error = (velocity.float() - (noise - clean)) * (1 - mask)
    squares = error.square()
    if weight is not None:
        squares = squares * weight.view(-1, 1, 1, 1, 1)
    return squares.mean() * scale


@dataclass(frozen=True)
class NoiseSample:
    """Randomness of a batch."""

    sigma: Tensor  # [B] float32
    noise: Tensor  # [B, C, T, H, W] float32
    conditional: Tensor  # [B] int64: number of leading conditional latent frames
    keep_text: Tensor  # [B] bool: False where the text is dropped


def sample_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    distribution: NoiseDistribution | None = None,
) -> NoiseSample:
    """Draw the randomness of one sample with latents of ``shape`` ``[C, T, H, W]``.

    It is drawn on the CPU, so that it does not depend on the device.
    """
    frames, distribution = shape[1], distribution or NoiseDistribution()
    low, high = distribution.conditional_frames if frames > 1 else (0, 0)
    return NoiseSample(
        sigma=sample_sigma(1, frames, generator, distribution),
        conditional=torch.randint(low, high + 1, (1,), generator=generator),
        keep_text=torch.rand(1, generator=generator) >= distribution.text_dropout,
        noise=torch.randn((1, *shape), generator=generator),
    )


def collate_noise(samples: Sequence[NoiseSample]) -> NoiseSample:
    """Concatenate the randomness of samples to that of a batch."""
    return NoiseSample(
        sigma=torch.cat([one.sigma for one in samples]),
        noise=torch.cat([one.noise for one in samples]),
        conditional=torch.cat([one.conditional for one in samples]),
        keep_text=torch.cat([one.keep_text for one in samples]),
    )


def training_loss(
    net: Network,
    latents: Tensor,
    text: Tensor,
    noise: NoiseSample,
    *,
    actions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    first_frame: int = 0,
    scale: float = LOSS_SCALE,
    edm: bool = False,
) -> Tensor:
    """Return the loss of one batch as a float32 scalar.

    Args:
        net: called as ``net(x, timesteps, text, condition_mask)``, with ``actions`` if there are
            any; predicts noise - clean.
        latents: clean normalised latents ``[B, C, T, H, W]``.
        text: embeddings ``[B, N, 1024]``, zeros beyond the caption.
        noise: the batch's randomness, from :func:`sample_noise` for each sample.
        actions: normalised actions of the complete clips ``[B, F - 1, D]``. They are never dropped,
            as there is no generation without them.
        dtype: what the network computes in; everything else is float32.
        first_frame: index of the first of these frames within the clip, if ranks share a clip.
        scale: factor of the loss.
        edm: weight noise levels by :func:`edm_weight`.
    """
    device = latents.device
    clean = latents.float()
    epsilon = noise.noise.to(device)
    sigma = noise.sigma.to(device)
    mask = condition_mask(noise.conditional.to(device), clean.shape, first_frame=first_frame)

    noisy = interpolate(clean, epsilon, sigma_to_time(sigma))
    is_conditional = mask[:, 0, :, 0, 0].bool()  # [B, T]
    level = torch.where(is_conditional, CONDITION_SIGMA, sigma.view(-1, 1))
    text = text * noise.keep_text.to(device).view(-1, 1, 1)
    given = {} if actions is None else {"actions": actions.to(dtype)}
    velocity = net(
        torch.where(mask.bool(), clean, noisy).to(dtype),
        sigma_to_time(level).to(dtype),
        text.to(dtype),
        mask.to(dtype),
        **given,
    )
    weight = edm_weight(sigma) if edm else None
    return velocity_loss(velocity, clean, epsilon, mask, scale=scale, weight=weight)
