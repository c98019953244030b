"""Define the settings of how many clips an iteration trains on."""

from __future__ import annotations

from dataclasses import dataclass

from video2world_trainer.training.config_setting import setting

__all__ = ["BatchConfig"]


@dataclass(frozen=True)
class BatchConfig:
    """Clips per rank and iteration; times the data-parallel ranks they are the global batch."""

    batch_size: int = setting(
        "dataloader_train.batch_size", 1, "clips per rank and micro-batch", low=1
    )
    micro_batches: int = setting(
        "trainer.grad_accum_iter",
        1,
        "micro-batches per iteration, whose gradients are averaged; twice as many on half the "
        "ranks train on the same clips",
        low=1,
    )
    global_batch: int = setting(
        "trainer.global_batch",
        0,
        "clips per iteration on all ranks together, checked against ranks, batch size and "
        "micro-batches; 0: a resumed run keeps its checkpoint's",
        low=0,
    )
