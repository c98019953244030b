"""How parameters move: AdamW with float32 masters, learning-rate schedule, power-law EMA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = [
    "EMA_RATE",
    "Ema",
    "LinearSchedule",
    "MasterAdamW",
    "ema_beta",
    "ema_exponent",
    "like",
    "local",
]

_EMA_CHUNK = 64  # parameters at a time
EMA_RATE = 0.1  # width of the averaging window, relative to the training so far


@dataclass(frozen=True)
class LinearSchedule:
    """Upstream's ``lambdalinear``: linear warm-up, linear decay over one cycle, then its floor.

    Upstream raises TypeError once the cycle is over; here the last value, ``f_min``, holds.
    Steps are counted from 0; factors multiply the base learning rate.
    """

    warm_up_steps: int
    cycle_length: int
    f_max: float
    f_min: float
    f_start: float = 1e-6

    def factor(self, step: int) -> float:
        """What the base learning rate is multiplied with at ``step``."""
        if step < self.warm_up_steps:
            return (self.f_max - self.f_start) / self.warm_up_steps * step + self.f_start
        if step >= self.cycle_length:
            return self.f_min
        left = (self.cycle_length - step) / (self.cycle_length - self.warm_up_steps)
        return self.f_min + (self.f_max - self.f_min) * left


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """``part``, a rank's own, as the tensor that is sharded like ``parameter``."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


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
            list(self.masters.values()), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay,
            fused=True,
        )  # fmt: skip
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
            pair for pair in zip(own, masters, strict=True)
            if pair[0].data_ptr() != pair[1].data_ptr()
        ]  # fmt: skip
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
            "lr": group["lr"], "betas": list(group["betas"]), "eps": group["eps"],
            "weight_decay": group["weight_decay"], "params": list(self.masters),
        }  # fmt: skip


def ema_exponent(rate: float = EMA_RATE) -> float:
    """The power g whose averaging window has the relative width ``rate`` (0.1 -> 6.93720).

    Largest real root of g^3 + 7 g^2 + (16 - rate^-2) g + (12 - rate^-2).
    """
    roots = np.roots([1, 7, 16 - rate**-2, 12 - rate**-2])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def ema_beta(step: int, exponent: float) -> float:
    """How much of the old average is kept at the 0-based ``step``: (1 - 1/(step+1))^(g+1)."""
    return float((1 - 1 / (step + 1)) ** (exponent + 1))


class Ema:
    """Float32 average of the trainable parameters, updated from the (rounded) network itself."""

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], rate: float = EMA_RATE
    ) -> None:
        self._parameters = {name: one for name, one in parameters if one.requires_grad}
        self._exponent = ema_exponent(rate)
        self.average = {
            name: local(one.detach()).float().clone() for name, one in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: Tensor | int) -> None:
        """Take in the parameters after the 0-based optimizer ``step``.

        A ``step`` on the device stays there; a negative one changes nothing.
        """
        averages = list(self.average.values())
        step = torch.as_tensor(step, dtype=torch.float64, device=averages[0].device)
        taken = 1 - (1 - 1 / (step + 1)) ** (self._exponent + 1)
        taken = torch.where(step < 0, 0.0, taken).float()
        # chunks, so that the float32 copies of the parameters take little memory
        for start in range(0, len(averages), _EMA_CHUNK):
            chunk = averages[start : start + _EMA_CHUNK]
            names = list(self.average)[start : start + _EMA_CHUNK]
            own = _float([local(self._parameters[name].detach()) for name in names])
            for average, one in zip(chunk, own, strict=True):
                average.lerp_(one, taken)

    def state(self) -> dict[str, Tensor]:
        """The averages as ``ema.*``, as sharded as the parameters; not copies."""
        return {f"ema.{n}": like(self._parameters[n], one) for n, one in self.average.items()}
