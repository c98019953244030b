"""What the network is trained towards: noise law, flow interpolation, conditioning, loss.

Upstream's laws (facts sheet 2.1, 2.2), as pure functions. All randomness of one training sample is
drawn by :func:`draw` from a generator that the caller seeds, so it depends neither on the number
of ranks nor on what was trained before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "CONDITION_SIGMA",
    "HIGH_SIGMA",
    "HIGH_SIGMA_RATIO",
    "LOSS_SCALE",
    "TEXT_DROPOUT",
    "Draw",
    "NoiseLaw",
    "collate_draws",
    "condition_mask",
    "draw",
    "edm_weight",
    "interpolate",
    "sample_sigma",
    "sigma_to_time",
    "training_loss",
    "velocity_loss",
]

HIGH_SIGMA_RATIO = 0.05  # share of samples that see almost pure noise
HIGH_SIGMA = (200.0, 100_000.0)
CONDITION_SIGMA = 1e-4  # noise level that the network is told for a conditioning frame
TEXT_DROPOUT = 0.2
LOSS_SCALE = 10.0

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseLaw:
    """How the randomness of a sample is distributed; the defaults are the guide's."""

    conditional_frames: tuple[int, int] = (1, 1)  # least and most latent frames that are given
    text_dropout: float = TEXT_DROPOUT
    high_sigma_ratio: float = HIGH_SIGMA_RATIO
    adjusted: bool = True  # noise levels grow with the root of the clip's latent frames


def sample_sigma(
    count: int, latent_frames: int, generator: torch.Generator, law: NoiseLaw | None = None
) -> Tensor:
    """Noise levels ``[count]`` (float32, one a sample, shared by its frames).

    exp(N(0, 1)) * sqrt(latent_frames); 5% are replaced by log-uniform on [200, 1e5].
    """
    law = law or NoiseLaw()
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    chosen = torch.rand(count, generator=generator, dtype=torch.float64) < law.high_sigma_ratio
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    low, high = (math.log(bound) for bound in HIGH_SIGMA)
    factor = math.sqrt(latent_frames) if law.adjusted else 1.0
    sigma = torch.where(chosen, torch.exp(low + share * (high - low)), normal.exp() * factor)
    return sigma.float()


def sigma_to_time(sigma: Tensor) -> Tensor:
    """Flow time t = sigma / (1 + sigma): 0 is data, 1 is noise."""
    return sigma / (1 + sigma)


def interpolate(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """(1 - t) * clean + t * noise, with ``time`` ``[B]`` and the others ``[B, C, T, H, W]``."""
    time = time.view(-1, 1, 1, 1, 1)
    return (1 - time) * clean + time * noise


def condition_mask(conditional: Tensor, shape: Sequence[int], *, first_frame: int = 0) -> Tensor:
    """1 on each sample's first ``conditional[b]`` latent frames: ``[B, 1, T, H, W]`` float32.

    ``first_frame`` is the number in the clip of the first of these ``T`` frames.
    """
    batch, _, frames, height, width = shape
    number = first_frame + torch.arange(frames, device=conditional.device)
    is_given = number < conditional.view(-1, 1)
    mask = is_given.float().view(batch, 1, frames, 1, 1)
    return mask.expand(batch, 1, frames, height, width)


def edm_weight(sigma: Tensor) -> Tensor:
    """What the guide's own commit weighs a noise level by, relative to the newest code.

    (sigma^2 + 1) / sigma^2 over (1 + sigma)^2 / sigma^2: between 1/2 (at sigma 1) and 1.
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
    """Mean over all elements of (v - (noise - clean))^2, times 10; conditioned elements are 0.

    The same number as upstream's mean of (x0 - x0_hat)^2 * (1 + sigma)^2 / sigma^2. Conditioned
    elements count in the denominator, as upstream's do. ``weight`` [B] multiplies each sample's.
    """
    error = (velocity.float() - (noise - clean)) * (1 - mask)
    squares = error.square()
    if weight is not None:
        squares = squares * weight.view(-1, 1, 1, 1, 1)
    return squares.mean() * scale


@dataclass(frozen=True)
class Draw:
    """The randomness of a batch."""

    sigma: Tensor  # [B] float32
    noise: Tensor  # [B, C, T, H, W] float32
    conditional: Tensor  # [B] int64: how many leading latent frames are given
    keep_text: Tensor  # [B] bool: False where the text is dropped


def draw(
    shape: Sequence[int],
    generator: torch.Generator,
    law: NoiseLaw | None = None,
) -> Draw:
    """The randomness of one sample whose latents have ``shape`` ``[C, T, H, W]``.

    It is drawn on the CPU, so that a GPU run and its repetition elsewhere see the same noise.
    """
    frames, law = shape[1], law or NoiseLaw()
    low, high = law.conditional_frames if frames > 1 else (0, 0)
    return Draw(
        sigma=sample_sigma(1, frames, generator, law),
        conditional=torch.randint(low, high + 1, (1,), generator=generator),
        keep_text=torch.rand(1, generator=generator) >= law.text_dropout,
        noise=torch.randn((1, *shape), generator=generator),
    )


def collate_draws(draws: Sequence[Draw]) -> Draw:
    """Several samples' draws as one batch's."""
    return Draw(
        sigma=torch.cat([one.sigma for one in draws]),
        noise=torch.cat([one.noise for one in draws]),
        conditional=torch.cat([one.conditional for one in draws]),
        keep_text=torch.cat([one.keep_text for one in draws]),
    )


def training_loss(
    net: Network,
    latents: Tensor,
    text: Tensor,
    randomness: Draw,
    *,
    dtype: torch.dtype = torch.float32,
    first_frame: int = 0,
    scale: float = LOSS_SCALE,
    edm: bool = False,
) -> Tensor:
    """The scalar loss (float32) of one batch.

    Args:
        net: called as ``net(x, timesteps, text, condition_mask)``; predicts noise - clean.
        latents: clean normalised latents ``[B, C, T, H, W]``.
        text: embeddings ``[B, N, 1024]``, zeros beyond the caption.
        randomness: what :func:`draw` gave for each sample.
        dtype: what the network computes in; everything around it is float32.
        first_frame: where these latents lie in their clip, of which another rank has the rest.
        scale: factor of the loss.
        edm: weigh noise levels by :func:`edm_weight`.
    """
    device = latents.device
    clean = latents.float()
    noise = randomness.noise.to(device)
    sigma = randomness.sigma.to(device)
    mask = condition_mask(randomness.conditional.to(device), clean.shape, first_frame=first_frame)

    noisy = interpolate(clean, noise, sigma_to_time(sigma))
    given = mask[:, 0, :, 0, 0].bool()  # [B, T]
    level = torch.where(given, CONDITION_SIGMA, sigma.view(-1, 1))
    text = text * randomness.keep_text.to(device).view(-1, 1, 1)
    velocity = net(
        torch.where(mask.bool(), clean, noisy).to(dtype),
        sigma_to_time(level).to(dtype),
        text.to(dtype),
        mask.to(dtype),
    )
    weight = edm_weight(sigma) if edm else None
    return velocity_loss(velocity, clean, noise, mask, scale=scale, weight=weight)
