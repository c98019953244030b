"""Draw line charts as SVG, for a page without scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from video2world_trainer.results.rendering import render

__all__ = ["line_chart"]

WIDTH, HEIGHT = 560, 220  # of the drawing, in SVG user units
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 34  # margins around the plot area
MAX_POINTS = 300  # more are averaged in groups of neighbors
TICKS = 5


Points = Sequence[tuple[float, float]]


def line_chart(
    points: Points,
    *,
    title: str,
    x_label: str,
    y_label: str,
    markers: bool = False,
    name: str = "",
    others: Mapping[str, Points] | None = None,
) -> Markup:
    """Draw ``points`` as one line with labeled axes, and further lines with a legend.

    Args:
        points: finite (x, y) pairs in order of x.
        title: shown above the chart.
        x_label: name of the horizontal axis.
        y_label: name or unit of the vertical axis, shown next to the title.
        markers: mark every point; for few points.
        name: of the line in the legend, if there are others.
        others: further lines by name, whose points are marked; those of less than two points are
            left out.

    Returns:
        A ``<figure>`` element; empty for fewer than two points.
    """
    points = _downsample(points)
    if len(points) < 2:
        return Markup("")
    further = {label: _downsample(line) for label, line in (others or {}).items() if len(line) > 1}
    every = [*points, *(point for line in further.values() for point in line)]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    left, right = min(xs), max(xs)
    rows = _ticks(min(ys), max(ys))
    low, high = min(rows[0], *ys), max(rows[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        """Convert data coordinates to SVG coordinates."""
        plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        x_share = (x - left) / (right - left or 1)
        y_share = (y - low) / (high - low or 1)
        return LEFT + plot_width * x_share, TOP + plot_height * (1 - y_share)

    return render(
        "line_chart.svg.jinja",
        title=title,
        x_label=x_label,
        y_label=y_label,
        markers=markers,
        width=WIDTH,
        height=HEIGHT,
        plot_left=LEFT,
        plot_right=WIDTH - RIGHT,
        plot_bottom=HEIGHT - BOTTOM,
        rows=[(place(left, y)[1], f"{y:g}") for y in rows],
        columns=[(place(x, low)[0], f"{x:g}") for x in _ticks(left, right) if left <= x <= right],
        points=[place(*point) for point in points],
        others=[[place(*point) for point in line] for line in further.values()],
        legend=[name, *further] if further else [],
    )


def _downsample(points: Points) -> list[tuple[float, float]]:
    """Reduce to at most ``MAX_POINTS`` points, each the mean of its neighbors."""
    count = min(len(points), MAX_POINTS)
    edges = [len(points) * n // count for n in range(count + 1)] if count else []
    groups = [points[a:b] for a, b in pairwise(edges)]
    return [
        (math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from just below ``low`` to just above ``high``."""
    span = high - low
    if not math.isfinite(span) or span <= abs(high) * 1e-9:
        span = abs(high) * 0.1 or 1.0
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
