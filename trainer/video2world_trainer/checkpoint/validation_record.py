"""Keep a run's validation losses alongside its checkpoints, and choose the best checkpoint by them.

The same record is part of each checkpoint's progress: a resumed run restores it from there and
rewrites ``validation.json``, so that the file never holds results that the run does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import read_json, write_json
from video2world_trainer.checkpoint.folder import CheckpointFolder

__all__ = [
    "ValidationResult",
    "best_checkpoint",
    "best_result",
    "comparable",
    "losses_by_iteration",
    "read_results",
    "write_results",
]

NAME = "validation.json"


@dataclass(frozen=True)
class ValidationResult:
    """Losses on the held-out clips at one iteration; None where they were not finite."""

    iteration: int
    loss: float | None  # mean over all clips and noise levels
    low: float | None  # of the lowest third of noise levels
    middle: float | None
    high: float | None
    clips: int
    levels: int  # noise levels per clip
    weights: str  # "regular" or "ema"
    draws: str  # identifies clips, noise and loss; results compare only if it is equal

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> ValidationResult:
        """Restore a result from :meth:`plain` data; raise TypeError or ValueError for others."""
        result = cls(**value)
        if type(result.iteration) is not int:
            raise ValueError(f"iteration {result.iteration!r}")
        for loss in (result.loss, result.low, result.middle, result.high):
            if loss is not None and not (type(loss) in (int, float) and math.isfinite(loss)):
                raise ValueError(f"loss {loss!r}")
        return result

    def plain(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def comparable(results: Sequence[ValidationResult]) -> list[ValidationResult]:
    """Return the results with the same clips, noise and weights as the newest one."""
    return [one for one in results if one.draws == results[-1].draws]


def best_result(results: Sequence[ValidationResult]) -> ValidationResult | None:
    """Return the earliest of the comparable results with the least loss; None if there is none."""
    losses = losses_by_iteration(results)
    found = [one for one in comparable(results) if one.iteration in losses]
    return min(found, key=lambda one: (losses[one.iteration], one.iteration), default=None)


def losses_by_iteration(results: Sequence[ValidationResult]) -> dict[int, float]:
    """Return the comparable finite losses by iteration."""
    return {one.iteration: one.loss for one in comparable(results) if one.loss is not None}


def write_results(checkpoints: Path, results: Sequence[ValidationResult]) -> None:
    """Write the record of a run into its checkpoints folder; only one process of a run writes."""
    write_json(checkpoints / NAME, [one.plain() for one in results])


def read_results(checkpoints: Path) -> list[ValidationResult]:
    """Read a run's record; empty if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = checkpoints / NAME
    try:
        return [ValidationResult.restored(one) for one in read_json(path) or ()]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it; the next validation writes it again"
        ) from None


def best_checkpoint(folder: CheckpointFolder) -> int:
    """Return the iteration with the least validation loss among the kept checkpoints.

    Raises:
        UserError: none of them was validated; or the record is damaged.
    """
    results = read_results(folder.folder)
    losses = losses_by_iteration(results)
    kept = [one for one in folder.iterations() if folder.path("model", one).is_file()]
    validated = [one for one in kept if one in losses]
    for iteration in sorted(validated, key=lambda one: (losses[one], one)):
        if folder.find_damage(iteration, ("model",)) is None:
            say(
                f"best checkpoint: iteration {iteration}, validation loss "
                f"{losses[iteration]:.4g} with its {results[-1].weights} weights"
            )
            return iteration
    raise UserError(
        f"best: no checkpoint in {folder.folder} was validated; set spec.training.validation "
        "(trainer.run_validation=true), with checkpoint.everyIterations a multiple of "
        "validation.everyIterations, or name a checkpoint"
    )
