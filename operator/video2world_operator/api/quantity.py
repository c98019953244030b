"""Convert Kubernetes quantities (500Gi, 100m, 8) to numbers."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["quantity"]

_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3}
_UNITS |= {unit: 1000.0**n for n, unit in enumerate("MGTPE", start=2)}
_UNITS |= {f"{unit}i": 1024.0**n for n, unit in enumerate("KMGTPE", start=1)}


@lru_cache(4096)  # thousands of nodes report the same few values
def quantity(text: str | int | float) -> float:
    """Convert a quantity to a number; raise ValueError if ``text`` is not a quantity."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(text).strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a quantity")
    return float(match[1]) * _UNITS[match[2]]
