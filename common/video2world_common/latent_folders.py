"""Name the folders of a split that hold latents: one for each frame size."""

from __future__ import annotations

__all__ = ["LATENTS", "latents_folder"]

LATENTS = "latents"  # of the run's final frame size


def latents_folder(size: tuple[int, int], final: tuple[int, int]) -> str:
    """Return the folder of latents of frames of ``size`` = (height, width) pixels.

    Those of the ``final`` size, at which a run ends, are where a run at a single size has them.
    """
    return LATENTS if size == final else f"{LATENTS}_{size[0]}x{size[1]}"
