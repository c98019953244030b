"""Draw a contact sheet: one image with labeled rows of a sample's frames over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from video2world_common.files import atomic_path
from video2world_trainer.generation.action_strip import action_strip
from video2world_trainer.generation.action_trace import ActionTrace

__all__ = ["contact_sheet", "write_contact_sheet"]

COLUMNS = 6
CELL_WIDTH = 160  # least width in pixels; smaller frames are enlarged without smoothing
HEADER, LABEL, GAP = 22, 96, 4  # height of a header, width of the labels, space between cells


def contact_sheet(
    rows: Mapping[str, np.ndarray],
    fps: float,
    *,
    title: str = "",
    actions: ActionTrace | None = None,
) -> Image.Image:
    """Draw a contact sheet.

    Columns are evenly spaced from the first to the last frame of the longest video; shorter rows
    repeat their last frame.

    Args:
        rows: label to uint8 video [T, H, W, 3]; all with the same frame size.
        fps: frames per second, for the labels of the columns.
        title: text above the rows.
        actions: that the longest video follows, drawn under the rows with the same columns.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    length = max(len(video) for video in rows.values())
    moments = np.linspace(0, length - 1, min(COLUMNS, length)).round().astype(int)
    height, width = next(iter(rows.values())).shape[1:3]
    # integer factors keep enlarged frames crisp; large frames shrink to twice the least width
    scale = -(-CELL_WIDTH // width) if width < CELL_WIDTH else min(1.0, CELL_WIDTH * 2 / width)
    cell = (round(width * scale), round(height * scale))
    size = (
        LABEL + len(moments) * (cell[0] + GAP),
        HEADER * (2 if title else 1) + len(rows) * (cell[1] + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    if title:
        draw.text((GAP, GAP), title, fill="black", font=font)
    top = HEADER * (2 if title else 1)
    for column, moment in enumerate(moments):
        left = LABEL + column * (cell[0] + GAP)
        text = f"frame {moment}  {moment / fps:.2f} s"
        draw.text((left, top - HEADER + GAP), text, fill="black", font=font)
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for row, (name, video) in enumerate(rows.items()):
        y = top + row * (cell[1] + GAP)
        draw.text((GAP, y + cell[1] // 2 - 8), name, fill="black", font=font)
        for column, moment in enumerate(moments):
            frame = Image.fromarray(video[min(moment, len(video) - 1)])
            sheet.paste(frame.resize(cell, resample), (LABEL + column * (cell[0] + GAP), y))
    if actions is None:
        return sheet
    first = LABEL + cell[0] / 2
    strip = action_strip(actions, size[0], first, first + (len(moments) - 1) * (cell[0] + GAP))
    taller = Image.new("RGB", (size[0], size[1] + strip.height), "white")
    taller.paste(sheet, (0, 0))
    taller.paste(strip, (0, size[1]))
    return taller


def write_contact_sheet(
    path: Path,
    rows: Mapping[str, np.ndarray],
    fps: float,
    *,
    title: str = "",
    actions: ActionTrace | None = None,
) -> None:
    """Write :func:`contact_sheet` to ``path`` as PNG, atomically."""
    with atomic_path(path) as partial:
        contact_sheet(rows, fps, title=title, actions=actions).save(partial, "png")
