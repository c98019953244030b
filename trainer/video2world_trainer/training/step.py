"""One training step: forward, backward, norm, clip, AdamW, EMA, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import total_norm
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.loss import Draw, training_loss
from video2world_trainer.training.optimizer import MasterAdamW

__all__ = ["Outcome", "TrainStep"]


@dataclass(frozen=True)
class Outcome:
    """What a step gave, still on the device."""

    loss: Tensor  # float32
    norm: Tensor  # float32, of the gradients before clipping
    skipped: Tensor  # float32, 1 if loss or gradients were not finite and nothing was changed


class TrainStep:
    """A network with its optimizer and average.

    Args:
        net: the network; ``dtype`` is what it computes in.
        optimizer, ema: what its parameters are moved by, and averaged by if at all.
        clip: largest norm of the gradients; 0 leaves them, as upstream in effect does.
        reduce: makes gradients the mean over all ranks, where the network does not do so itself.
        norm: the norm of gradients of which each rank holds a part.
        mean: the mean of a loss over all ranks.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: MasterAdamW,
        ema: Ema | None,
        *,
        dtype: torch.dtype,
        clip: float = 0.0,
        loss: Callable[..., Tensor] = training_loss,
        reduce: Callable[[list[nn.Parameter]], None] = lambda _: None,
        norm: Callable[[list[Tensor]], Tensor] | None = None,
        mean: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.net, self.optimizer, self.ema = net, optimizer, ema
        self.dtype, self.clip = dtype, clip
        self._loss, self._reduce, self._norm, self._mean = loss, reduce, norm or total_norm, mean
        device = next(iter(optimizer.masters.values())).device
        # optimizer steps applied, skipped ones left out: the EMA's clock
        self.updates = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(
        self, latents: Tensor, text: Tensor, randomness: Draw, learning_rate: float
    ) -> Outcome:
        """Train on one batch, all of whose tensors lie on the device."""
        loss = self._loss(self.net, latents, text, randomness, dtype=self.dtype)
        loss.backward()
        return self.apply(loss.detach(), learning_rate)

    @torch.no_grad()
    def apply(self, loss: Tensor, learning_rate: float) -> Outcome:
        """Move the parameters by the gradients that lie on them."""
        self._reduce(list(self.optimizer.parameters.values()))
        loss = self._mean(loss)
        norm = self._norm(self.optimizer.gradients())
        finite = loss.isfinite() & norm.isfinite()
        skip = (~finite).float()
        divisor = (norm / self.clip).clamp(min=1.0) if self.clip else None
        self.optimizer.step(learning_rate, skip=skip, divisor=divisor)
        if self.ema is not None:
            self.ema.update(torch.where(finite, self.updates, -1.0))
        self.updates += finite
        return Outcome(loss, norm, skip)
