"""A worker's progress lines, read as typed events and folded into a resource's status.

The lines come out of a container's log, so nothing in them is trusted: what is no event of a known
kind with fields of the right type and size is plain text, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "CheckpointSaved",
    "Event",
    "Failed",
    "Finished",
    "ItemProgress",
    "Lines",
    "Resumed",
    "SamplesMade",
    "Skipped",
    "TrainProgress",
    "VolumeSeen",
    "Withdrawn",
    "duration",
    "parse",
    "with_warning",
]

MAX_LINE = 64 << 10  # bytes; an event line has a few hundred
MAX_TEXT = 1000  # characters of a message or path that reach the status
SAMPLE_ROWS = 64  # checkpoints whose samples the status lists: the newest
MAX_COUNT = 1 << 62  # fits the API server's int64


@dataclass(frozen=True)
class TrainProgress:
    """Training stands at ``iteration`` of ``iterations``; times in seconds, unknown ones None."""

    stage: str
    iteration: int
    iterations: int
    loss: float | None = None
    seconds_per_iteration: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None  # the last saved iteration
    warning: str = ""  # for people: that the loss has diverged


@dataclass(frozen=True)
class ItemProgress:
    """A stage has worked off ``done`` of ``total`` of its ``unit`` (windows, bytes, ...)."""

    stage: str
    done: int
    total: int
    unit: str = ""
    eta_seconds: float | None = None


@dataclass(frozen=True)
class CheckpointSaved:
    """A whole checkpoint of ``iteration`` lies at ``path`` (relative to the volume)."""

    stage: str
    iteration: int
    path: str = ""


@dataclass(frozen=True)
class Withdrawn:
    """Checkpoints of a diverged training were deleted; ``iteration`` is left, or none (0)."""

    stage: str
    iteration: int
    path: str = ""


@dataclass(frozen=True)
class Resumed:
    """Training goes on from the checkpoint of ``iteration``."""

    stage: str
    iteration: int


@dataclass(frozen=True)
class SamplesMade:
    """Of a checkpoint's ``total`` samples, ``done`` are made; ``message``: why there are no more"""

    stage: str
    checkpoint: str
    done: int
    total: int
    iteration: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Skipped:
    """The work of the stage was on the volume already; a worker may tell so of a later stage.

    ``message`` is what its user should know, such as that the data changed since.
    """

    stage: str
    inputs_hash: str = ""
    message: str = ""


@dataclass(frozen=True)
class Finished:
    """The stage has done its work; ``summary`` holds its plain numbers and short texts."""

    stage: str
    summary: tuple[tuple[str, int | float | str], ...] = ()


@dataclass(frozen=True)
class Failed:
    """The stage gave up; reason ``UserError`` means that another attempt would end the same."""

    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class VolumeSeen:
    """The worker is on the volume of this identity; ``expected`` is the one it was given."""

    stage: str
    identity: str
    expected: str = ""


Event: TypeAlias = (
    TrainProgress
    | ItemProgress
    | CheckpointSaved
    | Withdrawn
    | Resumed
    | SamplesMade
    | Skipped
    | Finished
    | Failed
    | VolumeSeen
)


class _Refused(Exception):
    """A field that an event of this kind cannot have."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused
    return "".join(c if c.isprintable() else " " for c in value[:MAX_TEXT]).strip()


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise _Refused
    return value


def _number(value: Any) -> float | None:
    """A finite number, else None: a diverged loss must not cost the rest of the line."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _progress(stage: str, line: Mapping[str, Any]) -> Event:
    eta = _number(line.get("eta_seconds"))
    if "iteration" not in line:
        unit = _text(line.get("unit", ""))
        return ItemProgress(stage, _count(line.get("done")), _count(line.get("total")), unit, eta)
    checkpoint = line.get("checkpoint")
    return TrainProgress(
        stage,
        _count(line["iteration"]),
        _count(line.get("iterations")),
        _number(line.get("loss")),
        _number(line.get("seconds_per_iteration")),
        eta,
        None if checkpoint is None else _count(checkpoint),
        _text(line.get("warning", "")),
    )


def _samples(stage: str, line: Mapping[str, Any]) -> Event:
    iteration = line.get("iteration")
    checkpoint = _text(line.get("checkpoint"))
    if not checkpoint:
        raise _Refused
    return SamplesMade(
        stage,
        checkpoint,
        _count(line.get("done")),
        _count(line.get("total")),
        None if iteration is None else _count(iteration),
        _text(line.get("message", "")),
    )


def _finished(stage: str, line: Mapping[str, Any]) -> Event:
    summary: list[tuple[str, int | float | str]] = []
    for name, value in list(line.items())[:50]:
        if name in ("event", "stage"):
            continue
        if isinstance(value, str):
            summary.append((_text(name), _text(value)))
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_COUNT:
            summary.append((_text(name), value))
        elif (number := _number(value)) is not None:
            summary.append((_text(name), number))
    return Finished(stage, tuple(summary))


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], Event]] = {
    "progress": _progress,
    "checkpoint": lambda stage, line: CheckpointSaved(
        stage, _count(line.get("iteration")), _text(line.get("path", ""))
    ),
    "withdrawn": lambda stage, line: Withdrawn(
        stage, _count(line.get("iteration")), _text(line.get("path", ""))
    ),
    "resumed": lambda stage, line: Resumed(stage, _count(line.get("iteration"))),
    "samples": _samples,
    "volume": lambda stage, line: VolumeSeen(
        stage, _text(line.get("id")), _text(line.get("expected", ""))
    ),
    "skipped": lambda stage, line: Skipped(
        stage, _text(line.get("inputsHash", "")), _text(line.get("message", ""))
    ),
    "finished": _finished,
    "failed": lambda stage, line: Failed(
        stage, _text(line.get("reason", "")), _text(line.get("message", ""))
    ),
}


def parse(line: bytes | str) -> Event | None:
    """The event on ``line``, or None where it is anything else (plain text, damage, an attack)."""
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    text = text.strip()
    if not text.startswith("{") or len(text) > MAX_LINE:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            return None
        kind, stage = value.get("event"), _text(value.get("stage"))
        make = _KINDS.get(kind) if isinstance(kind, str) else None
        return make(stage, value) if make is not None and stage else None
    except (ValueError, RecursionError, _Refused):
        return None


class Lines:
    """Cuts a stream of bytes into lines; one longer than ``MAX_LINE`` comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their line ends."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        yield from whole
        if len(self._rest) > MAX_LINE:
            rest, self._rest = self._rest, b""
            yield rest

    def end(self) -> Iterator[bytes]:
        """What is left when the stream has ended without a line end."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m12s, 5h07m, 2d03h."""
    whole = max(0, round(seconds))
    for unit, below, small in ((86400, "d", 3600), (3600, "h", 60), (60, "m", 1)):
        if whole >= unit:
            under = {3600: "h", 60: "m", 1: "s"}[small]
            return f"{whole // unit}{below}{whole % unit // small:02d}{under}"
    return f"{whole}s"


def with_warning(message: str, warning: str) -> str:
    """Add to a status message the ``warning`` of training, unless it is empty or in it already."""
    return message if not warning or warning in message else f"{message} {warning}".strip()
