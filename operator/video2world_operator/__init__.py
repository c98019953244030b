"""The control side: the API, the plan and the engines that run it. It never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video2world_operator.client import Video2World as Video2World

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``Video2World`` on first use: ``v2w`` must start quickly."""
    if name == "Video2World":
        from video2world_operator.client import Video2World

        return Video2World
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
