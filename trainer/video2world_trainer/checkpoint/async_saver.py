"""Saving a run while it goes on: state is copied at once and written in the background."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from video2world_common.events import emit
from video2world_trainer.checkpoint.dcp import (
    Made,
    Staging,
    finish_shards,
    write_model,
    write_shards,
)
from video2world_trainer.checkpoint.folder import CheckpointFolder, entry
from video2world_trainer.distributed.process_group import World

__all__ = ["Saver"]


class Saver:
    """Writes a run's checkpoints, one at a time.

    Every rank writes its part of the state; rank 0 then makes the model file of all parts, piece
    by piece, and publishes the checkpoint.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        world: World,
        staging: Staging,
        *,
        keep: int,
        asynchronous: bool,
    ) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._staging = staging
        self.saved = 0  # iteration of the newest checkpoint
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        # of its own, as its exchanges come between the training's at any time
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Make ready in the background for what :meth:`save` will be given as ``tensors``."""
        if self._asynchronous:
            self._staging.reserve(tensors)

    def save(
        self,
        iteration: int,
        tensors: Mapping[str, Tensor],
        model: Mapping[str, Made],
        merged: Mapping[str, Made],
        parts: Mapping[str, Mapping[str, Any]],
        sound: int,
    ) -> None:
        """Write a checkpoint.

        Args:
            iteration: optimizer steps done.
            tensors: the state; copied before this returns.
            model: the entries of the model file.
            merged: the entries of the file with adapters folded in; empty for none.
            parts: contents of the small files, ``optim``, ``scheduler`` and ``trainer``.
            sound: the iteration whose checkpoint, or the last one before it, must not be pruned.

        Raises:
            OSError: this or the last checkpoint could not be written.
        """
        self.wait()
        work = (iteration, self._staging(tensors), model, merged, parts, sound)
        if self._asynchronous:
            self._thread = threading.Thread(target=self._guarded, args=work, name="saver")
            self._thread.start()
        else:
            self._write(*work)

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self, *work: Any) -> None:
        try:
            self._write(*work)
        except Exception as error:  # raised where the run waits for it
            self._error = error

    def _write(
        self,
        iteration: int,
        tensors: Mapping[str, Tensor],
        model: Mapping[str, Made],
        merged: Mapping[str, Made],
        parts: Mapping[str, Mapping[str, Any]],
        sound: int,
    ) -> None:
        folder, shards = self.folder, self.folder.shards(iteration)
        write_shards(shards, tensors, self.group)
        if self.world.leads:
            files = finish_shards(shards)
            write_model(folder.path("model", iteration), shards, model)
            if merged:
                write_model(folder.merged(iteration), shards, merged)
            record: dict[str, Any] = {"model": entry(folder.path("model", iteration))}
            record |= {part: folder.write(part, iteration, parts[part]) for part in parts}
            record["shards"] = {path.name: entry(path) for path in files}
            path = folder.publish(iteration, record, keep=self.keep, sound=sound)
            emit("checkpoint", "train", iteration=iteration, path=str(path))
        self.saved = iteration
