"""Run one training step, from forward pass to EMA, without synchronizing with the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import total_norm
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.loss import NoiseSample, training_loss
from video2world_trainer.training.optimizer import MasterAdamW

__all__ = ["StepResult", "TrainStep"]


@dataclass(frozen=True)
class StepResult:
    """Scalars of a step, still on the device."""

    loss: Tensor  # float32, mean over all ranks
    gradient_norm: Tensor  # float32, before clipping
    skipped: Tensor  # float32; 1 if loss or gradients were not finite and the step was not applied


class TrainStep:
    """Compute the loss, its gradients and the update of a network's parameters.

    Args:
        net: the network.
        optimizer: updates the network's parameters.
        ema: averages the parameters; None for no average.
        dtype: what the network computes in.
        clip: largest norm of the gradients; 0 disables clipping.
        loss: computes the loss; called like :func:`training_loss`.
        reduce: averages gradients over all ranks, unless FSDP already does.
        norm: computes the norm of gradients from this rank's shards.
        mean: averages the loss over all ranks.
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
        # optimizer steps applied in this phase, not counting skipped ones; the EMA's step counter
        self.updates = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(
        self,
        latents: Tensor,
        text: Tensor,
        noise: NoiseSample,
        learning_rate: float,
        actions: Tensor | None = None,
    ) -> StepResult:
        """Train on one batch, whose tensors are all on the device."""
        loss = self._loss(self.net, latents, text, noise, actions=actions, dtype=self.dtype)
        loss.backward()
        return self.apply(loss.detach(), learning_rate)

    @torch.no_grad()
    def apply(self, loss: Tensor, learning_rate: float) -> StepResult:
        """Update the parameters from their gradients."""
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
        return StepResult(loss, norm, skip)
