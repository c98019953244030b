"""Keep the global batch of a run: the clips that all ranks together train on per iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from video2world_common.exit_codes import UserError
from video2world_trainer.training.batch_config import BatchConfig

__all__ = ["GlobalBatch"]


@dataclass(frozen=True)
class GlobalBatch:
    """The factors of the global batch.

    ``ranks`` are data-parallel ones: those that share a clip (context parallelism) count as one.
    """

    ranks: int
    batch_size: int
    micro_batches: int

    @classmethod
    def of(cls, config: BatchConfig, ranks: int) -> GlobalBatch:
        """Return the global batch of a run on ``ranks`` data-parallel ranks.

        Raises:
            UserError: it is not the one that ``trainer.global_batch`` asks for.
        """
        batch = cls(ranks, config.batch_size, config.micro_batches)
        if config.global_batch not in (0, batch.clips):
            raise UserError(
                f"trainer.global_batch={config.global_batch}: this run has {batch.text}; "
                f"{batch._remedy(config.global_batch)}, or leave trainer.global_batch out"
            )
        return batch

    @property
    def clips(self) -> int:
        """Clips per iteration on all ranks."""
        return self.ranks * self.batch_size * self.micro_batches

    @property
    def text(self) -> str:
        """The global batch and its factors, for messages."""
        return (
            f"a global batch of {self.clips} ({self.ranks} data-parallel ranks x "
            f"dataloader_train.batch_size={self.batch_size} x "
            f"trainer.grad_accum_iter={self.micro_batches})"
        )

    def plain(self) -> dict[str, int]:
        """Return what a checkpoint records."""
        return dict(vars(self))

    def resumes(self, saved: Mapping[str, int] | None, wanted: int) -> str:
        """Return how this differs from a checkpoint's global batch, for the log; empty if not.

        A run may resume on another number of ranks with the same global batch, on which the
        gradients depend. It may have another one on purpose: with another batch size, or with
        ``trainer.global_batch``.

        Args:
            saved: what the checkpoint records; None if that is nothing, as before version 0.2.
            wanted: ``trainer.global_batch``.

        Raises:
            UserError: the global batch has changed, and not on purpose.
        """
        before = GlobalBatch(**saved) if saved else self
        if before == self:
            return ""
        if before.clips != self.clips and not wanted and before.batch_size == self.batch_size:
            raise UserError(
                f"trainer.grad_accum_iter={self.micro_batches}: the checkpoint was trained with "
                f"{before.text}, this run has {self.text}; {self._remedy(before.clips)}, or "
                f"set trainer.global_batch={self.clips} to change it on purpose"
            )
        return f"{self.text} from here on, before {before.text}"

    def _remedy(self, wanted: int) -> str:
        """Say how to come out at ``wanted`` clips."""
        count, remainder = divmod(wanted, self.ranks * self.batch_size)
        if count and not remainder:
            return f"set trainer.grad_accum_iter={count}"
        return f"use a number of ranks that divides {wanted}"
