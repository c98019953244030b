"""Tell whether weights were trained with dense or sparse self-attention."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from video2world_common.files import read_json

__all__ = ["DENSE_WEIGHTS", "SPARSE_WEIGHTS", "pattern_of", "published_pattern", "recorded_pattern"]

# paths of NVIDIA's published weights, as regular expressions that RE2 understands too
DENSE_WEIGHTS = r"(^|/)model-[0-9]+p-[0-9]+fps[.][a-z]+$"
SPARSE_WEIGHTS = r"(^|/)model-[0-9]+p-[0-9]+fps-natten[.][a-z]+$"


def published_pattern(path: str) -> str | None:
    """Return the pattern that the name of published weights tells; None for other names."""
    if re.search(DENSE_WEIGHTS, path):
        return "dense"
    return "sparse" if re.search(SPARSE_WEIGHTS, path) else None


def recorded_pattern(content: Any) -> str | None:
    """Return the pattern in the ``config.json`` of a run; None if it is not a run's record."""
    if not isinstance(content, dict) or "run" not in content:
        return None
    return str(content.get("attention_pattern", "dense"))


def pattern_of(path: Path) -> str | None:
    """Return how the weights at ``path`` were trained: "dense", "sparse", or None if unknown.

    The record next to them precedes their name.

    Raises:
        ValueError: the record is damaged.
    """
    recorded = recorded_pattern(read_json(path.parent / "config.json"))
    return recorded or published_pattern(str(path))
