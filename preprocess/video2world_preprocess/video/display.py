"""Convert decoded frames as ffmpeg does: upright, all of one size, in one pixel format.

The filters are those that ``ffmpeg`` inserts automatically (``fftools/ffmpeg_filter.c``): for the
display matrix, which can flip as well as rotate a picture, so that an angle is not sufficient; for
a picture size that changes within the video; and for colors.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type

__all__ = ["Display", "display_filters", "transposed"]

Filters = list[tuple[str, str]]


def display_filters(frame: Any) -> Filters:
    """Return the filters and their arguments that make ``frame`` upright, or [] if it is."""
    # not frame.side_data: its reference cycle with the frame would keep pictures in memory
    for data in SideDataContainer(frame):  # type: ignore[call-arg]  # not in the stubs
        if data.type == Type.DISPLAYMATRIX:
            return _filters_of(struct.unpack("=9i", bytes(data)[:36]))
    return []


def _filters_of(matrix: tuple[int, ...]) -> Filters:
    a, b, _, c, d, *_ = matrix
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:  # a degenerate matrix
        return []
    angle = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if abs(angle - 90) < 1:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if abs(angle - 180) < 1:
        return [("hflip", "")] * (a < 0) + [("vflip", "")] * (d < 0)
    if abs(angle - 270) < 1:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if angle > 1:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip", "")] * (d < 0 and not angle)


class Display:
    """Converts the frames of a video, one by one, to the size of the first.

    Args:
        pixel_format: the pixel format of the result.
        even: round the size down to even numbers, as 4:2:0 chroma subsampling requires.
    """

    def __init__(self, pixel_format: str, even: bool = False) -> None:
        self._format, self._even = pixel_format, even
        self._kind: object = None
        self._graph = Graph()
        self.size: tuple[int, int] | None = None  # width and height

    def show(self, frame: Any) -> Any:
        """Return the converted frame."""
        filters = display_filters(frame)
        kind = (frame.width, frame.height, frame.format.name, filters, *_colors(frame).values())
        if kind != self._kind:
            self._graph, self._kind = self._make(frame, filters), kind
        self._graph.push(frame)
        return self._graph.pull()

    def _make(self, frame: Any, filters: Filters) -> Graph:
        width, height = frame.width, frame.height
        if transposed(filters):
            width, height = height, width
        if self.size is None:
            self.size = (width - width % 2, height - height % 2) if self._even else (width, height)
        scale = [("scale", "{}:{}".format(*self.size))] * ((width, height) != self.size)
        graph = Graph()
        graph.threads = 1  # other videos use the other cores
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base or Fraction(1, 1000)),
            **_colors(frame),
        )
        steps = [
            graph.add(name, arguments or None)
            for name, arguments in (*filters, *scale, ("format", self._format))
        ]
        graph.link_nodes(source, *steps, graph.add("buffersink")).configure()
        return graph


def transposed(filters: Filters) -> bool:
    """Whether ``filters`` swap width and height."""
    return any(name == "transpose" for name, _ in filters)


def _colors(frame: Any) -> dict[str, str]:
    return {"colorspace": str(int(frame.colorspace)), "range": str(int(frame.color_range))}
