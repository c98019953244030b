"""Define the settings of when checkpoints are saved and how many are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from video2world_trainer.training.config_setting import setting

__all__ = ["CheckpointConfig"]


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, how many are kept, and how they are written."""

    save_iter: int | Literal["auto"] = setting(
        "checkpoint.save_iter",
        500,
        "iterations between checkpoints; auto: as many as lose least time, from what a save costs "
        "and how often runs fail",
        low=1,
    )
    keep: int = setting(
        "checkpoint.keep", 0, "number of newest checkpoints to keep; 0 keeps all", low=0
    )
    asynchronous: bool = setting(
        "checkpoint.asynchronous", True, "write checkpoints in the background"
    )
