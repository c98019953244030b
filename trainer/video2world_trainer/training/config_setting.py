"""Define one setting of a training run: a field with its dotted name, meaning and bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["setting"]


def setting(
    name: str,
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
) -> Any:
    """Define a field by its dotted name, default, meaning and bounds."""
    metadata = {"key": name, "help": help_text, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)
