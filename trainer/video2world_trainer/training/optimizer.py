"""How parameters move: AdamW with float32 masters, learning-rate schedule, power-law EMA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import like, local

__all__ = ["MasterAdamW"]


def _float(tensors: list[Tensor]) -> list[Tensor]:
    """``tensors`` in float32, converted by few kernels; those that are so already themselves."""
    made = [
        one if one.dtype == torch.float32 else torch.empty_like(one, dtype=torch.float32)
        for one in tensors
    ]
    pairs = [(a, b) for a, b in zip(made, tensors, strict=True) if a is not b]
    if pairs:
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
    return made


class MasterAdamW:
    """AdamW on every trainable parameter, norms included, as upstream does.

    Low-precision parameters get a float32 master that is updated in their place and rounded back
    after each step; float32 parameters are their own masters. State is kept by parameter name, of
    sharded parameters this rank's part. Nothing here waits for the device.
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
            name: local(one.detach()).float() for name, one in self.parameters.items()
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
        return self._adam.state[next(iter(self.masters.values()))]["step"]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradients_like(self) -> list[Tensor]:
        """Tensors of the sizes and types that :meth:`gradients` will have."""
        return [local(one.detach()) for one in self.parameters.values()]

    def gradients(self) -> list[Tensor]:
        """This rank's gradients; zeros where a parameter took no part."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [local(one.grad) for one in self.parameters.values() if one.grad is not None]

    @torch.no_grad()
    def step(
        self, learning_rate: float, *, skip: Tensor | None = None, divisor: Tensor | None = None
    ) -> None:
        """Apply the gradients that lie on the parameters.

        Args:
            learning_rate: the step's rate.
            skip: float32 on the device, 1 to change nothing at all (the decision stays there).
            divisor: float32 on the device, what gradients are divided by.
        """
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.found_inf = (
            skip if skip is not None or divisor is None else divisor.new_zeros(())
        )
        self._adam.grad_scale = (
            divisor if divisor is not None or skip is None else skip.new_ones(())
        )
        masters = list(self.masters.values())
        for master, gradient in zip(masters, _float(self.gradients()), strict=True):
            master.grad = gradient
        self.zero_grad()
        self._adam.step()
        for master in masters:
            master.grad = None
        own = [local(one.detach()) for one in self.parameters.values()]
        lowered = [
            pair
            for pair in zip(own, masters, strict=True)
            if pair[0].data_ptr() != pair[1].data_ptr()
        ]
        if lowered:
            torch._foreach_copy_([one for one, _ in lowered], [one for _, one in lowered])

    def state(self) -> dict[str, Tensor]:
        """All that training on needs, by name; not copies: what is loaded into them counts.

        ``master.*``, ``exp_avg.*`` and ``exp_avg_sq.*`` as sharded as the parameters, and ``step``.
        After loading call :meth:`restored`.
        """
        found: dict[str, Tensor] = {"step": self._steps}
        for name, master in self.masters.items():
            parts = {"master": master} | {
                key: self._adam.state[master][key] for key in ("exp_avg", "exp_avg_sq")
            }
            for key, part in parts.items():
                found[f"{key}.{name}"] = like(self.parameters[name], part)
        return found

    @torch.no_grad()
    def restored(self) -> None:
        """Take over what was loaded into :meth:`state`."""
        for name, master in self.masters.items():
            self._adam.state[master]["step"].copy_(self._steps)
            own = local(self.parameters[name].detach())
            if own.data_ptr() != master.data_ptr():
                own.copy_(master)

    def settings(self) -> dict[str, Any]:
        """The parameter group, as optimizers' state dicts have it."""
        group = self._adam.param_groups[0]
        return {
            "lr": group["lr"],
            "betas": list(group["betas"]),
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "params": list(self.masters),
        }
