"""List the rated speed of GPUs, by which times on one follow from those measured on another."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["RATED_FLOPS", "gpu_kind"]

# Dense bfloat16 FLOP/s of NVIDIA's datasheets; the first whose words a device name has, applies
RATED_FLOPS: Mapping[str, float] = {
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def gpu_kind(device_name: str) -> str | None:
    """Return the entry of :data:`RATED_FLOPS` for a GPU; None if it is not listed.

    ``device_name`` is that of the driver (``NVIDIA H100 80GB HBM3``) or of a node's label
    (``NVIDIA-H100-80GB-HBM3``).
    """
    words = set(re.split(r"[\s_-]+", device_name.lower()))
    return next((kind for kind in RATED_FLOPS if words.issuperset(kind.lower().split())), None)
