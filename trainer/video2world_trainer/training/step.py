"""Run one training step, from forward pass to EMA, without synchronizing with the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

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
        reduce: averages gradients over all ranks in place, unless FSDP already does.
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
        reduce: Callable[[list[Tensor]], None] = lambda _: None,
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
        return self.apply(self.backward(latents, text, noise, actions), learning_rate)

    def backward(
        self,
        latents: Tensor,
        text: Tensor,
        noise: NoiseSample,
        actions: Tensor | None = None,
        *,
        number: int = 1,
        count: int = 1,
    ) -> Tensor:
        """Add the gradients of micro-batch ``number`` of ``count`` to those of the step.

        FSDP reduces the gradients of each micro-batch to shards: it overlaps that with computing,
        and keeping them unsharded would take 4 bytes per parameter of the network on every rank.
        Shards of several replicas are averaged with the last micro-batch only.

        Returns:
            The micro-batch's part of the step's loss; the sum of all is its loss on this rank.
        """
        if count > 1 and isinstance(self.net, FSDPModule):
            self.net.set_requires_all_reduce(number == count)
        loss = self._loss(self.net, latents, text, noise, actions=actions, dtype=self.dtype)
        if count > 1:
            loss = loss / count
        loss.backward()
        if count > 1:
            self.optimizer.accumulate()
        return loss.detach()

    @torch.no_grad()
    def apply(self, loss: Tensor, learning_rate: float) -> StepResult:
        """Update the parameters from their gradients, given the step's loss on this rank."""
        gradients = self.optimizer.gradients()
        self._reduce(gradients)
        loss = self._mean(loss)
        norm = self._norm(gradients)
        finite = loss.isfinite() & norm.isfinite()
        skip = (~finite).float()
        divisor = (norm / self.clip).clamp(min=1.0) if self.clip else None
        self.optimizer.step(learning_rate, skip=skip, divisor=divisor)
        if self.ema is not None:
            self.ema.update(torch.where(finite, self.updates, -1.0))
        self.updates += finite
        return StepResult(loss, norm, skip)
