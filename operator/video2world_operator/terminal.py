"""Draw progress: in place on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TextIO

from video2world_common.progress_events import (
    CheckpointSaved,
    Evaluated,
    Event,
    ItemProgress,
    TrainProgress,
    Validated,
    duration,
)

__all__ = ["Display", "Screen", "sanitize_terminal", "sparkline", "writes_unicode"]

BAR_WIDTH, SPARKLINE_WIDTH = 24, 32  # characters
MARKS, ASCII_MARKS = "▁▂▃▄▅▆▇█", ".:-=+*#%"  # of a curve, from low to high
LINE_SECONDS = 5.0  # between plain lines of progress


def sanitize_terminal(text: str) -> str:
    """Replace control characters in ``text`` that we did not write."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def writes_unicode(out: TextIO) -> bool:
    """Whether ``out`` can show more than ASCII."""
    return "utf" in (out.encoding or "").lower()


def _progress(event: Event) -> tuple[float, str] | None:
    """Return the progress from 0 to 1 and its text; None if the event has none."""
    if isinstance(event, TrainProgress):
        parts = [f"{event.iteration}/{event.iterations}"]
        if event.phase:
            parts.append(f"phase {event.phase}")
        if event.loss is not None:
            parts.append(f"loss {event.loss:.4f}")
        if event.seconds_per_iteration is not None:
            parts.append(f"{event.seconds_per_iteration:.3g} s/iteration")
        fraction = event.iteration / max(event.iterations, 1)
    elif isinstance(event, ItemProgress):
        parts = [f"{event.done}/{event.total} {event.unit}".rstrip()]
        fraction = event.done / max(event.total, 1)
    else:
        return None
    if event.eta_seconds is not None and fraction < 1:
        parts.append(f"{duration(event.eta_seconds)} left")
    return min(fraction, 1.0), "  ".join(parts)


def _validation(event: Validated) -> str:
    loss = "not finite" if event.loss is None else f"{event.loss:.4f}"
    best = ""
    if event.best_loss is not None:
        best = f" (best {event.best_loss:.4f} at {event.best_iteration})"
    ended = f"; training ends: {event.stopped}" if event.stopped else ""
    return f"validation loss {loss} at iteration {event.iteration}{best}{ended}"


def sparkline(values: Sequence[float], marks: str = MARKS, width: int = SPARKLINE_WIDTH) -> str:
    """Draw ``values``, one character each; with more than ``width``, means of neighbours."""
    count = min(len(values), width)
    edges = [len(values) * n // count for n in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    top = len(marks) - 1
    return "".join(marks[round((mean - low) / span * top) if span else 0] for mean in means)


@dataclass
class _Row:
    """A stage on the terminal: how far it is, from 0 to 1, what it says, and its losses."""

    fraction: float = 0.0
    text: str = ""
    losses: list[float] = field(default_factory=list)

    def lines(self, stage: str, *, plain: bool) -> list[str]:
        full = round(self.fraction * BAR_WIDTH)
        bar = f"[{'#' * full}{'.' * (BAR_WIDTH - full)}]"
        lines = [f"{stage:<11} {bar} {self.text}".rstrip()]
        if len(self.losses) > 1:
            curve = sparkline(self.losses, ASCII_MARKS if plain else MARKS)
            lines.append(f"{'':<11} loss {curve}  {self.losses[0]:.4f} to {self.losses[-1]:.4f}")
        return lines


class Display:
    """Shows the stages of a local run on ``out``, with all output of the workers if ``verbose``.

    A terminal shows a row for each stage, updated in place below the other lines.
    """

    def __init__(self, out: TextIO, *, verbose: bool = False) -> None:
        self._out, self._verbose = out, verbose
        self._screen = Screen(out) if out.isatty() and not verbose else None
        self._rows: dict[str, _Row] = {}
        self._warned = False
        self._stage = ""
        self._started = self._last = 0.0

    def expect(self, stages: Sequence[str]) -> None:
        """Show rows for ``stages`` from the beginning."""
        for stage in stages:
            self._rows.setdefault(stage, _Row())
        self._draw()

    def say(self, text: str) -> None:
        """Print one line."""
        if self._screen is not None:
            self._screen.above(text)
        else:
            print(text, file=self._out, flush=True)

    def start(self, stage: str, detail: str = "") -> None:
        """Show that a stage starts."""
        self._stage, self._started = stage, time.monotonic()
        self._last = self._started
        self._report(stage, f"started{f' ({detail})' if detail else ''}", 0.0)

    def skip(self, stage: str, note: str = "") -> None:
        """Show that a stage is already done; ``note`` is something the user should know."""
        self._report(stage, "already done, skipped" + (f"; {note}" if note else ""), 1.0)

    def event(self, event: Event) -> None:
        """Show the event of a worker."""
        if isinstance(event, CheckpointSaved) and self._verbose:
            self.say(f"{event.stage:<11} checkpoint {event.iteration}")
        if isinstance(event, TrainProgress):
            if event.warning and not self._warned:
                self.say(f"{event.stage:<11} warning: {event.warning}")
            self._warned = bool(event.warning)
            if event.loss is not None and self._screen is not None:
                self._row(self._stage).losses.append(event.loss)
        if isinstance(event, Validated):
            self.say(f"{event.stage:<11} {_validation(event)}")
        if isinstance(event, Evaluated):
            self.say(f"{event.stage:<11} {event.text}")
        shown = _progress(event)
        if shown is None:
            return
        fraction, text = shown
        now = time.monotonic()
        if self._screen is not None:
            self._report(self._stage, text, fraction)
        elif fraction >= 1 or now - self._last >= LINE_SECONDS:
            self._last = now
            self._report(self._stage, text, fraction)

    def line(self, pod: str, text: str) -> None:
        """Show a line of a worker's output that is not an event."""
        if self._verbose:
            self.say(f"{pod} | {sanitize_terminal(text)}")

    def end(self, stage: str, outcome: str) -> None:
        """Show how a stage ended."""
        row = self._row(stage)
        done = 1.0 if outcome == "done" else row.fraction
        self._report(stage, f"{outcome} in {duration(time.monotonic() - self._started)}", done)

    def _row(self, stage: str) -> _Row:
        return self._rows.setdefault(stage, _Row())

    def _report(self, stage: str, text: str, fraction: float) -> None:
        """Show what a stage does, in its row or as a line."""
        row = self._row(stage)
        row.text, row.fraction = text, fraction
        if self._screen is None:
            self.say(f"{stage:<11} {text}")
        self._draw()

    def _draw(self) -> None:
        if self._screen is not None:
            plain = not writes_unicode(self._out)
            rows = self._rows.items()
            self._screen.show([line for s, row in rows for line in row.lines(s, plain=plain)])


class Screen:
    """Shows a block of lines that is updated: in place if ``live`` and ``out`` is a terminal, else
    by printing a new block when it has changed."""

    def __init__(self, out: TextIO, *, live: bool = True) -> None:
        self._out = out
        self._live = live and out.isatty()
        self._shown = 0
        self._lines: Sequence[str] = ()

    def above(self, line: str) -> None:
        """Print a line that stays, above the block."""
        up = f"\x1b[{self._shown}A\r\x1b[J" if self._shown else ""
        self._out.write(f"{up}{sanitize_terminal(line)}\n")
        self._shown = 0
        if self._lines:
            self.show(self._lines)
        else:
            self._out.flush()

    def show(self, lines: Sequence[str], *, changed: bool = True) -> None:
        """Show ``lines`` instead of the last ones, cut to the size of the terminal."""
        self._lines = lines = [sanitize_terminal(line) for line in lines]
        if not self._live:
            if changed:
                self._out.write("".join(f"{line}\n" for line in lines))
                self._out.flush()
            return
        width, height = shutil.get_terminal_size()
        if len(lines) >= height:  # lines that have scrolled away cannot be redrawn
            lines = [*lines[: height - 2], f"... {len(lines) - height + 2} more lines"]
        up = f"\x1b[{self._shown}A" if self._shown else ""
        text = "".join(f"{line[: width - 1]}\x1b[K\n" for line in lines)
        self._out.write(f"{up}\r{text}\x1b[J")
        self._out.flush()
        self._shown = len(lines)
