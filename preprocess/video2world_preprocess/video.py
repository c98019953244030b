"""Video files in and out: what is in one, its frames, a new one, and windows cut from a long one.

Everything goes through PyAV. A file that cannot be used raises :class:`UserError` naming it; the
writer works through a Python file, so that a full disk is an ``OSError`` instead of a short video.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from .files import atomic_path
from .links import on_volume
from .stage import UserError

__all__ = [
    "Geometry",
    "VideoInfo",
    "cut",
    "fit",
    "probe",
    "read_frames",
    "timing_remarks",
    "write_video",
]

Geometry = Literal["crop", "stretch"]

# The bytes that x264 makes depend on its number of threads, which by default is the machine's:
# fixed here, the same frames give the same file everywhere. Without mbtree: with AVX-512 that reads
# beyond small pictures, and makes other bytes each time.
# "superfast" is as near to the frames at the same quality setting as "medium", at about the same
# size, in a quarter of the time (docs/inference.md): a sample is written while it is decoded.
WRITER_EFFORT = {"threads": 8, "preset": "superfast", "x264-params": "mbtree=0"}
# Cutting keeps all cores busy with other videos; one thread per video is what they do most with.
CUTTER_THREADS = 1
# x264's effort when cutting. At this quality (crf 18, ffmpeg's default is 23) windows come out
# about as near to their source as at ffmpeg's "medium", in a sixth of the time, but some three
# times as large; that is still little beside the latents made of them (docs/data.md).
CUTTER_EFFORT = {"preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0"}


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says: number of frames, frames per second, size in pixels."""

    frames: int
    fps: Fraction
    width: int
    height: int

    @property
    def seconds(self) -> float:
        """Length in seconds at the nominal frame rate."""
        return float(self.frames / self.fps)


COVER = av.stream.Disposition.attached_pic


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; every decoding error becomes a UserError."""
    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such video file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the video file is empty; copy or download it again")
    try:
        with av.open(str(path)) as container:
            # a song's cover picture is a video stream, too
            streams = [s for s in container.streams.video if not s.disposition & COVER]
            if not streams:
                raise UserError(f"{path}: the file has no video stream; give a video")
            stream = streams[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: the video is truncated or corrupt ({error.strerror}); "
            "copy or download it again"
        ) from error


def _rate(stream: Any, path: Path) -> Fraction:
    rate = stream.average_rate or stream.base_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"{path}: the video states no frame rate; re-encode it")
    return Fraction(rate)


def probe(path: Path | str) -> VideoInfo:
    """What the file's header says, without decoding a frame.

    Raises:
        UserError: missing, empty, corrupt or frameless file.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        # Some containers (Matroska) do not state the count: then packets are counted, which
        # reads the file but decodes nothing.
        frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        if frames == 0:
            raise UserError(f"{path}: the video has no frames; copy or download it again")
        return VideoInfo(frames, _rate(stream, path), stream.width, stream.height)


def timing_remarks(path: Path | str) -> list[str]:
    """What is unusual about when the frames of a video are shown; reads it, decodes nothing.

    Raises:
        UserError: as :func:`probe`.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        rate = _rate(stream, path)
        times = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None)
        if _is_even(times, 1 / (rate * stream.time_base)):
            return []
    return [f"its frame rate varies; its frames are taken as {float(rate):g} a second"]


def _is_even(times: Sequence[int], step: Fraction) -> bool:
    """Whether frames follow each other ``step`` apart, up to the rounding of their times."""
    return all(abs(after - before - step) <= 1 for before, after in itertools.pairwise(times))


def read_frames(path: Path | str, start: int = 0, count: int | None = None) -> np.ndarray:
    """Frames ``start .. start + count`` (to the end without ``count``) as uint8 RGB [T, H, W, 3].

    Raises:
        UserError: unusable file, or one that ends before the last frame asked for.
    """
    path = Path(path)
    frames = []
    with _opened(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if count is not None and index >= start + count:
                break
            if index >= start:
                pixels = frame.to_ndarray(format="rgb24")
                frames.append(np.rot90(pixels, round(frame.rotation / 90)))
    if not frames or (count is not None and len(frames) < count):
        wanted = "one frame" if count is None else f"{count} frames"
        raise UserError(
            f"{path}: {wanted} from frame {start} on wanted, {len(frames)} are there; "
            "the video is too short or truncated"
        )
    return np.stack(frames)


class _Writer:
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

    def __enter__(self) -> _Writer:
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

    def like(self, source: Any) -> None:
        """Carry the colour tags of a decoder over, so that players show the same colours."""
        target = self._stream.codec_context
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(target, tag, getattr(source, tag))

    def add(self, frame: Any) -> None:
        """Encode one frame, upright, of the source's or the writer's size."""
        turns = round(frame.rotation / 90)
        frame = frame.reformat(format="yuv420p")
        if turns % 4:
            planes = [np.rot90(plane, turns) for plane in _planes(frame)]
            frame = _from_planes(planes)
        if (frame.width, frame.height) != (self.width, self.height):
            frame = frame.reformat(width=self.width, height=self.height)
        frame.pts, frame.time_base = self.count, 1 / self.fps
        frame.pict_type = 0  # let the encoder choose; the source's key frames mean nothing here
        self.count += 1
        self._container.mux(self._stream.encode(frame))

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
    with _Writer(path, rate, first.shape[2], first.shape[1], options) as writer:
        for part in itertools.chain([first], map(_frames_of, parts)):
            for frame in part:
                pixels = np.ascontiguousarray(frame)
                writer.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))


def _frames_of(part: np.ndarray) -> np.ndarray:
    if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] != 3 or len(part) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {part.dtype} {part.shape}")
    return part


def cut(
    source: Path | str, parts: Sequence[tuple[int, int, Path]], crf: int = 18
) -> Iterator[tuple[Path, bool]]:
    """Cut ``parts`` = (first frame, frame after the last, target) from ``source``.

    Exact to the frame. A part is copied as it is coded where that is possible (see
    :func:`_copyable`); all others are encoded anew, in one pass of decoding. Each target is
    yielded once it is whole, with whether it was copied. Parts must not overlap.

    Raises:
        UserError: unusable source, or one that ends (truncated) before the last part does; the
            targets already yielded are good.
        OSError: the disk is full, or the like.
    """
    source = Path(source)
    waiting = sorted(parts)
    for (_, stop, _), (start, _, _) in itertools.pairwise(waiting):
        if start < stop:
            raise ValueError(f"{source}: parts overlap at frame {start}")
    if not waiting:
        return
    copyable = _copyable(source, waiting)
    for part in list(copyable):
        with contextlib.suppress(UserError):  # damaged there: encoding tells where
            _copy(source, *copyable[part], part)
            waiting.remove(part)
            yield part[2], True
    if not waiting:
        return
    with _opened(source) as (container, stream):
        fps = _rate(stream, source)
        stream.codec_context.thread_count = CUTTER_THREADS
        options = {"crf": crf, "threads": CUTTER_THREADS} | CUTTER_EFFORT
        decoded = enumerate(container.decode(stream))
        index, frame = next(decoded, (0, None))
        turned = frame is not None and round(frame.rotation / 90) % 2
        width, height = stream.width, stream.height
        size = (height, width) if turned else (width, height)
        for start, stop, target in waiting:
            with _Writer(Path(target), fps, *size, options) as writer:
                writer.like(stream.codec_context)
                while frame is not None and index < stop:
                    if index >= start:
                        writer.add(frame)
                    index, frame = next(decoded, (index, None))
                if writer.count < stop - start:
                    raise UserError(
                        f"{source}: the video is truncated or corrupt: frames {start}-{stop - 1} "
                        f"wanted, it ends after {start + writer.count}; copy or download it again"
                    )
            yield Path(target), False


Part = tuple[int, int, Path]


def _copyable(source: Path, parts: Sequence[Part]) -> dict[Part, tuple[int, int]]:
    """Of ``parts`` those that can be copied, with the first and last time of their frames.

    The frames of such a part are the packets from a key frame on, without another's in between:
    then each decodes from those before it. Only for upright H.264 at a constant frame rate: what
    is copied is to be as usable as what is encoded here.
    """
    with _opened(source) as (container, stream):
        if stream.codec_context.name != "h264" or stream.codec_context.pix_fmt != "yuv420p":
            return {}
        step = 1 / (_rate(stream, source) * stream.time_base)
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets]
        if None in times or any(p.is_discard or p.is_corrupt for p in packets):
            return {}
        keys = {p.pts: place for place, p in enumerate(packets) if p.is_keyframe}
    shown = sorted(times)
    if len(set(shown)) < len(shown) or not _is_even(shown, step):
        return {}
    found = {}
    for start, stop, target in parts:
        if stop > len(shown) or shown[start] not in keys:
            continue
        first, last = shown[start], shown[stop - 1]
        place = keys[first]
        if all(first <= time <= last for time in times[place : place + stop - start]):
            found[start, stop, target] = (first, last)
    if found:
        with _opened(source) as (container, stream):
            frame = next(container.decode(stream), None)
            if frame is None or frame.rotation:
                return {}
    return found


def _copy(source: Path, first: int, last: int, part: Part) -> None:
    """Copy the packets shown at ``first .. last`` (in the stream's time base), and try them.

    Raises:
        UserError: they do not decode to the frames of ``part``.
    """
    with atomic_path(part[2]) as partial:
        _copy_packets(source, first, last, partial)
        with _opened(partial) as (container, stream):
            frames = sum(not frame.is_corrupt for frame in container.decode(stream))
        if frames != part[1] - part[0]:
            raise UserError(f"{source}: frames {part[0]}-{part[1] - 1} are damaged")


def _copy_packets(source: Path, first: int, last: int, target: Path) -> None:
    with (
        target.open("wb") as file,
        _opened(source) as (container, stream),
        av.open(file, "w", format="mp4") as output,
    ):
        copy = output.add_stream_from_template(stream)
        # every packet before the wanted ones is decoded before them, too
        container.seek(first, stream=stream)
        for packet in container.demux(stream):
            if packet.size and packet.pts > last and packet.dts > last:
                break
            if packet.size and first <= packet.pts <= last:
                packet.stream = copy
                packet.pts -= first
                packet.dts -= first
                output.mux(packet)


def _planes(frame: Any) -> list[np.ndarray]:
    height, width = frame.height - frame.height % 2, frame.width - frame.width % 2
    if (frame.width, frame.height) != (width, height):
        frame = frame.reformat(width=width, height=height)
    flat = frame.to_ndarray(format="yuv420p")
    chroma = flat[height:].reshape(2, height // 2, width // 2)
    return [flat[:height], *chroma]


def _from_planes(planes: Sequence[np.ndarray]) -> Any:
    width = planes[0].shape[1]
    flat = np.concatenate([np.ascontiguousarray(plane).reshape(-1, width) for plane in planes])
    return av.VideoFrame.from_ndarray(flat, format="yuv420p")


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
