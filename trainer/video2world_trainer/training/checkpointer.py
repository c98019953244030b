"""Save the complete state of a run to checkpoints, and restore it from them."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from video2world_common.events import emit, say
from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.async_saver import AsyncSaver, CheckpointContent, Retention
from video2world_trainer.checkpoint.dcp import StagingBuffers, read_shards
from video2world_trainer.checkpoint.export import merged_entries, model_entries
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.checkpoint.validation_record import (
    ValidationResult,
    losses_by_iteration,
    write_results,
)
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.global_batch import GlobalBatch
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.phases import describe_phases
from video2world_trainer.training.progress import STAGE, Progress

__all__ = ["Checkpointer", "describe_run"]


def describe_run(config: TrainConfig, actions: RecordedActions | None = None) -> dict[str, Any]:
    """Return the content of ``model/config.json`` of a run that reads ``actions``.

    The top level has what inference needs to know, ``run`` what must be equal to resume.
    """
    known = {
        "size": config.size,
        "architecture": config.architecture,
        "geometry": config.geometry,
        "num_frames": config.num_frames,
        "video_size": list(config.video_size),
        "text_length": config.text_length,
        "rope_ratio_t": config.rope_t,
        "rope_ratio_h": config.rope_h,
        "rope_ratio_w": config.rope_w,
    }
    if config.architecture == "lora":
        known |= {
            "lora_rank": config.lora_rank,
            "lora_alpha": config.lora_alpha,
            "lora_targets": config.lora_targets,
        }
    if config.attention_pattern != "dense":
        known["attention_pattern"] = config.attention_pattern
    if config.phases:
        known["phases"] = describe_phases(config)
    if config.encode:
        known["encode"] = True
    run = known | {"dataset_dir": config.dataset_dir, "ema": config.ema, "seed": config.seed}
    if actions is not None:
        run["action_conditioning"] = actions.kind
        known["action_conditioning"] = actions.to_json()
    return known | {"fps": config.fps, "run": run}


class Checkpointer:
    """Save and restore weights, optimizer state, EMA and progress of a run.

    Args:
        config: the run's settings.
        mesh: all ranks and their groups.
        net: the network, sharded if FSDP is used.
        optimizer: its optimizer.
        ema: its average; None for none.
        actions: the actions that it reads; None for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: ParallelMesh,
        net: VideoDiT,
        optimizer: MasterAdamW,
        ema: Ema | None,
        actions: RecordedActions | None = None,
    ) -> None:
        self._config, self._world, self._actions = config, mesh.world, actions
        self._batch = GlobalBatch.of(config, mesh.data_size)
        self._net, self._optimizer, self._ema = net, optimizer, ema
        self.folder = CheckpointFolder(config.checkpoint_folder)
        self._saver = AsyncSaver(
            self.folder,
            mesh.world,
            StagingBuffers(mesh.host_mesh),
            keep=config.keep,
            asynchronous=config.asynchronous,
        )
        self._saver.reserve(self._tensors())

    @property
    def last_saved(self) -> int:
        """Iteration of the newest checkpoint; 0 if there is none."""
        return self._saver.last_saved

    @property
    def writing(self) -> float:
        """Seconds that writing a checkpoint in the background took last; 0 if it never was."""
        return self._saver.writing

    def gpu_seconds_at_risk(self) -> float:
        """Return the GPU seconds of all ranks that the newest checkpoint does not hold."""
        gpus = self._world.size if self._world.device.type == "cuda" else 0
        return (time.monotonic() - self._saver.saved_at) * gpus

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save and restore, by name; not copies."""
        frozen = {
            f"frozen.{name}": one.detach()
            for name, one in self._net.named_parameters()
            if not one.requires_grad
        }
        return self._optimizer.state() | (self._ema.state() if self._ema else {}) | frozen

    def save(self, progress: Progress, *, learning_rate: float, healthy: int) -> float:
        """Write a checkpoint, in the background if the settings say so.

        Args:
            progress: the run's progress, including the state of divergence detection.
            learning_rate: learning rate of the next step.
            healthy: newest iteration with a sound loss; the last checkpoint up to it is not pruned.

        Returns:
            The seconds that training waited for it.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        started = time.monotonic()
        scheduler = {
            "last_epoch": progress.iteration,
            "_step_count": progress.iteration + 1,
            "base_lrs": [self._config.learning_rate],
            "_last_lr": [learning_rate],
        }
        trainer = {
            "grad_scaler": {},
            "iteration": progress.iteration,
            "progress": dict(vars(progress)),
            "world_size": self._world.size,
            "global_batch": self._batch.plain(),
        }
        optim = {
            "param_groups": [self._optimizer.settings()],
            "shards": self.folder.shards(progress.iteration).name,
        }
        model = model_entries(
            self._net,
            average=self._ema is not None,
            iteration=progress.iteration,
            samples=progress.consumed,
        )
        content = CheckpointContent(
            tensors=self._tensors(),
            model=model,
            merged=merged_entries(self._net, model),
            parts={"optim": optim, "scheduler": scheduler, "trainer": trainer},
        )
        results = [ValidationResult.restored(one) for one in progress.validation]
        losses = losses_by_iteration(results)
        self._saver.save(progress.iteration, content, Retention(healthy, losses))
        return time.monotonic() - started

    def restore(self, progress: Progress) -> bool:
        """Load the newest complete checkpoint, if there is one, and update ``progress``.

        Noise and data order are functions of the seed and the data position, so the position and
        the tensors restore every rank, even with another world size.

        Returns:
            Whether there was a checkpoint.

        Raises:
            UserError: the folder belongs to another run, no checkpoint is usable, or the global
                batch has changed.
        """

        def find() -> int | None:
            self.folder.set_description(describe_run(self._config, self._actions))
            self.folder.delete_partial_files()
            return self.folder.latest_complete()

        iteration = self._world.on_main_rank(find)
        if iteration is None:
            return False
        optim = self.folder.load("optim", iteration)
        trainer = self.folder.load("trainer", iteration)
        if "shards" not in optim or "progress" not in trainer:
            raise UserError(
                f"{self.folder.path('optim', iteration)} was not written by this trainer, so its "
                "training cannot be continued; start a run with another job.name from it with "
                "model.config.model_manager_config.dit_path="
                f"{self.folder.path('model', iteration)}"
            )
        change = self._batch.resumes(trainer.get("global_batch"), self._config.global_batch)
        if change and self._world.is_main_rank:
            say(change)
        group = None if self._world.size == 1 else self._saver.group
        read_shards(self.folder.shards(iteration), self._tensors(), group)
        self._optimizer.restored()
        progress.restore(trainer["progress"])
        self._saver.last_saved = iteration
        if progress.validation and self._world.is_main_rank:  # forget what is measured again
            results = [ValidationResult.restored(one) for one in progress.validation]
            write_results(self.folder.folder, results)
        return True

    def withdraw_after(self, iteration: int) -> str:
        """Delete the checkpoints after ``iteration``, and return what is left, for the user."""
        self._saver.wait()
        remaining = self._world.on_main_rank(lambda: self.folder.delete_after(iteration))
        path = "" if remaining is None else str(self.folder.path("model", remaining))
        if self._world.is_main_rank:
            emit("withdrawn", STAGE, iteration=remaining or 0, path=path)
        if remaining is None:
            return "No checkpoint was saved before that: another run starts from scratch."
        return f"The checkpoint of iteration {remaining} is kept ({path}), later ones are deleted."

    def check(self) -> None:
        """Raise the error of a checkpoint that failed in the background."""
        self._saver.check()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        self._saver.wait()
