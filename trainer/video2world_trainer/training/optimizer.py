"""Update parameters with AdamW, with float32 master weights.

Hyper-parameters are Cosmos-Predict2's, from cosmos_predict2/configs/base/defaults/optimizer.py in
https://github.com/nvidia-cosmos/cosmos-predict2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import as_sharded_like, to_local

__all__ = ["MasterAdamW", "to_float32"]


def to_float32(tensors: list[Tensor]) -> list[Tensor]:
    """Convert tensors to float32 with few kernels; float32 tensors are returned as they are."""
    converted = [
        one if one.dtype == torch.float32 else torch.empty_like(one, dtype=torch.float32)
        for one in tensors
    ]
    pairs = [(a, b) for a, b in zip(converted, tensors, strict=True) if a is not b]
    if pairs:
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
    return converted


class MasterAdamW:
    """AdamW with weight decay on every trainable parameter, including norms.

    Low-precision parameters have a float32 master weight, which is updated instead of the
    parameter and rounded to it after each step; float32 parameters are their own masters. State is
    kept by parameter name; for sharded parameters it is this rank's shard. No method synchronizes
    with the device.

    Args:
        parameters: the network's parameters by name.
        weight_decay: decoupled weight decay, relative to the learning rate.
        betas: decay rates of the first and second moments.
        eps: term added to the denominator.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = {name: one for name, one in parameters if one.requires_grad}
        self.masters: dict[str, Tensor] = {
            name: to_local(one.detach()).float() for name, one in self.parameters.items()
        }
        self._adam = torch.optim.AdamW(
            list(self.masters.values()),
            lr=0.0,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
        )
        for master in self.masters.values():
            self._adam.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @property
    def _steps(self) -> Tensor:
        steps: Tensor = self._adam.state[next(iter(self.masters.values()))]["step"]
        return steps

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradient_bytes(self, *, accumulating: bool) -> int:
        """Return the bytes of this rank's gradients, with their sums if ``accumulating``."""
        own = [to_local(one.detach()) for one in self.parameters.values()]
        return sum(
            one.numel() * (one.element_size() + 4 * (accumulating and one.dtype != torch.float32))
            for one in own
        )

    @torch.no_grad()
    def accumulate(self) -> None:
        """Add low-precision gradients to float32 sums, which :meth:`step` applies, and drop them.

        Gradients of float32 parameters are summed by the backward pass itself.
        """
        for master, parameter in zip(self.masters.values(), self.parameters.values(), strict=True):
            if parameter.grad is None or parameter.dtype == torch.float32:
                continue
            gradient = to_local(parameter.grad)
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Return this rank's gradients or their sums, with zeros for parameters that have none."""
        found = []
        for master, parameter in zip(self.masters.values(), self.parameters.values(), strict=True):
            if master.grad is not None:
                found.append(master.grad)
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(to_local(parameter.grad))
        return found

    @torch.no_grad()
    def step(
        self, learning_rate: float, *, skip: Tensor | None = None, divisor: Tensor | None = None
    ) -> None:
        """Apply the gradients of the parameters.

        Args:
            learning_rate: learning rate of this step.
            skip: float32 scalar on the device; 1 skips the step without telling the host.
            divisor: float32 scalar on the device to divide the gradients by.
        """
        self._adam.param_groups[0]["lr"] = learning_rate
        if skip is None and divisor is not None:
            skip = divisor.new_zeros(())
        if divisor is None and skip is not None:
            divisor = skip.new_ones(())
        # the fused kernel reads these attributes, which torch.amp.GradScaler sets in the same way
        vars(self._adam).update(found_inf=skip, grad_scale=divisor)
        masters = list(self.masters.values())
        for master, gradient in zip(masters, to_float32(self.gradients()), strict=True):
            master.grad = gradient
        self.zero_grad()
        self._adam.step()
        for master in masters:
            master.grad = None
        own = [to_local(one.detach()) for one in self.parameters.values()]
        rounded = [
            pair
            for pair in zip(own, masters, strict=True)
            if pair[0].data_ptr() != pair[1].data_ptr()
        ]
        if rounded:
            torch._foreach_copy_([one for one, _ in rounded], [one for _, one in rounded])

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save, by name: the state itself, not copies.

        ``master.*``, ``exp_avg.*`` and ``exp_avg_sq.*`` are sharded like the parameters; ``step``
        is a scalar. To restore, load into these tensors and call :meth:`restored`.
        """
        state: dict[str, Tensor] = {"step": self._steps}
        for name, master in self.masters.items():
            parts = {"master": master} | {
                key: self._adam.state[master][key] for key in ("exp_avg", "exp_avg_sq")
            }
            for key, part in parts.items():
                state[f"{key}.{name}"] = as_sharded_like(self.parameters[name], part)
        return state

    @torch.no_grad()
    def restored(self) -> None:
        """Update step counters and parameters after loading into :meth:`state`."""
        for name, master in self.masters.items():
            self._adam.state[master]["step"].copy_(self._steps)
            own = to_local(self.parameters[name].detach())
            if own.data_ptr() != master.data_ptr():
                own.copy_(master)

    def settings(self) -> dict[str, Any]:
        """Return the parameter group in the format of an optimizer's state dict."""
        group = self._adam.param_groups[0]
        return {
            "lr": group["lr"],
            "betas": list(group["betas"]),
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "params": list(self.masters),
        }
