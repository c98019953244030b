"""Decode a video once to find out how many frames ffmpeg shows, and which of them are unusable.

The header is not sufficient: edit lists hide frames, packets are damaged or missing, and a frame
that is predicted from a damaged one is damaged as well, although the decoder does not mark it.
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
    """The frames of a video, numbered from 0 in display order.

    Attributes:
        info: properties of the video; ``info.frames`` includes frames that cannot be decoded.
        numbers: the numbers of the decoded frames in order of decoding; -1 for a repeated frame.
        faults: why a frame is unusable, by its number.
        remarks: what the user may want to know.
        as_coded: whether all frames are shown as coded, neither rotated nor scaled.
    """

    path: Path
    info: VideoInfo
    numbers: Sequence[int]
    faults: Mapping[int, str]
    remarks: Sequence[str]
    as_coded: bool

    def fault(self, start: int, stop: int | None) -> str | None:
        """Return why the frames ``start .. stop - 1`` cannot all be used, or None."""
        stop = self.info.frames if stop is None else stop
        if stop > self.info.frames:
            return (
                f"{self.path}: the video is truncated or corrupt: it ends after {self.info.frames} "
                f"frames, before the requested {start}-{stop - 1}; copy or download it again"
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
    """A packet in decoding order, and the result of decoding it."""

    place: int
    pts: int | None
    key: bool
    hidden: bool
    disposable: bool
    readable: bool = True
    damaged: bool = False  # according to the decoder
    dependent: bool = False  # on a damaged or missing frame

    @property
    def time(self) -> int:
        """``pts`` of a packet that is known to have one."""
        assert self.pts is not None
        return self.pts


@dataclass
class _Log:
    """The packets passed to a decoder, and those whose frames it returned, in order."""

    packets: list[_Packet] = field(default_factory=list)
    shown: list[_Packet] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    turned: bool = False

    def before(self, packet: Any) -> None:
        if packet.size:
            entry = _Packet(
                len(self.packets),
                packet.pts,
                packet.is_keyframe,
                packet.is_discard,
                packet.is_disposable,
            )
            self.packets.append(entry)
            packet.opaque = entry  # the decoder passes it on to the frame

    def failed(self, packet: Any) -> None:
        if packet is not None and packet.size:
            self.packets[-1].readable = False

    def show(self, frame: Any) -> None:
        entry = frame.opaque
        if not isinstance(entry, _Packet):  # the decoder does not pass it on: assume display order
            entry = self.packets[min(len(self.shown), len(self.packets) - 1)]
        entry.damaged = entry.damaged or frame.is_corrupt
        self.shown.append(entry)
        self.sizes.add((frame.width, frame.height))
        self.turned = self.turned or bool(display_filters(frame))

    @property
    def expected(self) -> list[_Packet]:
        """The packets whose frames are to be shown."""
        return [packet for packet in self.packets if not packet.hidden]

    @property
    def undamaged(self) -> bool:
        """Whether everything was decoded and the decoder noticed no damage."""
        return all(packet.readable and not packet.damaged for packet in self.packets)

    @property
    def times(self) -> list[int]:
        """The sorted time stamps of the frames to show."""
        return sorted(packet.pts for packet in self.expected if packet.pts is not None)


def survey(path: Path | str) -> Survey:
    """Decode a complete video, and return its frames and their faults.

    Raises:
        UserError: the file is missing, empty or corrupt, or no frame of it can be decoded.
    """
    path, log = Path(path), _Log()
    with opened(path) as (container, stream):
        # skip the deblocking filter: it only affects the pictures, which are not used
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
        if "mp4" in container.format.name:  # its index includes frames that are cut off
            expected = sum(not entry.is_discard for entry in stream.index_entries)
        width, height = stream.width, stream.height
    order = _in_display_order(log, float(step))
    numbers = _numbers(order, log)
    faults = _faults(order, log)
    frames = len(order)
    cut_off = range(frames, frames + max(0, expected - len(log.expected)))
    faults |= dict.fromkeys(cut_off, BEYOND_END)
    remarks = []
    if not is_even(log.times, step):
        remarks.append(f"its frame rate varies; {float(rate):g} frames/s are assumed")
    if len(log.sizes) > 1:
        remarks.append("its picture size changes; all frames are scaled to the size of the first")
    info = VideoInfo(frames + len(cut_off), rate, width, height)
    as_coded = len(log.sizes) == 1 and not log.turned
    return Survey(path, info, numbers, faults, remarks, as_coded)


def _mark_dependents(packets: Sequence[_Packet]) -> None:
    """Mark the frames that may be predicted from a damaged one.

    These are all that are decoded after it, up to the next key frame, and after that frame all that
    are shown before it.
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
            is_leading = leading is not None and packet.pts is not None and packet.pts < leading
            packet.dependent = dependent or is_leading


def _in_display_order(log: _Log, step: float) -> list[_Packet]:
    """Return the packets whose frames are shown or missing, in display order.

    A packet without a frame (VP8 has such) is a fault only if there is a gap, or damage somewhere.
    """
    _mark_dependents(log.packets)
    shown = {id(packet): packet for packet in log.shown}
    silent = [packet for packet in log.expected if id(packet) not in shown and packet.readable]
    # decoders do not know the time stamps of damaged frames
    clean = [packet for packet in log.shown if not packet.damaged and not packet.dependent]
    is_timed = all(packet.pts is not None for packet in log.expected)
    is_ordered = is_timed and all(a.time < b.time for a, b in itertools.pairwise(clean))
    if is_ordered:
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
    missing = [p for p in log.expected if not p.readable and id(p) not in shown]
    if is_ordered:
        return sorted(order + missing, key=lambda packet: packet.time)
    for packet in missing:  # insert it behind all that were decoded before it
        earlier = [n for n, other in enumerate(order) if other.place < packet.place]
        order.insert(max(earlier, default=-1) + 1, packet)
    return order


def _numbers(order: Sequence[_Packet], log: _Log) -> list[int]:
    """Return the numbers of the decoded frames; -1 if damage made the decoder repeat a frame."""
    if log.undamaged:
        return list(range(len(order)))
    places = {id(packet): number for number, packet in enumerate(order)}
    return [places.pop(id(packet), -1) for packet in log.shown]


def _in_gap(time: int, times: Sequence[int], step: float) -> bool:
    """Whether there is a gap for a frame at ``time`` between its neighbors."""
    place = bisect.bisect(times, time)
    return 0 < place < len(times) and times[place] - times[place - 1] > 1.5 * step


def _faults(order: Sequence[_Packet], log: _Log) -> dict[int, str]:
    """Return why frames are unusable, by their numbers."""
    shown, faults = set(map(id, log.shown)), {}
    for number, packet in enumerate(order):
        if id(packet) not in shown:
            faults[number] = UNREADABLE
        elif packet.damaged:
            faults[number] = DAMAGED
        elif packet.dependent:
            faults[number] = DEPENDENT
    return faults
