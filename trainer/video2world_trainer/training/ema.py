"""Keep an exponential moving average (EMA) of the weights.

The averaging window grows with training: Karras et al., "Analyzing and Improving the Training
Dynamics of Diffusion Models", https://arxiv.org/abs/2312.02696, section 3 and algorithm 2. Defaults
are Cosmos-Predict2's, from cosmos_predict2/configs/base/defaults/ema.py in
https://github.com/nvidia-cosmos/cosmos-predict2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from video2world_trainer.distributed.local_tensors import as_sharded_like, to_local
from video2world_trainer.training.optimizer import to_float32

__all__ = ["EMA_RATE", "Ema", "ema_exponent"]

_CHUNK = 64  # parameters at a time
EMA_RATE = 0.1  # width of the averaging window, relative to the training so far


def ema_exponent(rate: float = EMA_RATE) -> float:
    """Return the power g whose averaging window has the relative width ``rate`` (0.1: 6.93720).

    This is the largest real root of g^3 + 7 g^2 + (16 - rate^-2) g + (12 - rate^-2).
    """
    roots = np.roots([1, 7, 16 - rate**-2, 12 - rate**-2])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


class Ema:
    """Average the trainable parameters in float32.

    Like Cosmos-Predict2, this averages the network's own, possibly bfloat16 parameters rather than
    their float32 masters. Averages of sharded parameters are this rank's shards.

    Args:
        parameters: the network's parameters by name.
        rate: width of the averaging window relative to the training so far.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], rate: float = EMA_RATE
    ) -> None:
        self._parameters = {name: one for name, one in parameters if one.requires_grad}
        self._exponent = ema_exponent(rate)
        self.average = {
            name: to_local(one.detach()).float().clone() for name, one in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: Tensor | int) -> None:
        """Update the averages after the 0-based optimizer ``step``; a negative one is a no-op.

        The old average keeps the weight beta = (1 - 1 / (step + 1))^(g + 1). A ``step`` on the
        device is not copied to the host.
        """
        averages = list(self.average.values())
        step = torch.as_tensor(step, dtype=torch.float64, device=averages[0].device)
        weight = 1 - (1 - 1 / (step + 1)) ** (self._exponent + 1)
        weight = torch.where(step < 0, 0.0, weight).float()
        # in chunks, so that float32 copies of the parameters take little memory
        for start in range(0, len(averages), _CHUNK):
            chunk = averages[start : start + _CHUNK]
            names = list(self.average)[start : start + _CHUNK]
            own = to_float32([to_local(self._parameters[name].detach()) for name in names])
            for average, one in zip(chunk, own, strict=True):
                average.lerp_(one, weight)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Use the averages as parameters within the block; the parameters are then as before."""
        own = {name: to_local(one.detach()) for name, one in self._parameters.items()}
        saved = {name: one.to("cpu", copy=True) for name, one in own.items()}  # spares GPU memory
        for name, one in own.items():
            one.copy_(self.average[name])
        try:
            yield
        finally:
            for name, one in own.items():
                one.copy_(saved[name])

    def state(self) -> dict[str, Tensor]:
        """Return the averages themselves as ``ema.*``, sharded like the parameters."""
        return {
            f"ema.{n}": as_sharded_like(self._parameters[n], one) for n, one in self.average.items()
        }
