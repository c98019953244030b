"""Define what a model size decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["SIZES"]


class Size(NamedTuple):
    """What a model size decides (reference/cosmos-predict2.md, sections 1.1 and 2.3)."""

    nodes: int
    processes: int
    context_parallel: int
    heads: int
    device: str
    rope: tuple[float, float, float]  # height, width, time
    learning_rate: float
    warmup: int
    volume: str  # what docs/sizing.md says of all weights, and room


SIZES: Mapping[str, Size] = {
    "Tiny": Size(1, 1, 1, 4, "CPU", (1.0, 1.0, 1.0), 2e-3, 50, "20Gi"),
    "2B": Size(1, 8, 2, 16, "GPU", (3.0, 3.0, 1.0), 2**-15.5, 2000, "500Gi"),
    "14B": Size(4, 8, 8, 40, "GPU", (2.0, 2.0, 0.8333333333333334), 2**-15.5, 2000, "2Ti"),
}
