"""Save checkpoints in the background while training continues.

The state is first copied to host memory; the copies are then written by a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from video2world_common.events import emit
from video2world_trainer.checkpoint.dcp import (
    ModelEntry,
    StagingBuffers,
    publish_shards,
    write_model_file,
    write_shards,
)
from video2world_trainer.checkpoint.folder import CheckpointFolder, file_record
from video2world_trainer.distributed.process_group import World, new_group

__all__ = ["AsyncSaver", "CheckpointContent", "Retention"]


@dataclass(frozen=True)
class CheckpointContent:
    """What a checkpoint holds.

    Attributes:
        tensors: the training state by name, with this rank's shards.
        model: the entries of the model file.
        merged: the entries of the model file with adapters merged; empty without adapters.
        parts: contents of the small files ``optim``, ``scheduler`` and ``trainer``.
    """

    tensors: Mapping[str, Tensor]
    model: Mapping[str, ModelEntry]
    merged: Mapping[str, ModelEntry]
    parts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept besides the newest ones.

    Attributes:
        healthy: newest iteration with a sound loss; the last checkpoint up to it is not pruned.
        losses: validation losses by iteration; the checkpoint with the least is not pruned.
    """

    healthy: int
    losses: Mapping[int, float] = field(default_factory=dict)


class AsyncSaver:
    """Write a run's checkpoints, one at a time.

    Every rank writes its shards of the state; the main rank then builds the model file from all
    shards, piece by piece, and publishes the checkpoint.

    Args:
        folder: where checkpoints are written.
        world: all ranks.
        staging: buffers for copies of the state.
        keep: number of newest checkpoints to keep; 0 keeps all.
        asynchronous: write in the background instead of within :meth:`save`.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        world: World,
        staging: StagingBuffers,
        *,
        keep: int,
        asynchronous: bool,
    ) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._staging = staging
        self.last_saved = 0  # iteration of the newest checkpoint
        self.saved_at = time.monotonic()  # when its state was copied; before the first, the start
        self.writing = 0.0  # seconds that writing in the background took the last time
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        # a group of its own: its collectives run concurrently with those of training
        self.group = new_group(backend="gloo") if world.size > 1 else None

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate staging buffers for ``tensors`` in the background."""
        if self._asynchronous:
            self._staging.reserve(tensors)

    def save(self, iteration: int, content: CheckpointContent, retention: Retention) -> None:
        """Write a checkpoint; its tensors are copied before this returns.

        Args:
            iteration: iterations done.
            content: what to write.
            retention: which earlier checkpoints are kept.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        self.wait()
        staged = CheckpointContent(
            self._staging(content.tensors), content.model, content.merged, content.parts
        )
        copied_at = time.monotonic()
        if self._asynchronous:
            self._thread = threading.Thread(
                target=self._write_in_background,
                args=(iteration, staged, retention, copied_at),
                name="saver",
            )
            self._thread.start()
        else:
            self._write(iteration, staged, retention, copied_at)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of the background thread, if it failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_in_background(
        self, iteration: int, content: CheckpointContent, retention: Retention, copied_at: float
    ) -> None:
        try:
            self._write(iteration, content, retention, copied_at)
            self.writing = time.monotonic() - copied_at
        except Exception as error:  # raised again by check() in the main thread
            self._error = error

    def _write(
        self, iteration: int, content: CheckpointContent, retention: Retention, copied_at: float
    ) -> None:
        folder, shards = self.folder, self.folder.shards(iteration)
        write_shards(shards, content.tensors, self.group)
        if self.world.is_main_rank:
            files = publish_shards(shards)
            model = folder.path("model", iteration)
            write_model_file(model, shards, content.model)
            if content.merged:
                write_model_file(folder.merged(iteration), shards, content.merged)
            record: dict[str, Any] = {"model": file_record(model)}
            for part, values in content.parts.items():
                record[part] = folder.write(part, iteration, values)
            record["shards"] = {path.name: file_record(path) for path in files}
            path = folder.publish(
                iteration,
                record,
                keep=self.keep,
                healthy=retention.healthy,
                losses=retention.losses,
            )
            emit("checkpoint", "train", iteration=iteration, path=str(path))
        self.last_saved, self.saved_at = iteration, copied_at
