"""Resize frames to the resolution of the model."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from video2world_common.exit_codes import UserError

__all__ = ["Geometry", "fit"]

Geometry = Literal["crop", "stretch"]


def fit(frames: np.ndarray, size: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Resize uint8 ``frames`` [T, h, w, 3] to ``size`` = (H, W), antialiased bilinear.

    ``crop`` scales to cover ``size`` and crops the center, as upstream's inference does;
    ``stretch`` ignores the aspect ratio, as upstream's training does.

    Raises:
        UserError: ``geometry`` is neither.
    """
    import torch
    from torch.nn.functional import interpolate

    if geometry not in ("crop", "stretch"):
        raise UserError(f"geometry: {geometry!r} is unknown; use crop or stretch")
    height, width = size
    source_height, source_width = frames.shape[1:3]
    inner = (height, width)
    if geometry == "crop":
        scale = max(height / source_height, width / source_width)
        # minus an epsilon: 96 * (128 / 128) must not be rounded up to 97
        inner = (math.ceil(source_height * scale - 1e-6), math.ceil(source_width * scale - 1e-6))
    top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
    output = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):  # one by one, as floats take four times the memory
        if inner != (source_height, source_width):
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
            pixels = interpolate(
                pixels, inner, mode="bilinear", align_corners=False, antialias=True
            )
            frame = pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        output[index] = frame[top : top + height, left : left + width]
    return output
