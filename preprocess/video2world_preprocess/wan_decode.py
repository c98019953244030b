"""The Wan VAE's decoder, several latent frames at a time, with diffusers' modules as its weights.

diffusers decodes one latent frame a pass. What a pass needs of those before it is the last two
frames that each causal convolution saw, whatever the number of frames in a pass; so passes of
several frames give the same video, from larger and better filled kernels. On a GPU, norms and
activations are compiled into one kernel each, and a convolution pads by itself instead of copying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["decode_wan"]

PAST = 2  # frames before its own that a causal convolution of three sees


def decode_wan(model: Any, latents: Tensor, frames: int) -> Iterator[Tensor]:
    """Videos [B, 3, 1 or 4n, 8H, 8W] whose sequence is the decoded one, not clamped.

    Args:
        model: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        latents: [B, 16, T, H, W], not normalised.
        frames: latent frames a pass takes; the first one comes alone, as it is one frame.
    """
    x = model.post_quant_conv(latents)
    decoder = _Decoder(model.decoder)
    for part in [x[:, :, :1], *(x[:, :, 1:].split(frames, 2) if x.shape[2] > 1 else ())]:
        yield decoder(part)


def _norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | float, scale: float) -> Tensor:
    """Channels brought to unit length in float32, times ``scale`` and ``gamma``; then SiLU."""
    normalized = F.normalize(x.float(), dim=1).to(x.dtype)
    return F.silu(normalized * scale * gamma + bias)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_norm_silu, dynamic=True)


class _Decoder:
    """One pass after another over a video."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._past: dict[Any, Tensor] = {}  # what each causal convolution saw last
        self._first = True

    def __call__(self, x: Tensor) -> Tensor:
        decoder = self._decoder
        x = self._convolve(decoder.conv_in, x)
        middle = decoder.mid_block
        x = self._residual(middle.resnets[0], x)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(block, attention(x))
        for stage in decoder.up_blocks:
            for block in stage.resnets:
                x = self._residual(block, x)
            for upsampler in stage.upsamplers or ():
                x = self._upsample(upsampler, x)
        x = self._convolve(decoder.conv_out, self._activate(decoder.norm_out, x))
        self._first = False
        return x

    def _activate(self, norm: Any, x: Tensor) -> Tensor:
        function = _compiled() if x.is_cuda else _norm_silu
        return function(x, norm.gamma, norm.bias, norm.scale)

    def _convolve(self, layer: Any, x: Tensor) -> Tensor:
        if layer.kernel_size[0] == 1:
            result: Tensor = layer(x)
            return result
        past = self._past.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], PAST, *x.shape[3:])
        x = torch.cat([past, x], 2)
        self._past[layer] = x[:, :, -PAST:].clone()
        width, _, height = layer._padding[:3]
        return F.conv3d(x, layer.weight, layer.bias, layer.stride, (0, height, width))

    def _residual(self, block: Any, x: Tensor) -> Tensor:
        y = self._convolve(block.conv1, self._activate(block.norm1, x))
        y = self._convolve(block.conv2, self._activate(block.norm2, y))
        return y + block.conv_shortcut(x)

    def _upsample(self, layer: Any, x: Tensor) -> Tensor:
        if layer.mode == "upsample3d" and not self._first:  # the first frame stays one
            x = self._convolve(layer.time_conv, x)
            x = x.unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)
        batch, _, frames = x.shape[:3]
        images = x.transpose(1, 2).flatten(0, 1)
        images = F.interpolate(images, scale_factor=2.0, mode="nearest-exact")
        return layer.resample[1](images).unflatten(0, (batch, frames)).transpose(1, 2)
