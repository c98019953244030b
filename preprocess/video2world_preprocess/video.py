"""Video files in and out: what is in one, its frames as they are shown, and a new one.

Everything goes through PyAV. A file that cannot be used raises :class:`UserError` naming it; the
writer works through a Python file, so that a full disk is an ``OSError`` instead of a short video.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from .decoding import VideoInfo, decoded, frame_rate, opened, shown_times
from .display import Display
from .files import atomic_path
from .stage import UserError
from .survey import Survey, survey

__all__ = [
    "Geometry",
    "VideoInfo",
    "Writer",
    "fit",
    "frames_of",
    "probe",
    "read_fitted",
    "read_frames",
    "write_video",
]

Geometry = Literal["crop", "stretch"]

# The bytes that x264 makes depend on its number of threads, which by default is the machine's:
# fixed here, the same frames give the same file everywhere. Without mbtree: with AVX-512 that reads
# beyond small pictures, and makes other bytes each time.
# "superfast" is as near to the frames at the same quality setting as "medium", at about the same
# size, in a quarter of the time (docs/inference.md): a sample is written while it is decoded.
WRITER_EFFORT = {"threads": 8, "preset": "superfast", "x264-params": "mbtree=0"}


def probe(path: Path | str) -> VideoInfo:
    """Return how many frames the file shows and their rate and size, without decoding one.

    Raises:
        UserError: missing, empty, corrupt or frameless file.
    """
    path = Path(path)
    with opened(path) as (container, stream):
        index, length = stream.index_entries, path.stat().st_size
        if (
            stream.frames
            and stream.frames == len(index)
            and not any(entry.is_discard or entry.pos + entry.size > length for entry in index)
        ):
            frames, rate = stream.frames, frame_rate(stream, path)
        else:
            # The header does not say it all (Matroska), counts what an edit list hides, or counts
            # what is cut off.
            times = shown_times(container, stream)
            frames, rate = len(times), frame_rate(stream, path, times)
        if frames == 0:
            raise UserError(f"{path}: the video has no frames; copy or download it again")
        info = VideoInfo(frames, rate, stream.width, stream.height)
    return dataclasses.replace(info, frames=frames - _not_shown_at_start(path))


def _not_shown_at_start(path: Path) -> int:
    """Count the frames at the start that ffmpeg skips, as they need others before the key frame.

    A file that was cut from a longer one without encoding may have such, which are to be shown
    before the key frame, or at no time that the container can tell. Only then is anything decoded.
    """
    with opened(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size)
        start = list(itertools.islice(packets, 32))
        times = [packet.pts for packet in start]
        if times[0] is None or all(time is not None and time >= times[0] for time in times):
            return 0
        expected, shown = sum(not packet.is_discard for packet in start), 0
        for packet in [*start, None]:
            try:
                shown += len(stream.decode(packet))
            except av.FFmpegError:  # a frame that is missing, not one to be skipped
                shown += 1
        return max(0, expected - shown)


def frames_of(
    path: Path | str,
    start: int = 0,
    stop: int | None = None,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[np.ndarray]:
    """Yield the frames ``start .. stop - 1`` (to the end without ``stop``), uint8 RGB [H, W, 3].

    They are upright and of one size, the first one's, as ffmpeg shows them. The numbers are those
    of :func:`survey`: a frame that cannot be decoded has one, too. Of the frames only those are
    yielded, and converted, whose numbers are ``wanted``.

    Raises:
        UserError: unusable file, or one of the frames is damaged.
    """
    path, trouble, waiting = Path(path), [], list[int]()

    def before(packet: Any) -> None:
        if packet.size and not packet.is_discard and packet.pts is not None:
            heapq.heappush(waiting, packet.pts)

    def leaves_a_gap(frame: Any) -> bool:
        passed = 0
        while waiting and frame.pts is not None and waiting[0] <= frame.pts:
            passed += heapq.heappop(waiting) < frame.pts
        return passed > 0

    display, known = Display("rgb24"), None
    with opened(path) as (container, stream):
        for place, frame in enumerate(decoded(container, stream, trouble.append, before)):
            if known is None and (leaves_a_gap(frame) or trouble or frame.is_corrupt):
                known = _without_fault(path, start, stop)
            number = place if known is None else known.numbers[place]
            if known is not None and place and (number < 0 or number in known.faults):
                continue
            if stop is not None and number >= stop:
                return
            if place == 0 or (number >= start and wanted(number)):
                pixels = display.show(frame)  # the first one always: the others have its size
                if number >= start and wanted(number):
                    yield np.asarray(pixels.to_ndarray())
        if trouble and known is None:
            _without_fault(path, start, stop)


def _without_fault(path: Path, start: int, stop: int | None) -> Survey:
    """Survey the video, whose frames ``start .. stop - 1`` are wanted, as far as there are any.

    Raises:
        UserError: one of these frames is damaged.
    """
    known = survey(path)
    if reason := known.fault(start, None if stop is None else min(stop, known.info.frames)):
        raise UserError(reason)
    return known


def read_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    change: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> np.ndarray:
    """Read frames ``start .. start + count`` (to the end without ``count``) as uint8 [T, H, W, 3].

    Each is put through ``change`` on the way, to be made smaller, say, before the next is read.

    Raises:
        UserError: unusable file, one that ends before the last frame asked for, or a damaged frame.
    """
    stop = None if count is None else start + count
    frames = [change(pixels) for pixels in frames_of(path, start, stop)]
    if not frames or (count is not None and len(frames) < count):
        wanted = "one frame" if count is None else f"{count} frames"
        raise UserError(
            f"{path}: {wanted} from frame {start} on wanted, {len(frames)} are there; "
            "the video is too short or truncated"
        )
    return np.stack(frames)


class Writer:
    """Encodes frames one by one to ``final``, which appears when the ``with`` block succeeds."""

    def __init__(
        self, final: Path, fps: Fraction, width: int, height: int, options: dict[str, Any]
    ) -> None:
        self.final, self.fps = final, fps
        self.options = {name: str(value) for name, value in options.items()}
        # chroma of yuv420p is halved: an odd last row or column cannot be coded
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
        """Carry the colour tags of a frame and the aspect of its pixels over to the file."""
        target = self._stream.codec_context
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(target, tag, getattr(first, tag))
        if aspect:
            target.sample_aspect_ratio = aspect

    def add(self, frame: Any) -> None:
        """Encode one frame, brought to the writer's size."""
        frame = frame.reformat(width=self.width, height=self.height, format="yuv420p")
        frame.pts, frame.time_base = self.count, 1 / self.fps
        frame.pict_type = 0  # let the encoder choose; the source's key frames mean nothing here
        self.count += 1
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            raise UserError(
                f"{self.final}: pictures of {self.width}x{self.height} cannot be encoded "
                f"({error.strerror}); bring the video to a smaller size"
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
    """Write uint8 RGB ``frames`` [T, H, W, 3] as H.264 yuv420p MP4; the file appears when whole.

    ``frames`` may come in parts along time, each coded before the next is asked for. The same
    frames give the same bytes. An odd last row or column is scaled away. ``crf`` is x264's constant
    rate factor (0 lossless .. 51).

    Raises:
        ValueError: ``frames`` are not as described.
        OSError: the disk is full, or the like; nothing is left behind.
    """
    path = Path(path)
    parts = iter([frames] if isinstance(frames, np.ndarray) else frames)
    first = _frames_of(next(parts, np.empty(0)))
    rate = Fraction(fps).limit_denominator(100_000)
    options = {"crf": crf} | WRITER_EFFORT
    with Writer(path, rate, first.shape[2], first.shape[1], options) as writer:
        for part in itertools.chain([first], map(_frames_of, parts)):
            for frame in part:
                pixels = np.ascontiguousarray(frame)
                writer.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))


def _frames_of(part: np.ndarray) -> np.ndarray:
    if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] != 3 or len(part) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {part.dtype} {part.shape}")
    return part


def read_fitted(
    path: Path | str,
    size: tuple[int, int],
    geometry: Geometry,
    start: int = 0,
    count: int | None = None,
) -> np.ndarray:
    """As :func:`read_frames`, each frame brought to ``size`` (see :func:`fit`) as it is read.

    Raises:
        UserError: as :func:`read_frames`.
    """
    return read_frames(
        path, start, count, lambda pixels: np.asarray(fit(pixels[None], size, geometry)[0])
    )


def fit(frames: np.ndarray, size: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Resize uint8 ``frames`` [T, h, w, 3] to ``size`` = (H, W), antialiased bilinear.

    ``crop`` scales to cover and cuts the centre (upstream's inference); ``stretch`` ignores the
    aspect ratio (upstream's training).
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
        # ceil(x - tiny): 96 * (128 / 128) must not become 97 through rounding
        inner = (math.ceil(source_height * scale - 1e-6), math.ceil(source_width * scale - 1e-6))
    top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
    output = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):  # one at a time: floats are four times the memory
        if inner != (source_height, source_width):
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
            pixels = interpolate(
                pixels, inner, mode="bilinear", align_corners=False, antialias=True
            )
            frame = pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        output[index] = frame[top : top + height, left : left + width]
    return output
