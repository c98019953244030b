"""Define the named experiments of the guide: what each of them trains, and how.

The guide is NVIDIA's for post-training Cosmos-Predict2 Video2World on AgiBotWorld-Alpha. Source of
the values: cosmos_predict2/configs/base/experiment/agibot_head_center_fisheye_color.py in
https://github.com/nvidia-cosmos/cosmos-predict2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATASET", "EXPERIMENTS", "PREFIX", "Experiment", "full_name"]

PREFIX = "predict2_video2world_training_"
DATASET = "agibot_head_center_fisheye_color"


@dataclass(frozen=True)
class Experiment:
    """Settings of one experiment; frame and clip sizes follow from resolution and fps."""

    job_name: str
    model_size: str
    resolution: str
    fps: int
    context_parallel_size: int
    shard_size: int
    # The 2B experiments train at ratio 2, although its base weights were trained at 3.
    rope_ratio: float = 2.0
    geometry: str = "stretch"
    iterations: int = 100_000
    save_iterations: int = 500

    @property
    def name(self) -> str:
        """Full name, as in the guide's command line."""
        return PREFIX + self.job_name


def _experiment(size: str, resolution: str | None = None, fps: int | None = None) -> Experiment:
    suffix = f"_{resolution}_{fps}fps" if resolution else ""
    large = size == "14B"
    return Experiment(
        job_name=f"{size.lower()}_{DATASET}{suffix}",
        model_size=size,
        resolution=resolution or "720p",
        fps=fps or 16,
        context_parallel_size=8 if large else 1 if resolution == "480p" else 2,
        shard_size=32 if large and not resolution else 8,
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for size in ("2B", "14B")
    for experiment in (
        _experiment(size),
        *(_experiment(size, r, fps) for r in ("480p", "720p") for fps in (10, 16)),
    )
}
"""Experiments by their full names."""


def full_name(name: str) -> str:
    """Return ``name`` with the prefix of the experiments, which the guide's users often omit."""
    return name if name.startswith(PREFIX) else PREFIX + name
