"""Draw progress: in place on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
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

__all__ = ["Display", "Screen", "sanitize_terminal"]

BAR_WIDTH = 28  # characters
LINE_SECONDS = 5.0  # between plain lines of progress


def sanitize_terminal(text: str) -> str:
    """Replace control characters in ``text`` that we did not write."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


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


class Display:
    """Shows the stages of a local run on ``out``, with all output of the workers if ``verbose``."""

    def __init__(self, out: TextIO, *, verbose: bool = False) -> None:
        self._out, self._verbose = out, verbose
        self._draws_bar = out.isatty() and not verbose
        self._drawn = self._warned = False
        self._stage = ""
        self._started = self._last = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        self._clear()
        print(text, file=self._out, flush=True)

    def start(self, stage: str, detail: str = "") -> None:
        """Show that a stage starts."""
        self._stage, self._started = stage, time.monotonic()
        self._last = self._started
        if not self._draws_bar:
            self.say(f"{stage:<11} started{f' ({detail})' if detail else ''}")

    def skip(self, stage: str, note: str = "") -> None:
        """Show that a stage is already done; ``note`` is something the user should know."""
        self.say(f"{stage:<11} already done, skipped" + (f"; {note}" if note else ""))

    def event(self, event: Event) -> None:
        """Show the event of a worker."""
        if isinstance(event, CheckpointSaved) and not self._draws_bar and self._verbose:
            self.say(f"{event.stage:<11} checkpoint {event.iteration}")
        if isinstance(event, TrainProgress):
            if event.warning and not self._warned:
                self.say(f"{event.stage:<11} warning: {event.warning}")
            self._warned = bool(event.warning)
        if isinstance(event, Validated):
            self.say(f"{event.stage:<11} {_validation(event)}")
        if isinstance(event, Evaluated):
            self.say(f"{event.stage:<11} {event.text}")
        shown = _progress(event)
        if shown is None:
            return
        fraction, text = shown
        now = time.monotonic()
        if self._draws_bar:
            full = round(fraction * BAR_WIDTH)
            line = f"{self._stage:<11} [{'#' * full}{'.' * (BAR_WIDTH - full)}] {text}"
            self._out.write(f"\r\x1b[K{line[:110]}")
            self._out.flush()
            self._drawn = True
        elif fraction >= 1 or now - self._last >= LINE_SECONDS:
            self._last = now
            self.say(f"{self._stage:<11} {text}")

    def line(self, pod: str, text: str) -> None:
        """Show a line of a worker's output that is not an event."""
        if self._verbose:
            self.say(f"{pod} | {sanitize_terminal(text)}")

    def end(self, stage: str, outcome: str) -> None:
        """Show how a stage ended."""
        self.say(f"{stage:<11} {outcome} in {duration(time.monotonic() - self._started)}")

    def _clear(self) -> None:
        if self._drawn:
            self._out.write("\r\x1b[K")
            self._drawn = False


class Screen:
    """Shows a block of lines that is updated: in place if ``live`` and ``out`` is a terminal, else
    by printing a new block when it has changed."""

    def __init__(self, out: TextIO, *, live: bool = True) -> None:
        self._out = out
        self._live = live and out.isatty()
        self._shown = 0

    def show(self, lines: Sequence[str], *, changed: bool = True) -> None:
        """Show ``lines`` instead of the last ones, cut to the size of the terminal."""
        lines = [sanitize_terminal(line) for line in lines]
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
