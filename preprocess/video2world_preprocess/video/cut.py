"""Cut a video into clips, copying packets where the result is exact."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import av

from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_path
from video2world_preprocess.video.decode import decoded, is_even, opened
from video2world_preprocess.video.display import Display, display_filters, transposed
from video2world_preprocess.video.frame_survey import Survey, survey
from video2world_preprocess.video.writer import Writer

__all__ = ["CUTTER_OPTIONS", "CUTTER_THREADS", "Part", "cut"]

# Videos are cut in parallel on all cores, for which one thread per video is the most efficient.
CUTTER_THREADS = 1
# x264's options when cutting. At this quality (crf 18, ffmpeg's default is 23), windows are about
# as close to their source as with the preset "medium", in a sixth of the time, but about three
# times as large, which is still small compared to their latents (docs/data.md).
CUTTER_OPTIONS = {"preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0"}

Part = tuple[int, int, Path]  # first frame, frame after the last, target


def cut(
    source: Path | str,
    parts: Sequence[Part],
    crf: int = 18,
    known: Survey | None = None,
) -> Iterator[tuple[Path, bool]]:
    """Cut ``parts`` of ``source``, exact to the frame.

    Packets are copied where that is possible (see :func:`_copyable`). All other parts are encoded
    again, while the source is decoded once. Parts must not overlap.

    Args:
        crf: x264's constant rate factor.
        known: the source's survey, if it exists already.

    Yields:
        Each target once it is complete, and whether its packets were copied.

    Raises:
        UserError: the source is unusable, or a part has a damaged frame or ends beyond the video;
            all other parts have been yielded.
        OSError: a target cannot be written, for example because the disk is full.
    """
    source = Path(source)
    ordered = sorted(parts)
    for (_, stop, _), (start, _, _) in itertools.pairwise(ordered):
        if start < stop:
            raise ValueError(f"{source}: parts overlap at frame {start}")
    if not ordered:
        return
    known = known or survey(source)
    faults = {part: known.fault(*part[:2]) for part in ordered}
    waiting = [part for part in ordered if not faults[part]]
    copyable = _copyable(known, waiting)
    for part, span in copyable.items():
        with contextlib.suppress(UserError):  # if the copy does not decode, it is encoded below
            _copy(source, *span, part)
            waiting.remove(part)
            yield part[2], True
    yield from _encode(known, waiting, crf)
    for reason in filter(None, faults.values()):
        raise UserError(reason)


def _encode(known: Survey, parts: Sequence[Part], crf: int) -> Iterator[tuple[Path, bool]]:
    if not parts:
        return
    options = {"crf": crf, "threads": CUTTER_THREADS} | CUTTER_OPTIONS
    with opened(known.path) as (container, stream):
        display, shape = Display("yuv420p", even=True), stream.sample_aspect_ratio
        numbered = zip(known.numbers, decoded(container, stream), strict=False)
        number, frame = next(numbered, (0, None))
        first = display.show(frame)  # even if damaged, it sets the size of all others
        if shape and transposed(display_filters(frame)):
            shape = 1 / shape
        for start, stop, target in parts:
            with Writer(Path(target), known.info.fps, first.width, first.height, options) as writer:
                writer.like(first, shape)
                while frame is not None and (number < stop or number in known.faults):
                    if start <= number < stop:
                        writer.add(display.show(frame))
                    number, frame = next(numbered, (number, None))
                if writer.count < stop - start:
                    raise UserError(
                        f"{known.path}: only {writer.count} of the frames {start}-{stop - 1} were "
                        "decoded: the file may have changed meanwhile; run it again"
                    )
            yield Path(target), False


def _copyable(known: Survey, parts: Sequence[Part]) -> dict[Part, tuple[int, int]]:
    """Return the ``parts`` that can be copied, with the times of their first and last frames.

    Such a part begins at a key frame, and its packets are consecutive, so that each frame depends
    only on frames of the part. Only H.264 with a constant frame rate that needs no rotation or
    scaling is copied, so that copied and encoded clips are equally usable.
    """
    if not known.as_coded:
        return {}
    with opened(known.path) as (container, stream):
        if stream.codec_context.name != "h264" or stream.codec_context.pix_fmt != "yuv420p":
            return {}
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets]
        if None in times or any(p.is_discard or p.is_corrupt for p in packets):
            return {}
        step = 1 / (known.info.fps * stream.time_base)
        keys = {p.pts: place for place, p in enumerate(packets) if p.is_keyframe}
    shown = sorted(times)
    if len(set(shown)) != known.info.frames or not is_even(shown, step):
        return {}
    found = {}
    for start, stop, target in parts:
        if shown[start] not in keys:
            continue
        first, last = shown[start], shown[stop - 1]
        place = keys[first]
        if all(first <= time <= last for time in times[place : place + stop - start]):
            found[start, stop, target] = (first, last)
    return found


def _copy(source: Path, first: int, last: int, part: Part) -> None:
    """Copy the packets shown at ``first .. last`` (in the stream's time base), and decode them.

    Raises:
        UserError: they do not decode to the frames of ``part``.
    """
    with atomic_path(part[2]) as partial:
        _copy_packets(source, first, last, partial)
        with opened(partial) as (container, stream):
            frames = sum(not frame.is_corrupt for frame in container.decode(stream))
        if frames != part[1] - part[0]:
            raise UserError(f"{source}: frames {part[0]}-{part[1] - 1} are damaged")


def _copy_packets(source: Path, first: int, last: int, target: Path) -> None:
    with (
        target.open("wb") as file,
        opened(source) as (container, stream),
        av.open(file, "w", format="mp4") as output,
    ):
        copy = output.add_stream_from_template(stream)
        # packets that precede the wanted ones are also decoded before them
        container.seek(first, stream=stream)
        for packet in container.demux(stream):
            if packet.size and packet.dts is None:  # Matroska does not store all of them
                raise UserError(f"{source}: a packet has no decoding time stamp")
            if packet.size and packet.pts > last and packet.dts > last:
                break
            if packet.size and first <= packet.pts <= last:
                packet.stream = copy
                packet.pts -= first
                packet.dts -= first
                output.mux(packet)
