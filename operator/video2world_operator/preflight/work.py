"""Describe work whose time is measured or estimated: a training step, a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["CPU", "Kernel", "SampleWork", "StepWork"]

CPU = "CPU"
Kernel = Literal["FlashAttention4", "Torch"]


@dataclass(frozen=True)
class StepWork:
    """One training step: forward, backward and update, from cached latents.

    ``frames`` and ``video_size`` (height, width) are those of a clip in pixels. ``batch_size``
    counts the clips of a group of ``context_parallel`` GPUs in one of the ``micro_batches`` of the
    step. ``transfers`` is false for one rank's share, measured without the other ranks. ``gpu`` is
    an entry of :data:`video2world_common.gpu_rates.RATED_FLOPS`, or :data:`CPU`.
    """

    size: str
    frames: int
    video_size: tuple[int, int]
    sparse: bool = False
    lora: bool = False
    batch_size: int = 1
    micro_batches: int = 1
    gpus: int = 1
    context_parallel: int = 1
    kernel: Kernel = "FlashAttention4"
    gpu: str = "H200"
    transfers: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of one clip."""
        return _tokens(self.frames, self.video_size)

    def distance(self, other: StepWork) -> tuple[float, ...]:
        """Compare with ``other``, the most important difference first.

        Neither clip nor batch count: the times of all clips then follow from one record, and grow
        with the clip.
        """
        return (
            self.sparse != other.sparse,
            self.size != other.size,
            self.kernel != other.kernel,
            self.lora != other.lora,
            self.gpu != other.gpu,
            abs(math.log2(self.context_parallel / other.context_parallel)),
            abs(math.log2(self.gpus / other.gpus)),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Describe each setting, for messages and tables."""
        split = f" at context parallel {self.context_parallel}" if self.context_parallel > 1 else ""
        layout = f"{self.gpus} x {self.gpu}{split}"
        if self.gpu == CPU:
            layout = f"{self.gpus} CPU process{'es' if self.gpus > 1 else ''}{split}"
        if not self.transfers:
            layout = f"one rank of {layout}, without transfers"
        kernel = "flash-attn-4"
        if self.gpu == CPU or self.kernel == "Torch":
            kernel = "flex attention" if self.sparse else "PyTorch's attention"
        return (
            self.size,
            "LoRA" if self.lora else "all weights",
            "sparse" if self.sparse else "dense",
            _clip(self.frames, self.video_size),
            f"batch size {self.batch_size}"
            + (f" x {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""),
            kernel,
            layout,
        )

    @property
    def text(self) -> str:
        """Short description, for messages and tables."""
        return ", ".join(self.parts)


@dataclass(frozen=True)
class SampleWork:
    """One video generated from a loaded model, from the prompt's embedding to the mp4.

    ``evaluations`` of the network count both branches of guidance; ``gpus`` share one video.
    """

    size: str
    frames: int
    video_size: tuple[int, int]
    sparse: bool = False
    approximate: bool = False
    evaluations: int = 72
    gpus: int = 1
    gpu: str = "H200"

    @property
    def tokens(self) -> int:
        """Tokens of the video."""
        return _tokens(self.frames, self.video_size)

    def distance(self, other: SampleWork) -> tuple[float, ...]:
        """Compare with ``other``, the most important difference first."""
        return (
            self.size != other.size,
            self.sparse != other.sparse,
            self.approximate != other.approximate,
            self.gpus != other.gpus,
            self.gpu != other.gpu,
            abs(self.frames - other.frames),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Describe each setting, for messages and tables."""
        return (
            self.size,
            "sparse" if self.sparse else "dense",
            "approximate" if self.approximate else "exact",
            _clip(self.frames, self.video_size),
            f"{self.evaluations} evaluations",
            f"{self.gpus} x {self.gpu}",
        )

    @property
    def text(self) -> str:
        """Short description, for messages and tables."""
        return ", ".join(self.parts)


def _tokens(frames: int, size: tuple[int, int]) -> int:
    height, width = size
    return (1 + (frames - 1) // 4) * (height // 16) * (width // 16)


def _clip(frames: int, size: tuple[int, int]) -> str:
    return f"{frames} frames of {size[0]}x{size[1]}"
