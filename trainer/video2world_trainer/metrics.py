"""How near a generated video is to the truth."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["psnr"]


def psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 videos [T, H, W, 3]; infinite when equal.

    10 log10(255^2 / MSE), the mean squared error taken over all frames at once.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.
    """
    if video.shape != truth.shape or video.size == 0:
        raise ValueError(f"cannot compare {video.shape} with {truth.shape}")
    error = np.square(video.astype(np.float64) - truth.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
