"""Read the results of training steps from the device, and give up after too many skipped steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from video2world_common.events import emit, say
from video2world_trainer.distributed.process_group import World
from video2world_trainer.training.dataset import Batch
from video2world_trainer.training.progress import STAGE, Progress
from video2world_trainer.training.step import StepResult

__all__ = ["NonFiniteError", "StepResults"]

MAX_SKIPPED, SKIP_WINDOW = 3, 100  # give up after this many skipped steps within this many


class NonFiniteError(Exception):
    """Loss or gradients are repeatedly NaN or infinite; the message names the batches."""


@dataclass(frozen=True)
class _Pending:
    """A step whose results the host has not read yet."""

    iteration: int
    batches: Sequence[Batch]
    numbers: Tensor  # loss, gradient norm, skipped; on the host once ``ready``
    ready: torch.cuda.Event | None


class StepResults:
    """Update a run's progress from the results of its steps.

    To keep a GPU busy, the host launches the next step before it reads the results of one.

    Args:
        progress: the run's progress, updated in place.
        world: all ranks.
        last_checkpoint: returns the iteration of the newest checkpoint, for messages.
    """

    def __init__(
        self, progress: Progress, world: World, last_checkpoint: Callable[[], int]
    ) -> None:
        self._progress, self._world, self._last_checkpoint = progress, world, last_checkpoint
        self._lag = 1 if world.device.type == "cuda" else 0
        self._pending: deque[_Pending] = deque()
        self.gradient_norm: float | None = None  # of the newest step that was read

    def add(self, result: StepResult, batches: Sequence[Batch]) -> None:
        """Add the step that has just been launched, and read earlier ones.

        Args:
            result: the step's scalars.
            batches: this rank's micro-batches of the step.

        Raises:
            NonFiniteError: too many steps were skipped.
        """
        numbers = torch.stack([result.loss, result.gradient_norm, result.skipped])
        ready = None
        if numbers.is_cuda:
            on_host = torch.empty(3, pin_memory=True)
            numbers = on_host.copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(_Pending(self._progress.iteration, batches, numbers, ready))
        self._read(leave=self._lag)

    def read_all(self) -> None:
        """Read the results of all steps.

        Raises:
            NonFiniteError: too many steps were skipped.
        """
        self._read(leave=0)

    def _read(self, *, leave: int) -> None:
        while len(self._pending) > leave:
            step = self._pending.popleft()
            if step.ready is not None:
                step.ready.synchronize()
            loss, self.gradient_norm, skipped = step.numbers.tolist()
            if skipped:
                self._count_skipped(step)
            else:
                self._progress.updates += 1
                self._progress.loss_sum += loss
                self._progress.loss_count += 1

    def _count_skipped(self, step: _Pending) -> None:
        """Report a step that was not applied; give up if there are too many."""
        own = [
            name if is_finite else f"{name} (its latents are not finite)"
            for batch in step.batches
            for name, is_finite in zip(
                batch.names, batch.latents.isfinite().flatten(1).all(1).tolist(), strict=True
            )
        ]
        of_all_ranks = dict.fromkeys(name for names in self._world.gather(own) for name in names)
        names = "; ".join(of_all_ranks)
        skipped = self._progress.skipped
        recent = [one for one in skipped if one > step.iteration - 1 - SKIP_WINDOW]
        self._progress.skipped = [*recent, step.iteration - 1]
        if self._world.is_main_rank:
            say(
                f"iteration {step.iteration}: loss or gradients are not finite, step skipped: "
                f"{names}"
            )
            emit("skipped_step", STAGE, iteration=step.iteration, batch=names)
        if len(self._progress.skipped) >= MAX_SKIPPED:
            raise NonFiniteError(
                f"loss or gradients were not finite {MAX_SKIPPED} times within {SKIP_WINDOW} "
                f"iterations, last at iteration {step.iteration} with: {names}. Delete the latents "
                "named here and run the latents stage again, or lower optimizer.lr; the last good "
                f"checkpoint is iteration {self._last_checkpoint()}"
            )
