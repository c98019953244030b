"""Describe the settings of training, for ``--help`` and the reference documentation."""

from __future__ import annotations

from typing import Any

from video2world_common.experiments import EXPERIMENTS
from video2world_trainer.training.config import SETTINGS, value_kind
from video2world_trainer.training.config_defaults import defaults_by_size
from video2world_trainer.training.config_parser import VALUE_FORMATS

__all__ = ["format_value", "settings_text"]


def settings_text() -> str:
    """Describe every setting with its meaning, values and defaults."""
    lines = ["settings (key=value; defaults of 2B first):"]
    for one in SETTINGS.values():
        metadata, defaults = one.metadata, defaults_by_size(one)
        kind = (
            f"one of {', '.join(metadata['choices'])}"
            if metadata["choices"]
            else VALUE_FORMATS[value_kind(one)]
        )
        others = [
            f"{size}: {format_value(v)}" for size, v in defaults.items() if v != defaults["2B"]
        ]
        default = ", ".join([f"default {format_value(defaults['2B'])}", *others])
        lines += [f"  {metadata['key']}", f"      {metadata['help']} ({kind}; {default})"]
    return "\n".join(
        [*lines, "", "experiments (experiment=NAME):", *(f"  {n}" for n in EXPERIMENTS)]
    )


def format_value(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(format_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"
