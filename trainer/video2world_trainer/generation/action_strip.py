"""Draw the actions that a video follows as a strip under a contact sheet's frames."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from video2world_trainer.generation.action_trace import ActionTrace

__all__ = ["COLORS", "action_strip"]

COLORS = ("#0b62c4", "#c2410c", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f", "#475569", "#a16207")
PLOT_HEIGHT, MARGIN, LINE = 90, 6, 17  # pixels: of the plot, above and below it, of a legend's line
GRID, SEAM = "#d9dee3", "#9aa5b1"


def action_strip(trace: ActionTrace, width: int, left: float, right: float) -> Image.Image:
    """Draw each dimension as a line of steps, scaled to its own range, and a legend below.

    Args:
        trace: the actions; row k is drawn from frame k to frame k + 1.
        width: of the strip in pixels.
        left: x of frame 0.
        right: x of the last frame.
    """
    font = ImageFont.load_default(size=13)
    legend = _legend(trace.names, font, width - left)
    height = PLOT_HEIGHT + 2 * MARGIN + LINE * len(legend)
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((4, MARGIN + PLOT_HEIGHT // 2 - 8), "actions", fill="black", font=font)
    bottom = MARGIN + PLOT_HEIGHT
    for y in (MARGIN, bottom):
        draw.line([(left, y), (right, y)], fill=GRID)
    places = np.linspace(left, right, len(trace.rows) + 1)
    for seam in trace.seams:
        x = places[min(max(seam, 0), len(places) - 1)]
        draw.line([(x, MARGIN), (x, bottom)], fill=SEAM)
    for number, line in enumerate(trace.scaled().T):
        heights = bottom - line * PLOT_HEIGHT
        steps = np.stack([np.repeat(places, 2)[1:-1], np.repeat(heights, 2)], axis=1)
        draw.line([tuple(step) for step in steps.tolist()], fill=_color(number), width=2)
    for row, entries in enumerate(legend):
        for number, x in entries:
            text = trace.names[number]
            place = (left + x, bottom + MARGIN + row * LINE)
            draw.text(place, text, fill=_color(number), font=font)
    return strip


def _color(number: int) -> tuple[int, ...]:
    return ImageColor.getrgb(COLORS[number % len(COLORS)])


def _legend(
    names: tuple[str, ...], font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float
) -> list[list[tuple[int, float]]]:
    """Return lines of (dimension, x): as many names to a line as fit into ``width``."""
    lines: list[list[tuple[int, float]]] = [[]]
    x = 0.0
    for number, name in enumerate(names):
        needed = font.getlength(f"{name}    ")
        if lines[-1] and x + needed > width:
            lines.append([])
            x = 0.0
        lines[-1].append((number, x))
        x += needed
    return lines
