"""Compute the Wan VAE's norm and SiLU in one Triton kernel.

With PyTorch's operations they are six passes over memory, a third of the VAE's time at 704x1280.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["norm_silu"]

ELEMENTS = 4096  # per program


@triton.jit  # type: ignore[untyped-decorator]  # Triton ships no types
def _norm_silu(  # type: ignore[no-untyped-def]  # its arguments are pointers and constants
    x,
    out,
    gamma,
    bias,
    rows,
    x_batch,
    out_batch,
    scale,
    channels: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
    has_bias: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, padded)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    place = row.to(tl.int64)[:, None] * channels + channel[None, :]
    batch = tl.program_id(1).to(tl.int64)
    value = tl.load(x + batch * x_batch + place, mask=mask, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)
    weight = tl.load(gamma + channel, mask=channel < channels, other=0.0).to(tl.float32) * scale
    value = value / length[:, None] * weight[None, :]
    if has_bias:
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
        value += shift[None, :]
    value = value / (1.0 + tl.exp(-value))
    tl.store(out + batch * out_batch + place, value.to(out.dtype.element_ty), mask=mask)


def norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> None:
    """Write ``silu(x / |x| * scale * gamma + bias)`` to ``out``, ``|x|`` being over channels.

    ``x`` and ``out`` are [B, C, T, H, W] on a GPU, each video contiguous in memory as [T, H, W, C];
    ``gamma`` and ``bias`` have C values. Everything is computed in float32.
    """
    batch, channels, frames, height, width = x.shape
    rows = frames * height * width
    padded = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS // padded)
    with torch.cuda.device_of(x):
        _norm_silu[(triton.cdiv(rows, block), batch)](
            x,
            out,
            gamma,
            gamma if bias is None else bias,
            rows,
            x.stride(0),
            out.stride(0),
            scale,
            channels=channels,
            padded=padded,
            block=block,
            has_bias=bias is not None,
        )
