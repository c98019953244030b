"""Decode a video once to know its frames: how many ffmpeg shows, and which cannot be used.

What a header says is not enough: edit lists hide frames, packets are damaged or missing, and a
frame that is predicted from a damaged one is damaged, too, though the decoder does not mark it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .decoding import VideoInfo, decoded, frame_rate, is_even, opened
from .display import display_filters
from .stage import UserError

__all__ = ["Survey", "survey"]

UNREADABLE = "cannot be decoded"
DAMAGED = "is marked as damaged by the decoder"
DEPENDENT = "is predicted from a damaged frame"
BEYOND_END = "is beyond the end of the file"


@dataclass(frozen=True)
class Survey:
    """The frames of a video in the order they are shown, from number 0.

    ``info.frames`` counts those, too, that cannot be decoded; ``numbers`` are those of the frames
    that are decoded, in order; ``faults`` says of each frame that cannot be used why; ``as_coded``
    is whether all frames are shown as they are coded, neither turned nor brought to another size.
    """

    path: Path
    info: VideoInfo
    numbers: Sequence[int]
    faults: Mapping[int, str]
    remarks: Sequence[str]
    as_coded: bool

    def fault(self, start: int, stop: int | None) -> str | None:
        """Say why the frames ``start .. stop - 1`` cannot all be used, or None."""
        stop = self.info.frames if stop is None else stop
        if stop > self.info.frames:
            return (
                f"{self.path}: the video is truncated or corrupt: frames {start}-{stop - 1} "
                f"wanted, it ends after {self.info.frames}; copy or download it again"
            )
        found = [number for number in sorted(self.faults) if start <= number < stop]
        if not found:
            return None
        more = f" (and {len(found) - 1} more up to frame {found[-1]})" if found[1:] else ""
        return (
            f"{self.path}: the video is truncated or corrupt: frame {found[0]} "
            f"{self.faults[found[0]]}{more}; copy or download it again"
        )


@dataclass
class _Packet:
    """A packet in the order of decoding, and the number of its frame if that is to be shown."""

    pts: int | None
    key: bool
    hidden: bool
    disposable: bool
    good: bool
    number: int | None = None


@dataclass
class _Log:
    """What a decoder was given and what came of it."""

    packets: list[_Packet] = field(default_factory=list)
    times: list[int | None] = field(default_factory=list)
    damaged: list[bool] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    turned: bool = False

    def seen(self, packet: Any, good: bool) -> None:
        if packet is not None and packet.size:
            self.packets.append(
                _Packet(
                    packet.pts,
                    packet.is_keyframe,
                    packet.is_discard,
                    packet.is_disposable,
                    good,
                )
            )

    def shown(self, frame: Any) -> None:
        self.times.append(frame.pts)
        self.damaged.append(frame.is_corrupt)
        self.sizes.add((frame.width, frame.height))
        self.turned = self.turned or bool(display_filters(frame))

    @property
    def waiting(self) -> list[_Packet]:
        """The packets whose frames are to be shown."""
        return [packet for packet in self.packets if not packet.hidden]

    @property
    def packet_times(self) -> list[int]:
        """When the frames of the packets are to be shown, in order."""
        return sorted(packet.pts for packet in self.waiting if packet.pts is not None)


def survey(path: Path | str) -> Survey:
    """Decode all of a video, and tell its frames and their faults.

    Raises:
        UserError: missing, empty or corrupt file, or no frame of it can be decoded.
    """
    path, log = Path(path), _Log()
    with opened(path) as (container, stream):
        # without the filter against block edges: it changes no more than the pictures
        stream.codec_context.options = {"skip_loop_filter": "all"}
        for frame in decoded(container, stream, log.seen):
            log.shown(frame)
        if not log.times:
            raise UserError(
                f"{path}: the video has no frame that can be decoded; copy or download it again"
            )
        rate = frame_rate(stream, path, log.packet_times)
        step = 1 / (rate * stream.time_base)
        expected = 0
        if "mp4" in container.format.name:  # its index names every frame, those cut off, too
            expected = sum(not entry.is_discard for entry in stream.index_entries)
        width, height = stream.width, stream.height
    numbers = _number(log, float(step))
    faults = _faults(log, numbers)
    frames = max([*numbers, *faults]) + 1
    cut_off = range(frames, frames + max(0, expected - len(log.waiting)))
    faults |= dict.fromkeys(cut_off, BEYOND_END)
    remarks = []
    if not is_even(log.packet_times, step):
        remarks.append(f"its frame rate varies; its frames are taken as {float(rate):g} a second")
    if len(log.sizes) > 1:
        remarks.append("its picture size changes; all frames are brought to that of the first")
    info = VideoInfo(frames + len(cut_off), rate, width, height)
    as_coded = len(log.sizes) == 1 and not log.turned
    return Survey(path, info, numbers, faults, remarks, as_coded)


def _number(log: _Log, step: float) -> list[int]:
    """Number the decoded frames, and each packet as its frame; a missing frame has a number, too.

    A packet that is decoded without a frame is no fault (VP8 has such) unless there is a gap.
    """
    times = [time for time in log.times if time is not None]
    ordered = len(times) == len(log.times) and all(a < b for a, b in itertools.pairwise(times))
    if ordered and all(packet.pts is not None for packet in log.waiting):
        shown = set(times)
        missing = {
            packet.pts
            for packet in log.waiting
            if packet.pts not in shown and (not packet.good or _in_gap(packet.pts, times, step))
        }
        order = {time: number for number, time in enumerate(sorted(shown | missing))}
        for packet in log.waiting:
            packet.number = order.get(packet.pts)
        return [order[time] for time in times]
    # the time stamps say no order: a frame is taken to be that of its packet, both counted
    for number, packet in enumerate(log.waiting):
        packet.number = number
    good = (number for number, packet in enumerate(log.waiting) if packet.good)
    numbers = itertools.chain(good, itertools.count(len(log.waiting)))
    return list(itertools.islice(numbers, len(log.times)))


def _in_gap(time: int, times: Sequence[int], step: float) -> bool:
    """Whether there is room for a frame at ``time`` between those before and after it."""
    place = bisect.bisect(times, time)
    return 0 < place < len(times) and times[place] - times[place - 1] > 1.5 * step


def _faults(log: _Log, numbers: Sequence[int]) -> dict[int, str]:
    """Say why frames cannot be used: what their packets or the decoder say, and what follows."""
    decoded_numbers = set(numbers)
    faults = {
        number: DAMAGED for number, damaged in zip(numbers, log.damaged, strict=True) if damaged
    }
    for packet in log.waiting:
        if packet.number is not None and packet.number not in decoded_numbers:
            faults[packet.number] = UNREADABLE
    # Until a key frame all that is decoded after a damaged frame may be predicted from it; after
    # a key frame those that are shown before it may.
    dependent, leading = False, None
    for packet in log.packets:
        damaged = not packet.good or packet.number in faults
        if packet.key and not damaged:
            leading = packet.pts if dependent else None
            dependent = False
        elif damaged:
            dependent = dependent or not packet.disposable
        elif packet.number is not None and (
            dependent or (leading is not None and packet.pts is not None and packet.pts < leading)
        ):
            faults[packet.number] = DEPENDENT
    return faults
