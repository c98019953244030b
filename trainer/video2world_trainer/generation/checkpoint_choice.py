"""Find the checkpoint that inference loads, and what it records of its training."""

from __future__ import annotations

import argparse
from pathlib import Path

from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.run_config import RunConfig, attention_pattern
from video2world_trainer.checkpoint.validation_record import best_checkpoint
from video2world_trainer.generation.requests import existing_path
from video2world_trainer.model.presets import Preset

__all__ = ["choose_checkpoint"]


def choose_checkpoint(args: argparse.Namespace, preset: Preset) -> tuple[Path, RunConfig]:
    """Return the path of the weights and their record: ``--dit_path``, or the published weights.

    Of a run's ``checkpoints`` folder, ``--checkpoint`` is chosen.

    Raises:
        UserError: there is no such file, or it was trained as another model size.
    """
    path = args.dit_path
    if path is None:
        resolution, fps = f"{args.resolution or '720'}p", args.fps or 16
        published = preset.base_weights(resolution, fps, sparse=args.natten)
        if published is None:
            raise UserError("--dit_path: name the checkpoint; Tiny has no published weights")
        path = Path(published)
    path = existing_path(path)
    is_run = path.is_dir() and (path / "model").is_dir()
    if args.checkpoint == "best" and not is_run:
        raise UserError("--checkpoint best: name a run's checkpoints folder with --dit_path")
    if is_run:
        folder = CheckpointFolder(path)
        iteration = (
            best_checkpoint(folder)
            if args.checkpoint == "best"
            else folder.latest_complete(("model",))
        )
        if iteration is None:
            raise UserError(f"--dit_path {path}: there is no checkpoint in this folder")
        path = folder.path("model", iteration)
    if not path.exists():
        raise UserError(
            f"--dit_path {path}: there is no such file; train first, or run the download stage"
        )
    run = RunConfig.read(path.parent / "config.json")
    if run.size is not None and run.size != preset.size:
        raise UserError(f"--model_size {preset.size}: {path} was trained as {run.size}; use that")
    if args.natten and attention_pattern(path, run) == "dense":
        raise UserError(f"--natten: {path} was trained with dense attention; leave --natten out")
    return path, run
