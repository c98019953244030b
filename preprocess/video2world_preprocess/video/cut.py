"""Cut a video into clips, copying packets where that is exact."""

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

__all__ = ["cut"]

# Cutting keeps all cores busy with other videos; one thread per video is what they do most with.
CUTTER_THREADS = 1
# x264's effort when cutting. At this quality (crf 18, ffmpeg's default is 23) windows come out
# about as near to their source as at ffmpeg's "medium", in a sixth of the time, but some three
# times as large; that is still little beside the latents made of them (docs/data.md).
CUTTER_EFFORT = {"preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0"}

Part = tuple[int, int, Path]


def cut(
    source: Path | str,
    parts: Sequence[Part],
    crf: int = 18,
    known: Survey | None = None,
) -> Iterator[tuple[Path, bool]]:
    """Cut ``parts`` = (first frame, frame after the last, target) from ``source``.

    Exact to the frame. A part is copied as it is coded where that is possible (see
    :func:`_copyable`); all others are encoded anew, in one pass of decoding. Each target is
    yielded once it is whole, with whether it was copied. Parts must not overlap. ``known`` is the
    source's survey, if there is one already.

    Raises:
        UserError: unusable source, or a part has a damaged frame or one beyond the end; the targets
            already yielded, of all other parts, are good.
        OSError: the disk is full, or the like.
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
        with contextlib.suppress(UserError):  # it does not decode by itself
            _copy(source, *span, part)
            waiting.remove(part)
            yield part[2], True
    yield from _encode(known, waiting, crf)
    for reason in filter(None, faults.values()):
        raise UserError(reason)


def _encode(known: Survey, parts: Sequence[Part], crf: int) -> Iterator[tuple[Path, bool]]:
    if not parts:
        return
    options = {"crf": crf, "threads": CUTTER_THREADS} | CUTTER_EFFORT
    with opened(known.path) as (container, stream):
        display, shape = Display("yuv420p", even=True), stream.sample_aspect_ratio
        numbered = zip(known.numbers, decoded(container, stream), strict=False)
        number, frame = next(numbered, (0, None))
        first = display.show(frame)  # damaged or not, all others are shown in its size
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
                        f"{known.path}: frames {start}-{stop - 1} wanted, {writer.count} of them "
                        "were decoded: has the file changed meanwhile? Run it again"
                    )
            yield Path(target), False


def _copyable(known: Survey, parts: Sequence[Part]) -> dict[Part, tuple[int, int]]:
    """Of ``parts`` those that can be copied, with the first and last time of their frames.

    The frames of such a part are the packets from a key frame on, without another's in between:
    then each decodes from those before it. Only for H.264 at a constant frame rate that is shown as
    it is coded: what is copied is to be as usable as what is encoded here.
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
    """Copy the packets shown at ``first .. last`` (in the stream's time base), and try them.

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
        # every packet before the wanted ones is decoded before them, too
        container.seek(first, stream=stream)
        for packet in container.demux(stream):
            if packet.size and packet.dts is None:  # Matroska does not store them all
                raise UserError(f"{source}: its packets do not say when they are decoded")
            if packet.size and packet.pts > last and packet.dts > last:
                break
            if packet.size and first <= packet.pts <= last:
                packet.stream = copy
                packet.pts -= first
                packet.dts -= first
                output.mux(packet)
