"""Find the weights that a run's training started from, to compare its checkpoints with."""

from __future__ import annotations

from pathlib import Path

import torch

from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_write, read_json
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import preset
from video2world_trainer.training.dataset import generator_for

__all__ = ["initial_weights"]


def initial_weights(run_folder: Path) -> Path:
    """Write the random weights that a run of Tiny started from, once, and return their file.

    The file is next to the run's model files, whose ``config.json`` describes it too.

    Raises:
        UserError: the run did not start from random weights, or there is no record of it.
    """
    folder = CheckpointFolder(run_folder)
    run, record = RunConfig.read(folder.config_path), read_json(folder.config_path)
    if run.size is None:
        raise UserError(
            f"--base_weights: name the weights that training started from, as {folder.config_path} "
            "does not describe the run"
        )
    if run.size != "Tiny":
        raise UserError(f"--base_weights: name the base weights of {run.size}")
    seed = int(record["run"]["seed"])
    path = folder.folder / "model" / f"initial_seed_{seed}.pt"
    if not path.is_file():
        actions = run.actions.conditioning if run.actions else None
        net = VideoDiT(preset(run.size, rope_ratios=run.rope_ratios, actions=actions).dit)
        net.init_weights(generator_for(seed, "weights", 0))  # as in training/network.py
        state = {f"net.{name}": one.bfloat16() for name, one in net.named_parameters()}
        atomic_write(path, lambda stream: torch.save(state, stream))
    return path
