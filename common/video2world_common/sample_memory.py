"""Estimate the GPU memory of a sample, for the operator's checks and the trainer's use of offload.

The constants come from two runs (docs/inference.md): a sample of 2B at 720p peaked at 19.2 GiB, and
at 8.28 GiB with weights in host memory. In both the decoder's activations are the largest part;
they scale with the pixels of a frame.
"""

from __future__ import annotations

__all__ = ["network_bytes", "sample_bytes"]

_GIB = 2**30
# Of 704x1280, with 16 frames per pass of the decoder, and with 4, as it decodes with offload.
_DECODER, _DECODER_OFFLOAD = 15.56 * _GIB, 7.81 * _GIB
_REMAINING = 0.13  # of the weights: two blocks, and all projections of the caption


def network_bytes(weights: float, width: int, tokens: float, branches: int) -> float:
    """Estimate the memory of one evaluation: weights and one block's activations.

    Activations are 4 tensors of tokens x width and the MLP's inner tensor, 4 times as wide, in
    bfloat16, per branch of guidance. For 2B and 84,480 tokens the estimate is 8.8 GiB; 8.63 were
    measured.

    Args:
        weights: bytes of the weights.
        width: channels of the network.
        tokens: tokens of the clip on one GPU.
        branches: branches of guidance that the GPU evaluates together.
    """
    return weights + tokens * width * 8 * 2 * branches


def sample_bytes(
    weights: float, width: int, tokens: float, branches: int, pixels: int, *, offload: bool
) -> float:
    """Estimate the memory of the GPU that samples and decodes.

    Args:
        weights: bytes of the weights.
        width: channels of the network.
        tokens: tokens of the clip on one GPU.
        branches: branches of guidance on the GPU; with ``offload`` one is evaluated at a time.
        pixels: height x width of a frame.
        offload: whether the blocks' weights are in host memory.
    """
    decoder = _DECODER
    if offload:
        weights, decoder, branches = _REMAINING * weights, _DECODER_OFFLOAD, 1
    network = network_bytes(weights, width, tokens, branches)
    return max(network, weights + decoder * pixels / (704 * 1280))
