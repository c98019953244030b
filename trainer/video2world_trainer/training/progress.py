"""Hold the progress of a run: what resuming needs besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["STAGE", "Progress"]

STAGE = "train"  # the stage's name in event lines


@dataclass
class Progress:
    """Counters of a run; plain data, saved in checkpoints under these names."""

    iteration: int = 0
    consumed: int = 0  # samples consumed by all ranks together: the data position
    updates: int = 0  # optimizer steps applied in this phase, not skipped ones: the EMA's counter
    loss_sum: float = 0.0  # since the last report
    loss_count: int = 0
    skipped: list[int] = field(default_factory=list)  # iterations whose step was not applied
    divergence: dict[str, Any] = field(default_factory=dict)  # state of a Divergence
    validation: list[dict[str, Any]] = field(default_factory=list)  # see ValidationResult
    measured: dict[str, float] = field(default_factory=dict)  # see checkpoint_interval.Measured

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over the counters of a checkpoint."""
        vars(self).update(vars(Progress(**saved)))
