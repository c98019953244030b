"""The Wan VAE, several latent frames at a time, with diffusers' modules as its weights.

diffusers encodes and decodes one latent frame a pass. What a pass needs of those before it is the
last two frames that each causal convolution saw, whatever the number of frames in a pass; so passes
of several frames give the same result, from larger and better filled kernels. On a GPU, norms and
activations are compiled into one kernel each, and a convolution pads by itself instead of copying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["decode_wan", "encode_wan"]

PAST = 2  # frames before its own that a causal convolution of three sees


def encode_wan(model: Any, video: Tensor, frames: int) -> Tensor:
    """The posterior's mean [B, 16, 1 + (T - 1) / 4, H / 8, W / 8], not normalised.

    Args:
        model: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        video: [B, 3, T, H, W], T = 1 + 4k.
        frames: pixel frames a pass takes, a multiple of 4; the first frame comes alone.
    """
    encoder = _Encoder(model.encoder)
    encoded = [encoder(part) for part in _parts(video, frames)]
    mean: Tensor = model.quant_conv(torch.cat(encoded, 2)).chunk(2, dim=1)[0]
    return mean


def decode_wan(model: Any, latents: Tensor, frames: int) -> Iterator[Tensor]:
    """Videos [B, 3, 1 or 4n, 8H, 8W] whose sequence is the decoded one, not clamped.

    Args:
        model: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        latents: [B, 16, T, H, W], not normalised.
        frames: latent frames a pass takes; the first one comes alone, as it is one frame.
    """
    decoder = _Decoder(model.decoder)
    for part in _parts(model.post_quant_conv(latents), frames):
        yield decoder(part)


def _parts(x: Tensor, frames: int) -> list[Tensor]:
    return [x[:, :, :1], *(x[:, :, 1:].split(frames, 2) if x.shape[2] > 1 else ())]


def _norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | float, scale: float) -> Tensor:
    """Channels brought to unit length in float32, times ``scale`` and ``gamma``; then SiLU."""
    normalized = F.normalize(x.float(), dim=1).to(x.dtype)
    return F.silu(normalized * scale * gamma + bias)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_norm_silu, dynamic=True)


class _Passes:
    """What encoder and decoder share: layers that go on where the pass before has ended."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: dict[Any, Tensor] = {}  # what each causal convolution saw last
        self._first = True

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

    def _middle(self, x: Tensor) -> Tensor:
        middle = self._model.mid_block
        x = self._residual(middle.resnets[0], x)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(block, attention(x))
        return x

    def _end(self, x: Tensor) -> Tensor:
        x = self._convolve(self._model.conv_out, self._activate(self._model.norm_out, x))
        self._first = False
        return x


class _Encoder(_Passes):
    """One pass after another over a video: the first of one frame, the others of 4n."""

    def __call__(self, x: Tensor) -> Tensor:
        x = self._convolve(self._model.conv_in, x)
        for layer in self._model.down_blocks:
            if hasattr(layer, "conv1"):
                x = self._residual(layer, x)
            elif hasattr(layer, "resample"):
                x = self._downsample(layer, x)
            else:
                x = layer(x)  # attention, frame by frame
        return self._end(self._middle(x))

    def _downsample(self, layer: Any, x: Tensor) -> Tensor:
        x = _by_frame(layer.resample, x)
        if layer.mode != "downsample3d":
            return x
        past = self._past.get(layer)
        self._past[layer] = x[:, :, -1:].clone()
        if past is None:  # the first frame stays one
            return x
        time = layer.time_conv
        return F.conv3d(torch.cat([past, x], 2), time.weight, time.bias, time.stride)


class _Decoder(_Passes):
    """One pass after another over latents: the first of one latent frame."""

    def __call__(self, x: Tensor) -> Tensor:
        x = self._middle(self._convolve(self._model.conv_in, x))
        for stage in self._model.up_blocks:
            for block in stage.resnets:
                x = self._residual(block, x)
            for upsampler in stage.upsamplers or ():
                x = self._upsample(upsampler, x)
        return self._end(x)

    def _upsample(self, layer: Any, x: Tensor) -> Tensor:
        if layer.mode == "upsample3d" and not self._first:  # the first frame stays one
            x = self._convolve(layer.time_conv, x)
            x = x.unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)
        return _by_frame(lambda images: layer.resample[1](_doubled(images)), x)


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="nearest-exact")


def _by_frame(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``work`` on [B T, C, H, W] in place of ``x``, which is [B, C, T, H, W]."""
    images = work(x.transpose(1, 2).flatten(0, 1))
    return images.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
