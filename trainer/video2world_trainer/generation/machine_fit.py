"""Estimate whether a sample fits this machine: memory on a GPU, time on a CPU."""

from __future__ import annotations

import os

import torch

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.sample_memory import sample_bytes
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.clip_format import ClipFormat
from video2world_trainer.model.flops import pass_flops
from video2world_trainer.model.presets import DiTConfig, Preset

__all__ = ["needs_offload", "warn_of_cpu_time"]

CPU_FLOPS = 2e10  # per second and core in float32: a rough value for a laptop


def needs_offload(
    dit: DiTConfig, parameters: int, clip: ClipFormat, world: World, branches: int, ranks: int
) -> bool:
    """Return whether the GPU is too small for all weights and the decoder; logs a note if so.

    ``branches`` of guidance are evaluated on this GPU, whose tokens ``ranks`` GPUs share.
    """
    if world.device.type != "cuda":
        return False
    width, (height, breadth) = dit.model_channels, clip.size
    needed = sample_bytes(
        2 * parameters, width, clip.tokens / ranks, branches, height * breadth, offload=False
    )
    available = torch.cuda.get_device_properties(world.device).total_memory
    if needed <= 0.9 * available:
        return False
    if world.is_main_rank:
        say(
            f"note: about {needed / 2**30:.0f} GiB are needed and this GPU has "
            f"{available / 2**30:.0f}: --offload is on"
        )
    return True


def warn_of_cpu_time(
    preset: Preset, parameters: int, tokens: int, passes: int, *, force: bool
) -> None:
    """Log how long a sample of ``passes`` network evaluations takes without a GPU.

    Raises:
        UserError: the model is 14B and ``force`` is not set.
    """
    flops = pass_flops(preset.dit, parameters, tokens) * passes
    hours = flops / (CPU_FLOPS * (os.cpu_count() or 1)) / 3600
    duration = f"{hours:.0f} hours" if hours > 2 else f"{max(1, hours * 60):.0f} min"
    if preset.size == "14B" and not force:
        raise UserError(
            f"--model_size 14B: there is no GPU here; a sample would take about {duration} and "
            "60 GB of memory: run it on a GPU, or add --force"
        )
    say(f"warning: no GPU: a {preset.size} sample takes about {duration} on this CPU")
