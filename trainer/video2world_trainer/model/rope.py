"""Rotary position embedding (RoPE) over time, height and width, with upstream's buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Rotation", "VideoRope", "apply_rope", "rotation_of"]

Rotation = tuple[Tensor, Tensor]  # cosines and sines [1, L, 1, head_dim / 2], float32


class VideoRope(nn.Module):
    """Compute the rotation angles of a [T, H, W] grid of tokens.

    A head's channels are split between time, height and width. Positions are integers; the frame
    rate has no influence. The three buffers have upstream's names. Upstream
    (``VideoRopePosition3DEmb`` in ``cosmos_predict2/models/text2image_dit.py``) computes the
    frequencies in the buffers' dtype, bfloat16, and the published weights were trained with the
    resulting angles.

    Args:
        head_dim: channels of one attention head.
        longest: number of positions along the longest axis.
        ratios: factors (time, height, width) on the base of the frequencies.
        exact: compute in float32 throughout, as diffusers does. False rounds to bfloat16 like
            upstream, on any device.
    """

    seq: Tensor
    dim_spatial_range: Tensor
    dim_temporal_range: Tensor

    def __init__(
        self,
        head_dim: int,
        longest: int,
        *,
        ratios: tuple[float, float, float],
        exact: bool = False,
    ) -> None:
        super().__init__()
        spatial = head_dim // 6 * 2
        temporal = head_dim - 2 * spatial
        self.exact = exact
        self.thetas = tuple(
            10_000.0 * ratio ** (dim / (dim - 2))
            for ratio, dim in zip(ratios, (temporal, spatial, spatial), strict=True)
        )
        self.register_buffer("seq", torch.arange(longest).float())
        for name, dim in (("dim_spatial_range", spatial), ("dim_temporal_range", temporal)):
            self.register_buffer(name, torch.arange(0, dim, 2).float()[: dim // 2] / dim)

    def forward(self, frames: int, height: int, width: int) -> Tensor:
        """Return angles [T * H * W, head_dim / 2] in float32, with time as the slowest axis."""
        dtype = torch.float32 if self.exact else torch.bfloat16
        position = self.seq.to(dtype)
        axes = []
        ranges = (self.dim_temporal_range, self.dim_spatial_range, self.dim_spatial_range)
        for theta, count, share in zip(self.thetas, (frames, height, width), ranges, strict=True):
            frequency = 1.0 / (theta ** share.to(dtype))
            axes.append(torch.outer(position[:count], frequency).float())
        t, h, w = axes
        grid = (frames, height, width)
        return torch.cat(
            [
                t[:, None, None].expand(*grid, -1),
                h[None, :, None].expand(*grid, -1),
                w[None, None].expand(*grid, -1),
            ],
            dim=-1,
        ).flatten(0, 2)


def rotation_of(angles: Tensor) -> Rotation:
    """Return cosines and sines of angles [L, head_dim / 2], which all layers share."""
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


def apply_rope(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of ``x`` [B, L, heads, head_dim].

    Computes in float32 and returns the dtype of ``x``.
    """
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
