"""Decide which frames of a video file belong to which episode (pure arithmetic on frame numbers).

Version 3.0 stores many episodes in one file, and says in seconds where each begins. Those times are
sums of floating-point numbers, and drift; a file that holds exactly as many frames as its episodes
have rows is therefore divided by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Placement", "Span", "spans_of"]

LOST_FRAMES = 2  # that encoders lose or repeat at the end of an episode
TOLERANCE = 1e-3  # seconds by which a time may be off without a note


@dataclass(frozen=True)
class Placement:
    """Where the metadata puts an episode of ``length`` frames in its file, in seconds.

    ``length`` and ``end`` are None if the metadata do not say.
    """

    episode: int
    length: int | None
    begin: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Span:
    """Frames ``start .. stop - 1`` of a file, and remarks; or the ``fault`` of an episode."""

    start: int = 0
    stop: int = 0
    remarks: tuple[str, ...] = ()
    fault: str = ""


def spans_of(
    placements: Sequence[Placement], frames: int, fps: Fraction, *, other_rate: bool = False
) -> dict[int, Span]:
    """Return the frames of every episode of a file.

    Args:
        placements: all episodes of the file, also those that are not wanted.
        frames: number of frames in the file.
        fps: its frames per second.
        other_rate: rows may be of another rate than frames; they are resampled.
    """
    lengths = [p.length for p in placements]
    if None not in lengths and sum(filter(None, lengths)) == frames:
        return _counted(placements, fps)
    return _timed(placements, frames, fps, other_rate)


def _counted(placements: Sequence[Placement], fps: Fraction) -> dict[int, Span]:
    """Divide a file whose frames are exactly those of its episodes."""

    def starts(order: Sequence[Placement]) -> list[int]:
        found, total = [], 0
        for placement in order:
            found.append(total)
            total += placement.length or 0
        return found

    def errors(order: Sequence[Placement]) -> list[float]:
        return [
            abs(placement.begin - float(start / fps))
            for placement, start in zip(order, starts(order), strict=True)
        ]

    by_time = sorted(placements, key=lambda p: (p.begin, p.episode))
    by_number = sorted(placements, key=lambda p: p.episode)
    order = min(by_time, by_number, key=lambda order: sum(errors(order)))
    found = {}
    for placement, start, error in zip(order, starts(order), errors(order), strict=True):
        remarks: tuple[str, ...] = ()
        if error > max(0.5 / float(fps), TOLERANCE):
            remarks = (
                f"its from_timestamp is {error:.3f} s off the frame count; frames are counted",
            )
        found[placement.episode] = Span(start, start + (placement.length or 0), remarks)
    return found


def _timed(
    placements: Sequence[Placement], frames: int, fps: Fraction, other_rate: bool
) -> dict[int, Span]:
    """Divide a file by the episodes' times, as its frames are not those of its episodes."""
    order = sorted(placements, key=lambda p: (p.begin, p.episode))
    starts = [round(p.begin * fps) for p in order]
    found = {}
    for place, (placement, start) in enumerate(zip(order, starts, strict=True)):
        limit = min([frames, *starts[place + 1 : place + 2]])
        stop = limit if placement.end is None else min(limit, round(placement.end * fps))
        found[placement.episode] = _checked(placement, start, stop, frames, other_rate)
    return found


def _checked(placement: Placement, start: int, stop: int, frames: int, other_rate: bool) -> Span:
    length, count = placement.length, stop - start
    if count < 1:
        return Span(
            fault=f"the file has no frame for it (it ends after {frames} frames, and the metadata "
            f"put the episode at frame {start}); download it again, or exclude the episode"
        )
    if length is None:
        return Span(start, stop, ("the metadata do not say its length; all frames are used",))
    if abs(count - length) > LOST_FRAMES and other_rate:
        return Span(
            start,
            stop,
            (f"{length} rows for {count} frames; actions are resampled by their times",),
        )
    if abs(count - length) > LOST_FRAMES:
        return Span(
            fault=f"the counts disagree: {length} rows, but {count} frames in the video; correct "
            "the dataset, or exclude the episode"
        )
    if count == length:
        return Span(start, stop)
    kept = min(count, length)
    return Span(
        start, start + kept, (f"{length} rows, but {count} frames; the first {kept} are used",)
    )
