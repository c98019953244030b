"""Compute one sample: from conditioning frames, text embeddings and a seed to video frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from video2world_preprocess.vae.vae import VideoVAE
from video2world_trainer.generation.solver import initial_noise, karras_sigmas, solve
from video2world_trainer.generation.step_cache import with_extrapolation
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.training.loss import CONDITION_SIGMA, condition_mask, sigma_to_time

__all__ = [
    "SamplingSettings",
    "Velocity",
    "conditioning_mask",
    "decode_video",
    "denoise",
    "encode_condition",
    "network_velocity",
    "to_model",
]

# The network's input [1, 16, T, h, w] and each latent frame's time [1, T] -> the velocities of all
# branches of guidance [B, 16, T, h, w]; all in float32
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplingSettings:
    """Seed, number of solver steps, and guidance of a sample.

    ``steps`` take ``steps`` + 1 evaluations of the network; ``approximate`` replaces most of them
    (:mod:`video2world_trainer.generation.step_cache`). Guidance 0 evaluates the prompt alone.
    ``sigma_conditional`` is the noise level that the network is given for conditioning frames.
    """

    seed: int = 0
    steps: int = 35
    guidance: float = 7.0
    sigma_conditional: float = CONDITION_SIGMA
    approximate: bool = False


def to_model(frames: np.ndarray) -> Tensor:
    """Convert uint8 [T, H, W, 3] to float32 [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """Convert [1, 3, T, H, W] in about [-1, 1] to uint8 [T, H, W, 3] on the same device."""
    pixels = (video[0].float().clamp(-1, 1) + 1) * 127.5
    return (pixels + 0.5).byte().permute(1, 2, 3, 0).contiguous()


def encode_condition(vae: VideoVAE, frames: np.ndarray, clip_frames: int) -> Tensor:
    """Encode the conditioning frames uint8 [1 + 4k, H, W, 3] of a clip.

    The VAE is causal, so their latents do not depend on the frames that follow.

    Returns:
        The clip's latents [1, 16, T, h, w] in float32, zero after the conditioning frames.
    """
    latents = vae.encode_latents(to_model(frames)).float()
    missing = 1 + (clip_frames - 1) // vae.temporal_factor - latents.shape[2]
    return torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, missing))


@torch.no_grad()
def network_velocity(
    net: VideoDiT,
    text: Tensor,
    mask: Tensor,
    *,
    actions: Tensor | None = None,
    batch_branches: bool = True,
) -> Velocity:
    """Return a function that evaluates the network under each embedding of ``text``.

    Args:
        net: the network, on the device that it runs on.
        text: one embedding for each branch of guidance, [B, N, 1024].
        mask: 1 on conditioning frames, [1, 1, T, h, w].
        actions: normalised actions of the complete clip, [1, F - 1, D], which all branches follow;
            None for a network without actions.
        batch_branches: run the branches as one batch, which computes everything before the first
            cross-attention once. False runs them one after another, which takes less memory.
    """
    dtype = next(net.parameters()).dtype
    captions = net.caption_keys_values(text.to(mask.device, dtype))
    mask = mask.to(dtype)
    followed = None if actions is None else actions.to(mask.device, dtype)
    batches = [captions]
    if not batch_branches:
        batches = [
            [(key[i : i + 1], value[i : i + 1]) for key, value in captions]
            for i in range(len(text))
        ]

    @torch.no_grad()
    def velocity(x: Tensor, times: Tensor) -> Tensor:
        x, times = x.to(dtype), times.to(dtype)
        return torch.cat([net(x, times, one, mask, actions=followed).float() for one in batches])

    return velocity


@torch.no_grad()
def denoise(
    velocity: Velocity,
    given: Tensor,
    given_frames: int,
    settings: SamplingSettings,
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Generate a sample's latents [1, 16, T, h, w] in float32.

    As in upstream (``cosmos_predict2/pipelines/video2world.py``), two branches are combined as
    cond + guidance * (cond - uncond), and conditioning frames are replaced by the given ones at
    every noise level. Does not synchronize with the device.

    Args:
        velocity: of the prompt, or of the prompt and the negative prompt.
        given: clean latents [1, 16, T, h, w]; only the first ``given_frames`` frames are read.
        given_frames: number of conditioning frames, in latent frames.
        settings: seed, steps, guidance.
        after_step: called after each of the ``settings.steps`` + 1 evaluations.
    """
    mask = conditioning_mask(given, given_frames)
    keep, frame_is_given = mask.bool(), mask[:, 0, :, 0, 0].bool()
    known = float(sigma_to_time(torch.tensor(settings.sigma_conditional)))
    sigmas = karras_sigmas(settings.steps)
    if settings.approximate:
        velocity = with_extrapolation(velocity, len(sigmas))

    def estimate_clean(x: Tensor, sigma: float) -> Tensor:
        time = sigma / (1 + sigma)
        times = torch.where(frame_is_given, known, time)
        flow = velocity(torch.where(keep, given, (1 - time) * x), times)
        clean = torch.where(keep, given, (1 - time) * x - time * flow)
        if len(clean) == 1:
            return clean
        return clean[:1] + settings.guidance * (clean[:1] - clean[1:])

    noise = initial_noise(given.shape, settings.seed).to(given.device)
    return solve(estimate_clean, noise, sigmas, after_step=after_step)


def conditioning_mask(latents: Tensor, frames: int) -> Tensor:
    """Return 1 on the first ``frames`` latent frames: [1, 1, T, h, w] in float32."""
    return condition_mask(torch.tensor([frames], device=latents.device), latents.shape)


def decode_video(vae: VideoVAE, latents: Tensor) -> Iterator[np.ndarray]:
    """Yield the video in parts along time, uint8 [t, H, W, 3].

    The device decodes the next part while the caller processes one.
    """
    waiting: tuple[Tensor, torch.cuda.Event | None] | None = None
    for part in vae.decode_parts(latents):
        started = _start_copy(to_frames(part))
        if waiting is not None:
            yield _finish_copy(*waiting)
        waiting = started
    if waiting is not None:
        yield _finish_copy(*waiting)


def _start_copy(frames: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying ``frames`` to the host; the event, on a GPU, marks the end."""
    if not frames.is_cuda:
        return frames, None
    host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
    host.copy_(frames, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _finish_copy(host: Tensor, event: torch.cuda.Event | None) -> np.ndarray:
    if event is not None:
        event.synchronize()
    return host.numpy()
