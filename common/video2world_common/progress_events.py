"""Parse a worker's progress events, which :mod:`video2world_common.events` writes, into types.

The lines come from a container's log and are treated as untrusted: a line that is not an event of a
known kind, with fields of the right types and sizes, is plain text, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "ActionsMeasured",
    "CheckpointSaved",
    "Evaluated",
    "Event",
    "Failed",
    "Finished",
    "ItemProgress",
    "Lines",
    "Resumed",
    "SamplesMade",
    "Skipped",
    "TrainProgress",
    "Validated",
    "VolumeSeen",
    "Withdrawn",
    "duration",
    "evaluated",
    "parse",
    "with_warning",
]

MAX_LINE = 64 << 10  # bytes; an event line has a few hundred
MAX_TEXT = 1000  # characters of a message or path that reach the status
SAMPLE_ROWS = 64  # checkpoints whose samples the status lists: the newest
MAX_COUNT = 1 << 62  # fits the API server's int64


@dataclass(frozen=True)
class TrainProgress:
    """Training has reached ``iteration`` of ``iterations``; times in seconds, None if unknown."""

    stage: str
    iteration: int
    iterations: int
    loss: float | None = None
    seconds_per_iteration: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None  # the last saved iteration
    warning: str = ""  # human-readable, such as a diverged loss
    phase: str = ""  # human-readable, such as 1/2 at 432x768; empty if the run has one phase
    checkpoint_interval: int | None = None  # iterations, if the trainer has chosen it
    checkpoint_interval_reason: str = ""  # human-readable


@dataclass(frozen=True)
class Validated:
    """The validation loss at ``iteration``: over all noise levels, and over a third of them each.

    ``base_loss`` is that of the initial weights; ``stopped`` says why training ends here, if so.
    """

    stage: str
    iteration: int
    loss: float | None = None  # None: not finite
    low: float | None = None
    middle: float | None = None
    high: float | None = None
    best_iteration: int | None = None
    best_loss: float | None = None
    base_loss: float | None = None
    weights: str = ""  # "regular" or "ema"
    stopped: str = ""


@dataclass(frozen=True)
class ItemProgress:
    """A stage has finished ``done`` of ``total`` items, in ``unit`` (windows, bytes, ...)."""

    stage: str
    done: int
    total: int
    unit: str = ""
    eta_seconds: float | None = None


@dataclass(frozen=True)
class CheckpointSaved:
    """A complete checkpoint of ``iteration`` is at ``path`` (relative to the volume)."""

    stage: str
    iteration: int
    path: str = ""


@dataclass(frozen=True)
class Withdrawn:
    """Checkpoints of a diverged run were deleted; the newest left is ``iteration`` (0: none)."""

    stage: str
    iteration: int
    path: str = ""


@dataclass(frozen=True)
class Resumed:
    """Training resumes from the checkpoint of ``iteration``."""

    stage: str
    iteration: int


@dataclass(frozen=True)
class SamplesMade:
    """``done`` of a checkpoint's ``total`` samples exist; ``message`` says why not all."""

    stage: str
    checkpoint: str
    done: int
    total: int
    iteration: int | None = None
    message: str = ""


@dataclass(frozen=True)
class ActionsMeasured:
    """Whether a model follows its actions, by its loss on held-out clips.

    ``lift`` is 1 - loss with true actions / loss with shuffled ones, at the same noise, over
    ``clips``; ``low`` and ``high`` are the ends of its interval (None with too few clips for one).
    """

    followed: bool
    text: str
    clips: int
    lift: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """Checkpoints were compared with the base weights on held-out clips.

    ``verdict`` is Better, Worse or Unclear, by ``metric`` of one checkpoint: its ``value``, that of
    the base weights, and the interval of the difference (None with too few clips for one).
    """

    stage: str
    verdict: str
    text: str
    metric: str
    checkpoint: str
    clips: int
    base: float
    value: float
    difference: float
    iteration: int | None = None
    low: float | None = None
    high: float | None = None
    actions: ActionsMeasured | None = None  # of a model that is conditioned on actions


@dataclass(frozen=True)
class Skipped:
    """The stage, possibly a later one than the worker's own, is complete on the volume already.

    ``message`` is information for the user, such as that the data changed since.
    """

    stage: str
    inputs_hash: str = ""
    message: str = ""


@dataclass(frozen=True)
class Finished:
    """The stage is complete; ``summary`` has numbers and short texts."""

    stage: str
    summary: tuple[tuple[str, int | float | str], ...] = ()


@dataclass(frozen=True)
class Failed:
    """The stage failed; with reason ``UserError``, another attempt would fail the same way."""

    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class VolumeSeen:
    """The worker found a volume of this identity; ``expected`` is the one passed to it."""

    stage: str
    identity: str
    expected: str = ""


Event: TypeAlias = (
    TrainProgress
    | Validated
    | ItemProgress
    | CheckpointSaved
    | Withdrawn
    | Resumed
    | SamplesMade
    | Evaluated
    | Skipped
    | Finished
    | Failed
    | VolumeSeen
)


class _InvalidField(Exception):
    """A field has the wrong type or size."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _InvalidField
    return "".join(c if c.isprintable() else " " for c in value[:MAX_TEXT]).strip()


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise _InvalidField
    return value


def _number(value: Any) -> float | None:
    """Return a finite number, otherwise None: a diverged loss must not lose the whole event."""
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
    checkpoint, interval = line.get("checkpoint"), line.get("checkpoint_interval")
    return TrainProgress(
        stage,
        _count(line["iteration"]),
        _count(line.get("iterations")),
        _number(line.get("loss")),
        _number(line.get("seconds_per_iteration")),
        eta,
        None if checkpoint is None else _count(checkpoint),
        _text(line.get("warning", "")),
        _text(line.get("phase", "")),
        None if interval is None else _count(interval),
        _text(line.get("checkpoint_interval_reason", "")),
    )


def _validated(stage: str, line: Mapping[str, Any]) -> Event:
    best = line.get("best_iteration")
    return Validated(
        stage,
        _count(line.get("iteration")),
        _number(line.get("loss")),
        _number(line.get("low")),
        _number(line.get("middle")),
        _number(line.get("high")),
        None if best is None else _count(best),
        _number(line.get("best_loss")),
        _number(line.get("base_loss")),
        _text(line.get("weights", "")),
        _text(line.get("stopped", "")),
    )


def _samples(stage: str, line: Mapping[str, Any]) -> Event:
    iteration = line.get("iteration")
    checkpoint = _text(line.get("checkpoint"))
    if not checkpoint:
        raise _InvalidField
    return SamplesMade(
        stage,
        checkpoint,
        _count(line.get("done")),
        _count(line.get("total")),
        None if iteration is None else _count(iteration),
        _text(line.get("message", "")),
    )


def _known_number(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise _InvalidField
    return number


def _actions(value: Any) -> ActionsMeasured | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not isinstance(value.get("followed"), bool):
        raise _InvalidField
    return ActionsMeasured(
        value["followed"],
        _text(value.get("text")),
        _count(value.get("clips")),
        _known_number(value.get("lift")),
        _number(value.get("low")),
        _number(value.get("high")),
    )


def _evaluation(stage: str, line: Mapping[str, Any]) -> Event:
    iteration = line.get("iteration")
    if line.get("verdict") not in ("Better", "Worse", "Unclear"):
        raise _InvalidField
    return Evaluated(
        stage,
        line["verdict"],
        _text(line.get("text")),
        _text(line.get("metric")),
        _text(line.get("checkpoint")),
        _count(line.get("clips")),
        _known_number(line.get("base")),
        _known_number(line.get("value")),
        _known_number(line.get("difference")),
        None if iteration is None else _count(iteration),
        _number(line.get("low")),
        _number(line.get("high")),
        _actions(line.get("actions")),
    )


def evaluated(stage: str, fields: Mapping[str, Any]) -> Event | None:
    """Return the event that a stage's record repeats; None if it has none."""
    try:
        return _evaluation(stage, fields)
    except _InvalidField:
        return None


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
    "validation": _validated,
    "checkpoint": lambda stage, line: CheckpointSaved(
        stage, _count(line.get("iteration")), _text(line.get("path", ""))
    ),
    "withdrawn": lambda stage, line: Withdrawn(
        stage, _count(line.get("iteration")), _text(line.get("path", ""))
    ),
    "resumed": lambda stage, line: Resumed(stage, _count(line.get("iteration"))),
    "samples": _samples,
    "evaluation": _evaluation,
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
    """Return the event on ``line``; None for anything else (plain text, damage, an attack)."""
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
    except (ValueError, RecursionError, _InvalidField):
        return None


class Lines:
    """Split a stream of bytes into lines; lines longer than ``MAX_LINE`` come in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes, without line ends."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        yield from complete
        if len(self._rest) > MAX_LINE:
            rest, self._rest = self._rest, b""
            yield rest

    def end(self) -> Iterator[bytes]:
        """Yield the last line if the stream ended without a line end."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3m12s, 5h07m or 2d03h."""
    rounded = max(0, round(seconds))
    for unit, below, small in ((86400, "d", 3600), (3600, "h", 60), (60, "m", 1)):
        if rounded >= unit:
            under = {3600: "h", 60: "m", 1: "s"}[small]
            return f"{rounded // unit}{below}{rounded % unit // small:02d}{under}"
    return f"{rounded}s"


def with_warning(message: str, warning: str) -> str:
    """Append the ``warning`` of training to a message, unless the message contains it."""
    return message if not warning or warning in message else f"{message} {warning}".strip()
