"""Compute the loss of single clips at noise that depends on the clip's name and level only.

For a validation, and to compare the losses of a clip under different actions at equal noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video2world_trainer.training.dataset import LatentDataset, TrainingSample, generator_for
from video2world_trainer.training.loss import NoiseDistribution, NoiseSample, sigma_at

__all__ = ["ClipLosses", "Evaluation", "evaluations"]


@dataclass(frozen=True)
class Evaluation:
    """One forward pass: a clip at a noise level."""

    window: int
    clip: int
    level: int  # j
    share: float  # of training's noise levels that are lower


def evaluations(clips: Sequence[tuple[int, int]], levels: int) -> list[Evaluation]:
    """Return ``levels`` equally probable noise levels of each clip, stratified for each clip.

    Args:
        clips: pairs of window and clip.
        levels: noise levels per clip.
    """
    return [
        Evaluation(window, clip, level, (level + (number + 0.5) / len(clips)) / levels)
        for number, (window, clip) in enumerate(clips)
        for level in range(levels)
    ]


class ClipLosses:
    """Losses of the clips of a data set; captions and actions are never dropped.

    Args:
        dataset: the clips.
        shape: shape of a complete clip's latents, ``(16, T, h, w)``.
        distribution: training's distribution of noise levels and conditional frames.
        loss: computes the loss of a batch, called as ``loss(net, latents, text, noise)`` and with
            ``actions``, if there are any.
        device: where it is computed.
        frames: this rank's latent frames of a clip; None for all.
        encode: computes latents from pixels on the device, for data sets without latents.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        shape: tuple[int, int, int, int],
        distribution: NoiseDistribution,
        loss: Callable[..., Tensor],
        device: torch.device,
        *,
        frames: slice | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._dataset, self._shape, self._distribution = dataset, shape, distribution
        self._loss, self._device, self._encode = loss, device, encode
        self._own = frames or slice(None)
        low, high = distribution.conditional_frames
        self.conditional = min(max(low, 1), high) if shape[1] > 1 else 0

    def __call__(
        self,
        net: Any,
        one: Evaluation,
        *,
        change_actions: Callable[[TrainingSample], Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of one evaluation, a scalar on the device.

        Args:
            net: the network.
            one: the clip and the noise level.
            change_actions: returns the normalised actions [F - 1, D] to use instead of a clip's own
                ``actions``; noise and all else are the same.

        Raises:
            UserError: a file of the clip is damaged.
        """
        sample = self._dataset.read(one.window, one.clip)
        latents = sample.latents[None].to(self._device)
        if self._encode is not None:
            latents = self._encode(latents.float() / 127.5 - 1).float()[:, :, self._own]
        generator = generator_for(0, f"validation/{sample.name}", one.level)
        sigma = sigma_at(one.share, self._shape[1], self._distribution)
        noise = NoiseSample(
            sigma=torch.tensor([sigma], dtype=torch.float32),
            noise=torch.randn((1, *self._shape), generator=generator)[:, :, self._own],
            conditional=torch.tensor([self.conditional]),
            keep_text=torch.tensor([True]),
        )
        text = sample.text[None].to(self._device)
        actions = sample.actions if change_actions is None else change_actions(sample)
        if actions is None:
            return self._loss(net, latents, text, noise)
        return self._loss(net, latents, text, noise, actions=actions[None].to(self._device))
