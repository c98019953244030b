"""Count the floating-point operations of the network."""

from __future__ import annotations

from video2world_trainer.model.presets import DiTConfig

__all__ = ["pass_flops", "step_flops"]


def step_flops(
    dit: DiTConfig, parameters: int, tokens: int, *, lora: bool = False, density: float = 1.0
) -> float:
    """Count the operations of a forward and backward pass for one clip, without recomputation.

    6 * parameters * tokens in matrix products (4 with frozen weights, which have no gradients),
    and 4 * tokens^2 * width per block in self-attention, whose backward pass counts as 2.5
    forward passes, as in the FlashAttention papers.

    Args:
        dit: the network's configuration.
        parameters: number of parameters of the network.
        tokens: tokens of the clip.
        lora: whether the weights are frozen and only adapters are trained.
        density: share of query-key pairs that self-attention computes.
    """
    dense = (4 if lora else 6) * parameters * tokens
    attention = 4.0 * density * tokens**2 * dit.model_channels * dit.num_blocks
    return dense + 3.5 * attention


def pass_flops(dit: DiTConfig, parameters: int, tokens: int) -> float:
    """Count the operations of one forward pass for one clip; see :func:`step_flops`."""
    return 2.0 * parameters * tokens + 4.0 * tokens**2 * dit.model_channels * dit.num_blocks
