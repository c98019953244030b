"""Estimate how far a figure over few clips can be trusted, by the bootstrap over clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["CONFIDENCE", "FEWEST_CLIPS", "interval"]

CONFIDENCE = 0.95
# With fewer clips, even differences that all have the same sign leave more than one chance in 20.
FEWEST_CLIPS = 6
RESAMPLES = 2000

Statistic = Callable[[np.ndarray], float]


def interval(statistic: Statistic, clips: int, *, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a statistic; None with too few clips.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. The unit is the clip;
    a statistic of paired differences therefore stays paired. The same arguments give the same
    interval.

    Args:
        statistic: computes a figure from how often each clip counts, float64 [clips].
        clips: number of clips.
        seed: seed of the resampling.
    """
    if clips < FEWEST_CLIPS:
        return None
    random = np.random.default_rng(seed)
    counts = random.multinomial(clips, np.full(clips, 1 / clips), RESAMPLES).astype(np.float64)
    values = [statistic(one) for one in counts]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
