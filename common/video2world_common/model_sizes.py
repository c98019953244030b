"""Define the model sizes: their shape, and the training defaults that follow from it.

Both the operator (pods, command lines, estimates of memory and time) and the trainer (network,
schedule) read this table. Source of the values for 2B and 14B: cosmos_predict2/configs/base in
https://github.com/nvidia-cosmos/cosmos-predict2; Tiny is a demonstration model of this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SIZES", "ModelSize"]

_FRAME_SIZES = {"720p": (704, 1280), "480p": (432, 768)}
_CLIP_FRAMES = {16: 93, 10: 61}


@dataclass(frozen=True)
class ModelSize:
    """Shape of one model and the defaults of its training.

    ``rope_ratios`` are RoPE extrapolation ratios over height, width and time; ``frame_sizes`` are
    (height, width) in pixels by resolution, ``clip_frames`` pixel frames by frames per second.
    ``volume_size`` holds all weights and has room for data and checkpoints (docs/sizing.md).
    """

    model_channels: int
    num_blocks: int
    num_heads: int
    rope_ratios: tuple[float, float, float]
    nodes: int
    processes_per_node: int
    context_parallel_size: int
    device: str
    volume_size: str
    learning_rate: float = 2**-15.5
    warmup_iterations: int = 2000
    frame_sizes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: _FRAME_SIZES)
    clip_frames: Mapping[int, int] = field(default_factory=lambda: _CLIP_FRAMES)


SIZES: Mapping[str, ModelSize] = {
    "Tiny": ModelSize(
        model_channels=128,
        num_blocks=4,
        num_heads=4,
        rope_ratios=(1.0, 1.0, 1.0),
        nodes=1,
        processes_per_node=1,
        context_parallel_size=1,
        device="CPU",
        volume_size="20Gi",
        learning_rate=2e-3,
        warmup_iterations=50,
        frame_sizes={"720p": (96, 128), "480p": (64, 80)},  # as near to 0.6 times as 16 divides
        clip_frames=dict.fromkeys(_CLIP_FRAMES, 17),
    ),
    "2B": ModelSize(
        model_channels=2048,
        num_blocks=28,
        num_heads=16,
        rope_ratios=(3.0, 3.0, 1.0),
        nodes=1,
        processes_per_node=8,
        context_parallel_size=2,
        device="GPU",
        volume_size="500Gi",
    ),
    "14B": ModelSize(
        model_channels=5120,
        num_blocks=36,
        num_heads=40,
        rope_ratios=(2.0, 2.0, 20 / 24),
        nodes=4,
        processes_per_node=8,
        context_parallel_size=8,
        device="GPU",
        volume_size="2Ti",
    ),
}
