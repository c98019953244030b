"""Line charts as SVG text, to be put into a page that has no scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["curve"]

WIDTH, HEIGHT = 560, 220  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 34
POINTS = 300  # at most; neighbours are averaged
TICKS = 5


def curve(
    points: Sequence[tuple[float, float]], *, title: str, across: str, up: str, dots: bool = False
) -> str:
    """``points`` (x, y; in order of x, finite) as one line, with axes named ``across`` and ``up``.

    ``dots`` marks every point, for few of them. Empty where there are fewer than two.
    """
    points = _thinned(points)
    if len(points) < 2:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(xs)
    rows = _ticks(min(ys), max(ys))
    low, high = min(rows[0], *ys), max(rows[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        inner_x, inner_y = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across_ = (x - left) / (right - left or 1)
        return LEFT + inner_x * across_, TOP + inner_y * (1 - (y - low) / (high - low or 1))

    parts = []
    for y in rows:
        _, at = place(left, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(left, right):
        if left <= x <= right:
            at, _ = place(x, low)
            parts.append(
                f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
            )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(across)}</text>'
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline points="{line}"/>')
    if dots:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in (place(*p) for p in points)
        ]
    return (
        f'<figure class="curve"><figcaption>{html.escape(title)} '
        f"<small>{html.escape(up)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points: means of neighbours."""
    count = min(len(points), POINTS)
    edges = [len(points) * n // count for n in range(count + 1)] if count else []
    groups = [points[a:b] for a, b in pairwise(edges)]
    return [
        (math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from just below ``low`` to just above ``high``."""
    span = high - low
    if not math.isfinite(span) or span <= abs(high) * 1e-9:
        span = abs(high) * 0.1 or 1.0
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
