"""Scale the learning rate: linear warm-up, then linear decay."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearSchedule"]


@dataclass(frozen=True)
class LinearSchedule:
    """Cosmos-Predict2's ``lambdalinear``: warm-up, decay over one cycle, then a constant floor.

    Steps count from 0; factors multiply the base learning rate. Source:
    cosmos_predict2/functional/lr_scheduler.py in https://github.com/nvidia-cosmos/cosmos-predict2,
    which raises TypeError after the cycle; here ``f_min`` holds from then on.
    """

    warm_up_steps: int
    cycle_length: int
    f_max: float
    f_min: float
    f_start: float = 1e-6

    def factor(self, step: int) -> float:
        """Return the factor of the base learning rate at ``step``."""
        if step < self.warm_up_steps:
            return (self.f_max - self.f_start) / self.warm_up_steps * step + self.f_start
        if step >= self.cycle_length:
            return self.f_min
        left = (self.cycle_length - step) / (self.cycle_length - self.warm_up_steps)
        return self.f_min + (self.f_max - self.f_min) * left
