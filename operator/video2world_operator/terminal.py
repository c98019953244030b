"""What a person sees: a bar or a tree that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from video2world_common.progress_events import (
    CheckpointSaved,
    Event,
    ItemProgress,
    TrainProgress,
    duration,
)

__all__ = ["Display", "Screen", "harmless"]

BAR = 28  # characters
EVERY = 5.0  # seconds between plain lines of progress


def harmless(text: str) -> str:
    """``text`` of a pod or another's message, without what a terminal would take as a command."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _text(event: Event) -> tuple[float, str] | None:
    """How far (0 to 1) and in words, for events that tell."""
    if isinstance(event, TrainProgress):
        words = [f"{event.iteration}/{event.iterations}"]
        if event.loss is not None:
            words.append(f"loss {event.loss:.4f}")
        if event.seconds_per_iteration is not None:
            words.append(f"{event.seconds_per_iteration:.3g} s/iteration")
        share = event.iteration / max(event.iterations, 1)
    elif isinstance(event, ItemProgress):
        words = [f"{event.done}/{event.total} {event.unit}".rstrip()]
        share = event.done / max(event.total, 1)
    else:
        return None
    if event.eta_seconds is not None and share < 1:
        words.append(f"{duration(event.eta_seconds)} left")
    return min(share, 1.0), "  ".join(words)


class Display:
    """Writes to ``out``; every line of the workers too if ``verbose``."""

    def __init__(self, out: TextIO, *, verbose: bool = False) -> None:
        self._out, self._verbose = out, verbose
        self._bar = out.isatty() and not verbose
        self._drawn = self._warned = False
        self._stage = ""
        self._started = self._last = 0.0

    def say(self, text: str) -> None:
        """One plain line."""
        self._clear()
        print(text, file=self._out, flush=True)

    def start(self, stage: str, detail: str = "") -> None:
        """A stage begins."""
        self._stage, self._started = stage, time.monotonic()
        self._last = self._started
        if not self._bar:
            self.say(f"{stage:<11} started{f' ({detail})' if detail else ''}")

    def skip(self, stage: str, note: str = "") -> None:
        """A stage is on the volume already; ``note`` is what its user should know."""
        self.say(f"{stage:<11} already done, skipped" + (f"; {note}" if note else ""))

    def event(self, event: Event) -> None:
        """A worker told something."""
        if isinstance(event, CheckpointSaved) and not self._bar and self._verbose:
            self.say(f"{event.stage:<11} checkpoint {event.iteration}")
        if isinstance(event, TrainProgress):
            if event.warning and not self._warned:
                self.say(f"{event.stage:<11} warning: {event.warning}")
            self._warned = bool(event.warning)
        shown = _text(event)
        if shown is None:
            return
        share, words = shown
        now = time.monotonic()
        if self._bar:
            full = round(share * BAR)
            line = f"{self._stage:<11} [{'#' * full}{'.' * (BAR - full)}] {words}"
            self._out.write(f"\r\x1b[K{line[:110]}")
            self._out.flush()
            self._drawn = True
        elif share >= 1 or now - self._last >= EVERY:
            self._last = now
            self.say(f"{self._stage:<11} {words}")

    def line(self, pod: str, text: str) -> None:
        """A worker's plain line."""
        if self._verbose:
            self.say(f"{pod} | {harmless(text)}")

    def end(self, stage: str, outcome: str) -> None:
        """A stage ended."""
        self.say(f"{stage:<11} {outcome} in {duration(time.monotonic() - self._started)}")

    def _clear(self) -> None:
        if self._drawn:
            self._out.write("\r\x1b[K")
            self._drawn = False


class Screen:
    """Shows the same few lines again and again: in place if ``live`` and on a terminal, one below
    the other elsewhere, and there only if ``changed``."""

    def __init__(self, out: TextIO, *, live: bool = True) -> None:
        self._out = out
        self._live = live and out.isatty()
        self._shown = 0

    def show(self, lines: Sequence[str], *, changed: bool = True) -> None:
        """Show ``lines`` in the place of the last ones; what does not fit is cut off."""
        lines = [harmless(line) for line in lines]
        if not self._live:
            if changed:
                self._out.write("".join(f"{line}\n" for line in lines))
                self._out.flush()
            return
        width, height = shutil.get_terminal_size()
        if len(lines) >= height:  # a line that has scrolled away could not be drawn over
            lines = [*lines[: height - 2], f"... {len(lines) - height + 2} lines more"]
        up = f"\x1b[{self._shown}A" if self._shown else ""
        text = "".join(f"{line[: width - 1]}\x1b[K\n" for line in lines)
        self._out.write(f"{up}\r{text}\x1b[J")
        self._out.flush()
        self._shown = len(lines)
