"""Provide a VAE without learned weights, for demos and tests that cannot download the Wan VAE.

It has the properties that the rest of the system relies on: 16 channels per 8x8 pixels and 4
frames, a first latent frame that depends only on frame 0, later latent frames that depend only on
their own four frames, and a decoder that reconstructs the video. It is an orthogonal projection: an
opponent transform of colors, a lapped DCT in space (its basis functions extend into half of the
neighboring blocks, so that dropped coefficients blur the picture instead of showing blocks), and a
DCT of four frames in time. Of the coefficients, the 16 with most of a video's energy are kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from video2world_common.files import read_json, write_json

__all__ = ["TransformVAE", "lapped_dct"]

BLOCK = 8  # pixels per latent cell, in height and width
FRAMES = 4  # pixel frames per latent frame, except the first
CHANNELS = 16

# The coefficient in each channel: (color plane, time frequency, vertical, horizontal frequency).
# Plane 0 is gray. In channels with the same coefficient in both tables, a still scene has the same
# latent in every frame, as copying is the first thing that a video model learns.
_Coefficient = tuple[int, int, int, int]
_SHARED: tuple[_Coefficient, ...] = (
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (2, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 0),
    (0, 0, 1, 1),
    (1, 0, 0, 1),
    (1, 0, 1, 0),
    (2, 0, 0, 1),
    (2, 0, 1, 0),
    (0, 0, 0, 2),
    (0, 0, 2, 0),
)
_FIRST = (*_SHARED, (0, 0, 1, 2), (0, 0, 2, 1), (1, 0, 1, 1), (2, 0, 1, 1))
_LATER = (*_SHARED, (0, 1, 0, 0), (0, 1, 0, 1), (0, 1, 1, 0), (1, 1, 0, 0))
# Standard deviations measured on the demo's videos, raised to 3/4: near unit variance, with a
# little more weight in the training loss for the most visible coefficients.
_STD = (1.75, 1.75, 1.6, 0.67, 0.65, 0.41, 0.5, 0.52, 0.48, 0.48, 0.32, 0.28, 0.3, 0.3, 0.28, 0.3)


def _dct(size: int, kind: int = 2) -> Tensor:
    """Return the orthonormal DCT matrix of type 2 or 4, [frequency, sample], float64."""
    sample = torch.arange(size, dtype=torch.float64) + 0.5
    frequency = torch.arange(size, dtype=torch.float64) + (0.5 if kind == 4 else 0.0)
    matrix = torch.cos(math.pi / size * frequency[:, None] * sample) * math.sqrt(2 / size)
    if kind == 2:
        matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=16)
def lapped_dct(length: int) -> Tensor:
    """Return the orthonormal lapped DCT of ``length`` samples: [length / 8, 8, length], float64.

    A block DCT after an orthogonal filter across every block border (Tran, Liang and Tu, "Lapped
    transform via time-domain pre- and post-filtering", 2003, with Malvar's fast LOT rotation).
    """
    half = BLOCK // 2
    identity = torch.eye(half, dtype=torch.float64)
    flip = identity.flip(0)
    butterfly = torch.cat([torch.cat([identity, flip], 1), torch.cat([flip, -identity], 1)])
    rotation = flip @ _dct(half).T @ _dct(half, kind=4) @ flip
    border = butterfly @ torch.block_diag(identity, rotation) @ butterfly / 2
    inner = [border] * (length // BLOCK - 1)
    prefilter = torch.block_diag(identity, *inner, identity)
    blocks = torch.block_diag(*[_dct(BLOCK)] * (length // BLOCK))
    lapped: Tensor = blocks @ prefilter
    return lapped.reshape(length // BLOCK, BLOCK, length)


@lru_cache(maxsize=16)
def _kernels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the color [3, 3], vertical [h, 8, H] and horizontal [w, 8, W] transforms, float32."""
    matrices = _dct(3), lapped_dct(height), lapped_dct(width)
    colour, vertical, horizontal = (matrix.float().to(device) for matrix in matrices)
    return colour, vertical, horizontal


class _Latents:
    """The result of ``encode``: a deterministic distribution with diffusers' interface."""

    def __init__(self, latents: Tensor) -> None:
        self.latent_dist = self
        self._latents = latents

    def mode(self) -> Tensor:
        return self._latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._latents


class TransformVAE(nn.Module):
    """The VAE, with the part of ``AutoencoderKLWan``'s interface that this project uses.

    ``config`` has ``z_dim``, ``latents_mean`` and ``latents_std`` (16 floats each). It has no
    parameters, computes in float32 and returns tensors in the input's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            z_dim=CHANNELS,
            latents_mean=[0.0] * CHANNELS,
            latents_std=list(_STD),
            scale_factor_spatial=BLOCK,
            scale_factor_temporal=FRAMES,
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> TransformVAE:
        """Load the VAE whose ``config.json`` is in ``folder``.

        Raises:
            ValueError: the file is missing or is of another class.
        """
        config = read_json(Path(folder) / "config.json")
        if not isinstance(config, dict) or config.get("_class_name") != cls.__name__:
            raise ValueError(f"{folder}/config.json does not describe a {cls.__name__}")
        return cls()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``config.json`` into ``folder``; there is nothing else to save."""
        write_json(Path(folder) / "config.json", {"_class_name": type(self).__name__})

    def encode(self, x: Tensor) -> _Latents:
        """Return the latents [B, 16, 1 + (T - 1) / 4, H / 8, W / 8] of video ``x`` [B, 3, T, H, W].

        Raises:
            ValueError: T is not 1 + 4k, or H or W is not a multiple of 8.
        """
        frames, height, width = x.shape[2:]
        if (frames - 1) % FRAMES or height % BLOCK or width % BLOCK:
            raise ValueError(f"cannot encode {frames} frames of {height}x{width}")
        colour, vertical, horizontal = _kernels(height, width, x.device)
        planes = torch.einsum("bctyx,pc->btpyx", x.float(), colour)
        spectrum = torch.einsum("btpyx,avy->btpavx", planes, vertical)
        spectrum = torch.einsum("btpavx,dux->btpvuad", spectrum, horizontal)
        first = torch.stack([spectrum[:, 0, p, v, u] for p, _, v, u in _FIRST], 1)
        groups = spectrum[:, 1:].unflatten(1, ((frames - 1) // FRAMES, FRAMES))
        # divided by 2, so that all latent frames of a still scene are equal
        time = _dct(FRAMES).float().to(x.device) / 2
        later = torch.stack(
            [
                torch.einsum("bgfad,f->bgad", groups[:, :, :, p, v, u], time[t])
                for p, t, v, u in _LATER
            ],
            1,
        )
        return _Latents(torch.cat([first[:, :, None], later], 2).to(x.dtype))

    def decode(self, z: Tensor) -> SimpleNamespace:
        """Return the video [B, 3, T, H, W] of latents ``z`` [B, 16, t, h, w] as ``.sample``, not
        clamped.
        """
        count, _, steps, rows, columns = z.shape
        colour, vertical, horizontal = _kernels(rows * BLOCK, columns * BLOCK, z.device)
        latents = z.float()
        highest = 1 + max(max(v, u) for _, _, v, u in (*_FIRST, *_LATER))
        shape = (count, 1, 3, highest, highest, rows, columns)
        first = latents.new_zeros(shape)
        for channel, (p, _, v, u) in enumerate(_FIRST):
            first[:, 0, p, v, u] = latents[:, channel, 0]
        groups = latents.new_zeros(count, steps - 1, FRAMES, *shape[2:])
        time = _dct(FRAMES).float().to(z.device) * 2
        for channel, (p, t, v, u) in enumerate(_LATER):
            value = torch.einsum("bgad,f->bgfad", latents[:, channel, 1:], time[t])
            groups[:, :, :, p, v, u] += value
        spectrum = torch.cat([first, groups.flatten(1, 2)], 1)
        planes = torch.einsum("btpvuad,dux->btpvax", spectrum, horizontal[:, :highest])
        planes = torch.einsum("btpvax,avy->btpyx", planes, vertical[:, :highest])
        return SimpleNamespace(sample=torch.einsum("btpyx,pc->bctyx", planes, colour).to(z.dtype))
