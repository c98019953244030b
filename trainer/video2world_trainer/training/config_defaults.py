"""Derive settings from the model size and from the guide's experiments."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from video2world_common.experiments import Experiment
from video2world_common.model_sizes import SIZES
from video2world_trainer.model.presets import PRESETS

__all__ = ["defaults_by_size", "experiment_settings", "size_defaults"]


def size_defaults(size: str) -> dict[str, Any]:
    """Return the fields that follow from a model size."""
    preset, shared = PRESETS[size], SIZES[size]
    return {
        "num_frames": shared.clip_frames[16],
        "video_size": shared.frame_sizes["720p"],
        "text_length": preset.text_tokens,
        "cache": size == "Tiny",  # its data set takes a few megabytes
        "asynchronous": size != "Tiny",  # its checkpoints are written in no time
        "shard_size": {"Tiny": 1, "2B": 8, "14B": 32}[size],
        "rope_h": preset.dit.rope_ratio_h,
        "rope_w": preset.dit.rope_ratio_w,
        "rope_t": preset.dit.rope_ratio_t,
        "learning_rate": shared.learning_rate,
        "weight_decay": preset.weight_decay,
        "warm_up_steps": shared.warmup_iterations,
        "cycle_length": preset.cycle_length,
        "f_max": preset.f_max,
        "f_min": preset.f_min,
        "f_start": preset.f_start,
    }


def experiment_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the fields that an experiment sets."""
    size = SIZES[experiment.model_size]
    return {
        "size": experiment.model_size,
        "geometry": experiment.geometry,
        "name": experiment.job_name,
        "max_iter": experiment.iterations,
        "save_iter": experiment.save_iterations,
        "shard_size": experiment.shard_size,
        "context_parallel_size": experiment.context_parallel_size,
        "num_frames": size.clip_frames[experiment.fps],
        "video_size": size.frame_sizes[experiment.resolution],
        "rope_h": experiment.rope_ratio,
        "rope_w": experiment.rope_ratio,
    }


def defaults_by_size(setting: Field[Any]) -> dict[str, Any]:
    """Return a setting's default for each model size."""
    return {size: size_defaults(size).get(setting.name, setting.default) for size in PRESETS}
