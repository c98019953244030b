"""Run one rank of ``benchmarks.many_gpus``: the train command with one iteration profiled."""

from __future__ import annotations

import os
import sys

import torch

from video2world_common.events import emit
from video2world_trainer import train
from video2world_trainer.training.trainer import Run

from .train_step_cases import kinds_of


def main() -> int:
    """Train; rank 0 reports device time by kernel kind for iteration ``BENCHMARK_PROFILE``."""
    plain, profiled = Run.step, int(os.environ["BENCHMARK_PROFILE"])

    def step(run: Run) -> None:
        on_gpu = run.world.device.type == "cuda"
        if not on_gpu or run.progress.iteration != profiled - 1:
            return plain(run)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            plain(run)
            torch.cuda.synchronize()
        if run.world.leads:
            emit(
                "benchmark_profile",
                "train",
                seconds=kinds_of(profiler),
                attention=run.attention.name,
            )

    Run.step = step  # type: ignore[assignment, method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
