"""Keep the exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import like, local
from video2world_trainer.training.optimizer import _float

__all__ = ["EMA_RATE", "Ema", "ema_beta", "ema_exponent"]

_EMA_CHUNK = 64  # parameters at a time
EMA_RATE = 0.1  # width of the averaging window, relative to the training so far


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
