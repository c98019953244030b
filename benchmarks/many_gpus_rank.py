"""Run one rank of ``benchmarks.many_gpus``: the train command with one iteration profiled."""

from __future__ import annotations

import os
import sys

import torch

from video2world_common.events import emit
from video2world_trainer import train
from video2world_trainer.training.trainer import Trainer

from .train_step_cases import kinds_of


def main() -> int:
    """Train; rank 0 reports device time by kernel kind for iteration ``BENCHMARK_PROFILE``."""
    plain, profiled = Trainer.step, int(os.environ["BENCHMARK_PROFILE"])

    def step(trainer: Trainer) -> None:
        on_gpu = trainer.world.device.type == "cuda"
        if not on_gpu or trainer.progress.iteration != profiled - 1:
            return plain(trainer)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            plain(trainer)
            torch.cuda.synchronize()
        if trainer.world.is_main_rank:
            emit(
                "benchmark_profile",
                "train",
                seconds=kinds_of(profiler),
                attention=trainer.setup.attention.name,
            )

    Trainer.step = step  # type: ignore[assignment, method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
