"""One sample: conditioning frames, a text embedding and a seed to a generated video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from video2world_preprocess.vae.vae import VideoVAE
from video2world_trainer.generation.solver import initial_noise, karras_sigmas, sample
from video2world_trainer.generation.step_cache import extrapolated
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.training.loss import CONDITION_SIGMA, condition_mask, sigma_to_time

__all__ = ["Settings", "Velocity", "decoded", "denoised", "encode_given", "network_velocity"]

# The network's input [1, 16, T, h, w] in float32 and each frame's time [1, T] to the velocities of
# all branches [B, 16, T, h, w] in float32
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """How a sample is drawn. ``steps`` + 1 evaluations; guidance 0 evaluates the prompt alone.

    ``approximate`` lets :mod:`video2world_trainer.generation.step_cache` stand in for most
    evaluations.
    """

    seed: int = 0
    steps: int = 35
    guidance: float = 7.0
    sigma_conditional: float = CONDITION_SIGMA
    approximate: bool = False


def to_model(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] to float32 [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """[1, 3, T, H, W] in about [-1, 1] to uint8 [T, H, W, 3] on the same device."""
    pixels = (video[0].float().clamp(-1, 1) + 1) * 127.5
    return (pixels + 0.5).byte().permute(1, 2, 3, 0).contiguous()


def encode_given(vae: VideoVAE, frames: np.ndarray, clip_frames: int) -> Tensor:
    """Latents [1, 16, T, h, w] in float32 of a clip that begins with ``frames``, zeros beyond.

    ``frames`` is uint8 [1 + 4k, H, W, 3]; the VAE is causal, so what follows them is not needed.
    """
    given = vae.encode_latents(to_model(frames)).float()
    longer = 1 + (clip_frames - 1) // vae.temporal_factor - given.shape[2]
    return torch.nn.functional.pad(given, (0, 0, 0, 0, 0, longer))


@torch.no_grad()
def network_velocity(
    net: VideoDiT, text: Tensor, mask: Tensor, *, together: bool = True, first_frame: int = 0
) -> Velocity:
    """The network's velocities under every caption of ``text`` [B, N, 1024].

    Args:
        net: the network, on the device it is to run on.
        text: embeddings; each is a branch.
        mask: 1 on the given cells of the clip, [1, 1, T, h, w].
        together: run the branches as one batch, which shares what comes before the first caption
            is met; one after another takes less memory.
    """
    dtype = next(net.parameters()).dtype
    captions = net.caption(text.to(mask.device, dtype))
    mask = mask.to(dtype)
    batches = [captions]
    if not together:
        batches = [
            [(key[i : i + 1], value[i : i + 1]) for key, value in captions]
            for i in range(len(text))
        ]

    @torch.no_grad()
    def velocity(x: Tensor, times: Tensor) -> Tensor:
        x, times = x.to(dtype), times.to(dtype)
        return torch.cat([net(x, times, one, mask).float() for one in batches])

    return velocity


@torch.no_grad()
def denoised(
    velocity: Velocity,
    given: Tensor,
    given_frames: int,
    settings: Settings,
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """The sample's latents [1, 16, T, h, w].

    Two branches are combined as cond + guidance * (cond - uncond), conditioned frames are as given
    at every level (facts sheet 5.3). Nothing here waits for the device.

    Args:
        velocity: under one caption, or under the prompt and what guidance leads away from.
        given: the clean latents, of which only the first ``given_frames`` matter.
        given_frames: how many latent frames are given.
        settings: seed, steps, guidance.
        after_step: called after each of the ``settings.steps`` + 1 evaluations.
    """
    mask = given_mask(given, given_frames)
    keep, frame_is_given = mask.bool(), mask[:, 0, :, 0, 0].bool()
    known = float(sigma_to_time(torch.tensor(settings.sigma_conditional)))
    sigmas = karras_sigmas(settings.steps)
    if settings.approximate:
        velocity = extrapolated(velocity, len(sigmas))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        time = sigma / (1 + sigma)
        times = torch.where(frame_is_given, known, time)
        found = velocity(torch.where(keep, given, (1 - time) * x), times)
        clean = torch.where(keep, given, (1 - time) * x - time * found)
        if len(clean) == 1:
            return clean
        return clean[:1] + settings.guidance * (clean[:1] - clean[1:])

    noise = initial_noise(given.shape, settings.seed).to(given.device)
    return sample(denoise, noise, sigmas, after_step=after_step)


def given_mask(given: Tensor, frames: int) -> Tensor:
    """1 on the first ``frames`` latent frames: [1, 1, T, h, w] float32."""
    return condition_mask(torch.tensor([frames], device=given.device), given.shape)


def decoded(vae: VideoVAE, latents: Tensor) -> Iterator[np.ndarray]:
    """The video in parts along time, uint8 [t, H, W, 3].

    While the caller works on one part, the device decodes the next.
    """
    waiting: tuple[Tensor, torch.cuda.Event | None] | None = None
    for part in vae.decode_parts(latents):
        leaving = _leaving(to_frames(part))
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = leaving
    if waiting is not None:
        yield _arrived(*waiting)


def _leaving(frames: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start moving ``frames`` to the host."""
    if not frames.is_cuda:
        return frames, None
    host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
    host.copy_(frames, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _arrived(host: Tensor, event: torch.cuda.Event | None) -> np.ndarray:
    if event is not None:
        event.synchronize()
    return host.numpy()
