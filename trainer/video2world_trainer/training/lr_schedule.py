"""Define the linear learning-rate schedule with warm-up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearSchedule"]


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
