"""Decide after which iterations a checkpoint is saved; every rank decides the same."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from statistics import median

from video2world_common.checkpoint_interval import (
    FIRST_SAVE,
    Interval,
    Measured,
    choose,
    next_save,
    seconds_between_failures,
)
from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.process_group import World
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.phases import Phase
from video2world_trainer.training.progress import Progress

__all__ = ["SaveSchedule"]

VARIABLE = "V2W_SECONDS_BETWEEN_FAILURES"
SAMPLES = 100  # newest iterations whose times are considered, and newest saves


class SaveSchedule:
    """Save every ``checkpoint.save_iter`` iterations, or choose the interval if that is auto.

    The main rank measures iterations and saves; with each save all ranks take over its figures and
    derive the next save from them. Checkpoints hold the figures, so that a resumed run derives the
    same.

    Args:
        config: the run's settings.
        world: all ranks.
        progress: the run's progress, whose ``measured`` this updates.
        phases: the phases of the run, each of which ends with a checkpoint.
    """

    def __init__(
        self, config: TrainConfig, world: World, progress: Progress, phases: Sequence[Phase]
    ) -> None:
        self._fixed = None if config.save_iter == "auto" else config.save_iter
        self._validation = config.validation_iter if config.run_validation else None
        self._world, self._progress = world, progress
        self._ends = {phase.end for phase in phases}
        self._between = _expected(world.size)
        self._iterations: deque[float] = deque(maxlen=SAMPLES)  # seconds that each took
        self._saves: deque[float] = deque(maxlen=SAMPLES)
        self._last_time = time.monotonic()
        self._next = FIRST_SAVE
        self._measure_at = 0  # iteration after which a resumed run derives the next save again
        self.interval: Interval | None = None  # None: fixed, or not chosen yet

    def resume(self) -> None:
        """Continue at the iteration and with the figures of the run's progress."""
        measured = self._progress.measured
        self._plan(Measured(**measured) if measured else None)
        self._measure_at = self._progress.iteration + FIRST_SAVE
        self._last_time = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a checkpoint is saved at the current iteration; call it after each."""
        iteration, now = self._progress.iteration, time.monotonic()
        if self._fixed is not None:
            return iteration % self._fixed == 0
        self._iterations.append(now - self._last_time)
        self._last_time = now
        measured = self._progress.measured
        if measured and iteration == self._measure_at:  # iterations may take longer than before
            self._agree(measured | {"iteration": median(self._iterations)})
        return iteration >= self._next or iteration in self._ends

    def saved(self, blocked: float, writing: float) -> None:
        """Plan the next save; a collective call.

        Args:
            blocked: seconds that this save kept training waiting.
            writing: seconds that the last one took to write in the background; 0 if unknown.
        """
        self._last_time = time.monotonic()
        if self._fixed is not None:
            return
        self._saves.append(blocked)
        if self._iterations:
            pace = median(self._iterations)
            self._agree({"save": median(self._saves), "write": writing, "iteration": pace})
        if self._progress.iteration in self._ends:  # the next phase's iterations take another time
            self._progress.measured = {}
            self._iterations.clear()
            self._plan(None)

    def _agree(self, figures: dict[str, float]) -> None:
        """Take over the main rank's figures, and derive the next save from them."""
        self._progress.measured = self._world.on_main_rank(lambda: figures)
        self._plan(Measured(**self._progress.measured))

    def _plan(self, measured: Measured | None) -> None:
        """Derive the next save from figures that are the same on every rank."""
        iteration = self._progress.iteration
        if self._fixed is not None:
            return
        if measured is None:
            self._next = iteration + FIRST_SAVE
            return
        chosen = choose(measured, self._between)
        before, self.interval = self.interval, chosen
        self._next = next_save(iteration, chosen.iterations, self._validation)
        changed = before is None or not 0.9 <= chosen.iterations / before.iterations <= 1.1
        if changed and self._world.is_main_rank:
            say(f"checkpoints {chosen.text}")


def _expected(ranks: int) -> float:
    """Return the seconds between two failures that the operator expects, or those of a new run.

    Raises:
        UserError: the variable is set to something else.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else seconds_between_failures(ranks)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{VARIABLE}={text}: this must be a number of seconds above 0")
    return seconds
