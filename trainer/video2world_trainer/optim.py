"""How parameters move: AdamW with float32 masters, learning-rate schedule, power-law EMA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["EMA_RATE", "Ema", "LinearSchedule", "MasterAdamW", "ema_beta", "ema_exponent"]

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


class MasterAdamW:
    """AdamW (betas 0.9, 0.99) on every trainable parameter, norms included, as upstream does.

    Low-precision parameters get a float32 master that is updated in their place and rounded back
    after each step; float32 parameters are their own masters. State is kept by parameter name.
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
            name: one if one.dtype == torch.float32 else one.detach().float()
            for name, one in self.parameters.items()
        }
        self._adam = torch.optim.AdamW(
            list(self.masters.values()), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Apply the gradients that lie on the parameters."""
        self._adam.param_groups[0]["lr"] = learning_rate
        lowered = [
            (one, self.masters[name])
            for name, one in self.parameters.items()
            if one is not self.masters[name]
        ]
        for parameter, master in lowered:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self._adam.step()
        for parameter, master in lowered:
            parameter.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments, step and masters by parameter name (CPU tensors)."""
        group = self._adam.param_groups[0]
        moments = {}
        for name, master in self.masters.items():
            state = self._adam.state.get(master, {})
            moments[name] = {key: value.detach().cpu() for key, value in state.items()}
        return {
            "state": moments,
            "param_groups": [
                {
                    "lr": group["lr"],
                    "betas": list(group["betas"]),
                    "eps": group["eps"],
                    "weight_decay": group["weight_decay"],
                    "params": list(self.masters),
                }
            ],
            "masters": {name: one.detach().cpu() for name, one in self.masters.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, parameters included.

        Raises:
            KeyError: the state lacks a parameter of this model.
        """
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
            if self.parameters[name] is not master:
                self.parameters[name].copy_(master)
            self._adam.state[master] = {
                key: value.clone() if key == "step" else value.to(master.device, copy=True)
                for key, value in state["state"][name].items()
            }


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

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._parameters = {name: one for name, one in parameters if one.requires_grad}
        self._exponent = ema_exponent()
        self.average = {
            name: one.detach().float().clone() for name, one in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after the 0-based optimizer ``step``."""
        beta = ema_beta(step, self._exponent)
        for name, average in self.average.items():
            average.lerp_(self._parameters[name].detach().float(), 1 - beta)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Restore the averages by name."""
        for name, mine in self.average.items():
            mine.copy_(average[name])
