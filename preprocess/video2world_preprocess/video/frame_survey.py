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

from video2world_common.exit_codes import UserError
from video2world_preprocess.video.decode import VideoInfo, decoded, frame_rate, is_even, opened
from video2world_preprocess.video.display import display_filters

__all__ = ["Survey", "survey"]

UNREADABLE = "cannot be decoded"
DAMAGED = "is marked as damaged by the decoder"
DEPENDENT = "is predicted from a damaged frame"
BEYOND_END = "is beyond the end of the file"


@dataclass(frozen=True)
class Survey:
    """The frames of a video in the order they are shown, from number 0.

    ``info.frames`` counts those, too, that cannot be decoded; ``numbers`` are those of the frames
    that are decoded, as they come (-1: one that is shown again); ``faults`` says of each frame that
    cannot be used why; ``as_coded`` is whether all frames are shown as they are coded, neither
    turned nor brought to another size.
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


@dataclass(eq=False)
class _Packet:
    """A packet in the order of decoding, and what became of it."""

    place: int
    pts: int | None
    key: bool
    hidden: bool
    disposable: bool
    readable: bool = True
    damaged: bool = False  # its frame, as the decoder says
    dependent: bool = False  # on a frame that is damaged or missing

    @property
    def time(self) -> int:
        """``pts`` where it is known to be stated."""
        assert self.pts is not None
        return self.pts


@dataclass
class _Log:
    """The packets that a decoder was given, and those whose frames it gave, in order."""

    packets: list[_Packet] = field(default_factory=list)
    shown: list[_Packet] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    turned: bool = False

    def before(self, packet: Any) -> None:
        if packet.size:
            one = _Packet(
                len(self.packets),
                packet.pts,
                packet.is_keyframe,
                packet.is_discard,
                packet.is_disposable,
            )
            self.packets.append(one)
            packet.opaque = one  # the decoder hands it on to the frame

    def failed(self, packet: Any) -> None:
        if packet is not None and packet.size:
            self.packets[-1].readable = False

    def show(self, frame: Any) -> None:
        one = frame.opaque
        if not isinstance(one, _Packet):  # a decoder that does not: they are taken in turn
            one = self.packets[min(len(self.shown), len(self.packets) - 1)]
        one.damaged = one.damaged or frame.is_corrupt
        self.shown.append(one)
        self.sizes.add((frame.width, frame.height))
        self.turned = self.turned or bool(display_filters(frame))

    @property
    def waiting(self) -> list[_Packet]:
        """The packets whose frames are to be shown."""
        return [packet for packet in self.packets if not packet.hidden]

    @property
    def undamaged(self) -> bool:
        """Whether all was decoded, and the decoder noticed no damage."""
        return all(packet.readable and not packet.damaged for packet in self.packets)

    @property
    def times(self) -> list[int]:
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
        stream.codec_context.copy_opaque = True
        for frame in decoded(container, stream, log.failed, log.before):
            log.show(frame)
        if not log.shown:
            raise UserError(
                f"{path}: the video has no frame that can be decoded; copy or download it again"
            )
        rate = frame_rate(stream, path, log.times)
        step = 1 / (rate * stream.time_base)
        expected = 0
        if "mp4" in container.format.name:  # its index names every frame, those cut off, too
            expected = sum(not entry.is_discard for entry in stream.index_entries)
        width, height = stream.width, stream.height
    order = _in_order(log, float(step))
    numbers = _numbers(order, log)
    faults = _faults(order, log)
    frames = len(order)
    cut_off = range(frames, frames + max(0, expected - len(log.waiting)))
    faults |= dict.fromkeys(cut_off, BEYOND_END)
    remarks = []
    if not is_even(log.times, step):
        remarks.append(f"its frame rate varies; its frames are taken as {float(rate):g} a second")
    if len(log.sizes) > 1:
        remarks.append("its picture size changes; all frames are brought to that of the first")
    info = VideoInfo(frames + len(cut_off), rate, width, height)
    as_coded = len(log.sizes) == 1 and not log.turned
    return Survey(path, info, numbers, faults, remarks, as_coded)


def _mark_dependents(packets: Sequence[_Packet]) -> None:
    """Mark what may be predicted from a damaged frame: all that is decoded after it.

    Up to a key frame; and after that those that are shown before the key frame.
    """
    dependent = False
    leading: int | None = None
    for packet in packets:
        if not packet.readable or packet.damaged:
            dependent = dependent or packet.key or not packet.disposable
        elif packet.key:
            leading = packet.pts if dependent else None
            dependent = False
        else:
            if leading is not None and packet.pts is not None and packet.pts < leading:
                packet.dependent = True
            else:
                packet.dependent = dependent


def _in_order(log: _Log, step: float) -> list[_Packet]:
    """List the packets whose frames are shown, or are missing, in the order they are shown.

    A packet without a frame is no fault (VP8 has such) unless there is a gap, or damage somewhere.
    """
    _mark_dependents(log.packets)
    shown = {id(packet): packet for packet in log.shown}
    silent = [packet for packet in log.waiting if id(packet) not in shown and packet.readable]
    # of damaged frames decoders do not know when they are to be shown
    clean = [packet for packet in log.shown if not packet.damaged and not packet.dependent]
    known = all(packet.pts is not None for packet in log.waiting)
    in_time = known and all(a.time < b.time for a, b in itertools.pairwise(clean))
    if in_time:
        times = sorted(packet.time for packet in log.shown)
        silent = [p for p in silent if p.dependent or _in_gap(p.time, times, step)]
    elif log.undamaged:
        silent = []
    for packet in silent:
        packet.readable = False
    if log.undamaged:
        return list(log.shown)
    _mark_dependents(log.packets)
    order = list(shown.values())
    missing = [packet for packet in log.waiting if not packet.readable and id(packet) not in shown]
    if in_time:
        return sorted(order + missing, key=lambda packet: packet.time)
    for packet in missing:  # after all that was decoded before it
        earlier = [n for n, other in enumerate(order) if other.place < packet.place]
        order.insert(max(earlier, default=-1) + 1, packet)
    return order


def _numbers(order: Sequence[_Packet], log: _Log) -> list[int]:
    """Number the decoded frames; -1 is one that a damaged file makes the decoder show again."""
    if log.undamaged:
        return list(range(len(order)))
    places = {id(packet): number for number, packet in enumerate(order)}
    return [places.pop(id(packet), -1) for packet in log.shown]


def _in_gap(time: int, times: Sequence[int], step: float) -> bool:
    """Whether there is room for a frame at ``time`` between those before and after it."""
    place = bisect.bisect(times, time)
    return 0 < place < len(times) and times[place] - times[place - 1] > 1.5 * step


def _faults(order: Sequence[_Packet], log: _Log) -> dict[int, str]:
    """Say of the frames, numbered in order, why they cannot be used."""
    shown, faults = set(map(id, log.shown)), {}
    for number, packet in enumerate(order):
        if id(packet) not in shown:
            faults[number] = UNREADABLE
        elif packet.damaged:
            faults[number] = DAMAGED
        elif packet.dependent:
            faults[number] = DEPENDENT
    return faults
