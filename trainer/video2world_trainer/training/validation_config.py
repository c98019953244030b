"""Define the settings of the validation loss."""

from __future__ import annotations

from dataclasses import dataclass

from video2world_trainer.training.config_setting import setting

__all__ = ["DEFAULT_CLIPS", "ValidationConfig"]

DEFAULT_CLIPS = 16  # or all, if there are fewer


@dataclass(frozen=True)
class ValidationConfig:
    """When the loss on held-out clips is measured, on what, and when it ends training."""

    run_validation: bool = setting(
        "trainer.run_validation", False, "measure the loss on held-out clips"
    )
    validation_iter: int = setting(
        "trainer.validation_iter", 500, "iterations between validations", low=1
    )
    validation_clips: int = setting(
        "trainer.validation_clips",
        0,
        f"number of held-out clips; 0: {DEFAULT_CLIPS}, or all if there are fewer",
        low=0,
    )
    validation_levels: int = setting(
        "trainer.validation_levels", 4, "noise levels per held-out clip", low=3, high=64
    )
    validation_weights: str = setting(
        "trainer.validation_weights",
        "regular",
        "weights to validate: the trained ones, or their moving average",
        choices=("regular", "ema"),
    )
    stop_after_validations: int = setting(
        "trainer.stop_after_validations",
        0,
        "end training after this many validations in a row without a lower loss; 0: never",
        low=0,
    )
    validation_dir: str = setting(
        "dataloader_val.dataset.dataset_dir",
        "",
        "folder of the held-out split; empty: val next to the training split",
    )
