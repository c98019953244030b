"""Run diffusers' Wan 2.1 VAE on several latent frames per pass.

diffusers encodes and decodes one latent frame per pass. A pass depends on earlier ones only through
the last two input frames of each causal convolution, regardless of the number of frames per pass.
Passes of several frames therefore have the same result, with larger and better utilized kernels.
All tensors are in channels-last memory format, which the kernels for bfloat16 require: converting
to it took half the time. An activation is written directly behind the cached frames of the next
convolution's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video2world_preprocess.vae.triton_cache import can_compile

__all__ = ["decode_wan", "encode_wan"]

PAST = 2  # preceding frames that a causal convolution with a kernel of three frames uses


def encode_wan(model: Any, video: Tensor, frames: int) -> Tensor:
    """Return the posterior's mean [B, 16, 1 + (T - 1) / 4, H / 8, W / 8], not normalized.

    Args:
        model: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        video: [B, 3, T, H, W], T = 1 + 4k.
        frames: pixel frames per pass, a multiple of 4; the first pass has one frame.
    """
    encoder = _Encoder(model.encoder)
    encoded = [encoder(part) for part in _parts(video, frames)]
    mean: Tensor = model.quant_conv(torch.cat(encoded, 2)).chunk(2, dim=1)[0]
    return mean


def decode_wan(model: Any, latents: Tensor, frames: int) -> Iterator[Tensor]:
    """Yield consecutive parts [B, 3, 1 or 4n, 8H, 8W] of the decoded video, not clamped.

    Args:
        model: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        latents: [B, 16, T, H, W], not normalized.
        frames: latent frames per pass; the first pass has one, which is one pixel frame.
    """
    decoder = _Decoder(model.decoder)
    for part in _parts(model.post_quant_conv(latents), frames):
        yield decoder(part)


def _parts(x: Tensor, frames: int) -> list[Tensor]:
    return [x[:, :, :1], *(x[:, :, 1:].split(frames, 2) if x.shape[2] > 1 else ())]


def _norm_silu(x: Tensor, norm: Any, out: Tensor) -> None:
    """Write SiLU of the normalized, scaled and shifted ``x`` to ``out``."""
    if x.is_cuda and can_compile() and _is_dense(x) and _is_dense(out):
        from video2world_preprocess.vae.norm_silu_kernel import norm_silu

        bias = norm.bias if isinstance(norm.bias, Tensor) else None
        return norm_silu(x, norm.gamma, bias, norm.scale, out)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    scaled = torch.empty_like(x)
    torch.div(x, length.clamp_min_(1e-12), out=scaled)
    scaled.mul_(norm.gamma * norm.scale)
    if isinstance(norm.bias, Tensor):
        scaled.add_(norm.bias)
    torch.ops.aten.silu.out(scaled, out=out)


class _Passes:
    """Layers shared by encoder and decoder, which continue where the previous pass ended."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: dict[Any, Tensor] = {}  # the last input frames of each causal convolution
        self._first = True

    def _start(self, x: Tensor) -> Tensor:
        return self._convolve(self._model.conv_in, x, lambda out: out.copy_(x))

    def _end(self, x: Tensor) -> Tensor:
        x = self._activated(self._model.norm_out, self._model.conv_out, x)
        self._first = False
        return x

    def _middle(self, x: Tensor) -> Tensor:
        middle = self._model.mid_block
        x = self._residual(middle.resnets[0], x)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(block, _channels_last(attention(x)))
        return x

    def _residual(self, block: Any, x: Tensor) -> Tensor:
        y = self._activated(block.norm1, block.conv1, x)
        y = self._activated(block.norm2, block.conv2, y)
        other = block.conv_shortcut
        if not isinstance(other, nn.Identity):
            x = F.conv3d(x, other.weight, other.bias)
        return y.add_(x)

    def _activated(self, norm: Any, layer: Any, x: Tensor) -> Tensor:
        """Apply norm, SiLU and causal convolution."""
        return self._convolve(layer, x, lambda out: _norm_silu(x, norm, out))

    def _convolve(self, layer: Any, x: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
        """Apply a causal convolution to the tensor that ``write`` fills, shaped like ``x``."""
        batch, channels, frames, height, width = x.shape
        shape = (batch, channels, PAST + frames, height, width)
        padded = torch.empty(
            shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
        )
        past = self._past.get(layer)
        if past is None:
            padded[:, :, :PAST].zero_()
        else:
            padded[:, :, :PAST].copy_(past)
        write(padded[:, :, PAST:])
        self._past[layer] = _clone(padded[:, :, -PAST:])
        across, _, down = layer._padding[:3]
        return F.conv3d(padded, layer.weight, layer.bias, layer.stride, (0, down, across))


class _Encoder(_Passes):
    """Encodes a video in consecutive passes: the first of one frame, the others of 4n."""

    def __call__(self, x: Tensor) -> Tensor:
        x = self._start(x)
        for layer in self._model.down_blocks:
            if hasattr(layer, "conv1"):
                x = self._residual(layer, x)
            elif hasattr(layer, "resample"):
                x = self._downsample(layer, x)
            else:
                x = _channels_last(layer(x))  # attention, frame by frame
        return self._end(self._middle(x))

    def _downsample(self, layer: Any, x: Tensor) -> Tensor:
        x = _by_frame(layer.resample, x)
        if layer.mode != "downsample3d":
            return x
        past = self._past.get(layer)
        self._past[layer] = _clone(x[:, :, -1:])
        if past is None:  # the first frame is not downsampled in time
            return x
        time = layer.time_conv
        return F.conv3d(torch.cat([past, x], 2), time.weight, time.bias, time.stride)


class _Decoder(_Passes):
    """Decodes latents in consecutive passes, the first of one latent frame."""

    def __call__(self, x: Tensor) -> Tensor:
        x = self._middle(self._start(x))
        for stage in self._model.up_blocks:
            for block in stage.resnets:
                x = self._residual(block, x)
            for upsampler in stage.upsamplers or ():
                x = self._upsample(upsampler, x)
        return self._end(x)

    def _upsample(self, layer: Any, x: Tensor) -> Tensor:
        if layer.mode == "upsample3d" and not self._first:  # the first frame is not doubled
            twice = self._convolve(layer.time_conv, x, lambda out: out.copy_(x))
            frames = twice.permute(0, 2, 3, 4, 1).unflatten(-1, (2, -1))  # B T H W 2 C
            x = frames.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)
        return _by_frame(lambda images: layer.resample[1](_doubled(images)), x)


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="nearest-exact")


def _by_frame(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``work``, a function of images [B T, C, H, W], to ``x`` [B, C, T, H, W]."""
    images = work(x.transpose(1, 2).flatten(0, 1))
    frames: Tensor = images.unflatten(0, (x.shape[0], x.shape[2]))
    return frames.transpose(1, 2)


def _is_dense(x: Tensor) -> bool:
    """Whether each video of the batch is contiguous in memory, channels last."""
    return x[:1].is_contiguous(memory_format=torch.channels_last_3d)


def _clone(x: Tensor) -> Tensor:
    """Copy ``x``, so that the tensor it is a view of can be freed."""
    return x.clone(memory_format=torch.channels_last_3d)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
