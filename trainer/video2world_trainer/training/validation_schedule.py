"""Validate a run when it is due, record the results, and decide whether it still improves."""

from __future__ import annotations

import time
from collections.abc import Callable

from video2world_common.events import say
from video2world_trainer.checkpoint.validation_record import (
    ValidationResult,
    best_result,
    write_results,
)
from video2world_trainer.distributed.process_group import World
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.progress import Progress
from video2world_trainer.training.validation import Interrupted, Validator

__all__ = ["ValidationSchedule"]


class ValidationSchedule:
    """Decide by a run's progress when to validate and when to stop.

    Every decision follows from the iteration and the recorded results, both of which checkpoints
    hold, so a resumed run decides as an uninterrupted one.

    Args:
        config: the run's settings.
        world: all ranks.
        progress: the run's progress, whose ``validation`` this appends to.
        validator: measures the loss; None if the run is not validated.
    """

    def __init__(
        self, config: TrainConfig, world: World, progress: Progress, validator: Validator | None
    ) -> None:
        self._config, self._world, self._progress = config, world, progress
        self._validator = validator

    @property
    def results(self) -> list[ValidationResult]:
        """The run's results that compare with those to come."""
        draws = self._validator.draws if self._validator is not None else ""
        found = [ValidationResult.restored(one) for one in self._progress.validation]
        return [one for one in found if one.draws == draws]

    @property
    def stopped(self) -> str:
        """Why training ends before its last iteration; empty if it does not."""
        limit = self._config.stop_after_validations
        best = best_result(self.results) if limit else None
        if best is None:
            return ""
        later = [one for one in self.results if one.iteration > best.iteration]
        if len(later) < limit:
            return ""
        return (
            f"the validation loss was {best.loss:.4g} at iteration {best.iteration} and not lower "
            f"in the {len(later)} validations since"
        )

    @property
    def due(self) -> bool:
        """Whether the current iteration has to be validated, and has not been."""
        iteration = self._progress.iteration
        every, end = self._config.validation_iter, self._config.max_iter
        if self._validator is None or (iteration % every and iteration < end):
            return False
        return all(one.iteration != iteration for one in self.results)

    def run(
        self,
        report: Callable[[list[ValidationResult], float, str], None],
        stop_requested: Callable[[], bool],
        heartbeat: Callable[[str], None],
    ) -> bool:
        """Validate the current iteration and record the result; a collective call.

        A stop request ends it without a result: the resumed run validates the iteration.

        Args:
            report: called with the results, the seconds that the newest took, and why training
                ends (see :attr:`stopped`).
            stop_requested: checked after every clip and noise level.
            heartbeat: called as often with what is being done.

        Returns:
            Whether no stop was requested.

        Raises:
            UserError: a held-out file is damaged.
            OSError: the record could not be written.
        """
        assert self._validator is not None
        started, iteration = time.monotonic(), self._progress.iteration

        def keep_on() -> bool:
            heartbeat(f"validating iteration {iteration}")
            return not self._world.any(stop_requested())

        try:
            result = self._validator.measure(iteration, keep_on)
        except Interrupted:
            if self._world.is_main_rank:
                say(f"validation of iteration {iteration} interrupted; it is repeated on resuming")
            return False
        earlier = [one for one in self._progress.validation if one["iteration"] != iteration]
        self._progress.validation = [*earlier, result.plain()]
        if self._world.is_main_rank:
            write_results(
                self._config.checkpoint_folder,
                [ValidationResult.restored(one) for one in self._progress.validation],
            )
        report(self.results, time.monotonic() - started, self.stopped)
        return True
