"""How much arithmetic a training step needs, and what a GPU is rated at."""

from __future__ import annotations

from video2world_trainer.model.presets import DiTConfig

__all__ = ["pass_flops", "peak_flops", "step_flops"]

# Dense bfloat16 of the vendor's datasheets, by a part of the device's name; the first that fits
_RATED = {
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def step_flops(dit: DiTConfig, parameters: int, tokens: int, *, lora: bool = False) -> float:
    """Operations of forward and backward for one clip of ``tokens``, nothing computed twice.

    6 * parameters * tokens of products (4 where the weights are frozen: their gradients fall
    away), and 4 * tokens^2 * width a block in self-attention, its backward counted as 2.5
    forwards as FlashAttention's papers do.
    """
    dense = (4 if lora else 6) * parameters * tokens
    attention = 4.0 * tokens**2 * dit.model_channels * dit.num_blocks
    return dense + 3.5 * attention


def pass_flops(dit: DiTConfig, parameters: int, tokens: int) -> float:
    """Operations of one evaluation for one clip of ``tokens``, as in :func:`step_flops`."""
    return 2.0 * parameters * tokens + 4.0 * tokens**2 * dit.model_channels * dit.num_blocks


def peak_flops(device_name: str) -> float | None:
    """The rated bfloat16 operations a second of a GPU; None for one that is not listed."""
    return next((rate for part, rate in _RATED.items() if part in device_name), None)
