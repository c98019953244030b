"""One sample: conditioning frames, a text embedding and a seed to a generated video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from video2world_preprocess.vae import VideoVAE

from .model import VideoDiT
from .objective import CONDITION_SIGMA, condition_mask, sigma_to_time
from .sampler import initial_noise, karras_sigmas, sample

__all__ = ["Settings", "generate"]


@dataclass(frozen=True)
class Settings:
    """How a sample is drawn. ``steps`` + 1 evaluations; guidance 0 evaluates the prompt alone."""

    seed: int = 0
    steps: int = 35
    guidance: float = 7.0
    sigma_conditional: float = CONDITION_SIGMA


def to_model(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] to float32 [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """[1, 3, T, H, W] in about [-1, 1] to uint8 [T, H, W, 3]."""
    pixels = (video[0].float().cpu().clamp(-1, 1) + 1) * 127.5
    return (pixels + 0.5).byte().permute(1, 2, 3, 0).contiguous().numpy()


def _denoiser(
    net: VideoDiT, given: Tensor, mask: Tensor, text: Tensor, settings: Settings
) -> Callable[[Tensor, float], Tensor]:
    """The clean estimate at a noise level, conditioned frames always as given.

    ``text`` is [1, N, 1024], or [2, N, 1024] with the unconditional embedding second: then the
    estimates are combined as cond + guidance * (cond - uncond) (facts sheet 5.3).
    """
    branches = len(text)
    dtype = next(net.parameters()).dtype
    keep = mask.bool()
    frame_is_given = mask[:, 0, :, 0, 0].bool()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        time = sigma / (1 + sigma)
        known = float(sigma_to_time(torch.tensor(settings.sigma_conditional)))
        times = torch.where(frame_is_given, known, time)
        network_input = torch.where(keep, given, (1 - time) * x)
        velocity = net(
            network_input.to(dtype).expand(branches, -1, -1, -1, -1),
            times.to(dtype).expand(branches, -1),
            text.to(dtype),
            mask.to(dtype).expand(branches, -1, -1, -1, -1),
        ).float()
        clean = torch.where(keep, given, (1 - time) * x - time * velocity)
        if branches == 1:
            return clean
        return clean[:1] + settings.guidance * (clean[:1] - clean[1:])

    return denoise


@torch.no_grad()
def generate(
    net: VideoDiT,
    vae: VideoVAE,
    frames: np.ndarray,
    conditional_frames: int,
    text: Tensor,
    settings: Settings,
    *,
    after_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Generate a clip as long as ``frames``, uint8 [T, H, W, 3].

    Args:
        net: the network, on the device it is to run on.
        vae: the codec its latents were made with.
        frames: uint8 [T, H, W, 3]; only the first ``conditional_frames`` matter.
        conditional_frames: pixel frames given, 1 + 4k.
        text: embedding(s) as for the denoiser, [1 or 2, N, 1024]; two where guidance is wanted.
        settings: seed, steps, guidance.
        after_step: called after each of the ``settings.steps`` + 1 evaluations.
    """
    device = next(net.parameters()).device
    given = vae.encode_latents(to_model(frames)).float().to(device)
    count = torch.tensor([1 + (conditional_frames - 1) // 4])
    mask = condition_mask(count, given.shape).to(device)
    noise = initial_noise(given.shape, settings.seed).to(device)
    denoise = _denoiser(net, given, mask, text.to(device), settings)
    latents = sample(denoise, noise, karras_sigmas(settings.steps), after_step=after_step)
    return to_frames(vae.decode_latents(latents))
