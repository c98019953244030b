"""Encode frames as H.264 video.

PyAV writes through a Python file, so that a full disk raises an OSError instead of truncating the
video silently.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_path

__all__ = ["Writer", "write_video"]

# x264's output depends on its number of threads, which by default depends on the machine: it is
# fixed, so that the same frames give the same file everywhere. mbtree is off: with AVX-512 it reads
# beyond small pictures, which makes the output vary.
# At the same crf, "superfast" is as close to the frames as "medium", at about the same size, in a
# quarter of the time (docs/inference.md). Samples are written while they are decoded.
WRITER_OPTIONS = {"threads": 8, "preset": "superfast", "x264-params": "mbtree=0"}


class Writer:
    """Encodes frames one by one to ``final``, which is created when the ``with`` block succeeds."""

    def __init__(
        self, final: Path, fps: Fraction, width: int, height: int, options: dict[str, Any]
    ) -> None:
        self.final, self.fps = final, fps
        self.options = {name: str(value) for name, value in options.items()}
        # yuv420p has half the chroma resolution, so the size has to be even
        self.width, self.height = width - width % 2, height - height % 2
        if self.width < 2 or self.height < 2:
            raise UserError(f"{final}: {width}x{height} is too small for a video")
        self.count = 0

    def __enter__(self) -> Writer:
        self._stack = contextlib.ExitStack()
        partial = self._stack.enter_context(atomic_path(self.final))
        try:
            self._file = self._stack.enter_context(partial.open("wb"))
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream(
                "libx264", rate=self.fps, options=self.options
            )
            self._stream.width, self._stream.height = self.width, self.height
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = 1 / self.fps
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def like(self, first: Any, aspect: Fraction | None) -> None:
        """Copy a frame's color properties, and set the aspect ratio of its pixels."""
        target = self._stream.codec_context
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(target, tag, getattr(first, tag))
        if aspect:
            target.sample_aspect_ratio = aspect

    def add(self, frame: Any) -> None:
        """Encode one frame, scaled to the writer's size.

        Raises:
            UserError: the encoder does not support the size.
        """
        frame = frame.reformat(width=self.width, height=self.height, format="yuv420p")
        frame.pts, frame.time_base = self.count, 1 / self.fps
        frame.pict_type = 0  # the encoder chooses, regardless of the source's key frames
        self.count += 1
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            raise UserError(
                f"{self.final}: pictures of {self.width}x{self.height} cannot be encoded "
                f"({error.strerror}); scale the video down"
            ) from error
        self._container.mux(packets)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._file.flush()
                os.fsync(self._file.fileno())
            else:
                with contextlib.suppress(Exception):
                    self._container.close()
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)


def write_video(
    path: Path | str,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: Fraction | float,
    crf: int = 18,
) -> None:
    """Write uint8 RGB ``frames`` [T, H, W, 3] as H.264 yuv420p in MP4, atomically.

    ``frames`` may be an iterable of consecutive parts, each encoded before the next is requested.
    The same frames give the same bytes. Odd sizes are scaled to even ones. ``crf`` is x264's
    constant rate factor, from 0 (lossless) to 51.

    Raises:
        ValueError: ``frames`` have another shape or type.
        OSError: the file cannot be written, for example because the disk is full; no partial file
            is left.
    """
    path = Path(path)
    parts = iter([frames] if isinstance(frames, np.ndarray) else frames)
    first = _checked(next(parts, np.empty(0)))
    rate = Fraction(fps).limit_denominator(100_000)
    options = {"crf": crf} | WRITER_OPTIONS
    with Writer(path, rate, first.shape[2], first.shape[1], options) as writer:
        for part in itertools.chain([first], map(_checked, parts)):
            for frame in part:
                pixels = np.ascontiguousarray(frame)
                writer.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))


def _checked(part: np.ndarray) -> np.ndarray:
    if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] != 3 or len(part) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {part.dtype} {part.shape}")
    return part
