"""Tell from the reported losses whether a training has diverged, and since when.

A single loss says little: it depends on the noise level that was drawn, by a factor of twenty. So
reports are gathered into points of at least :data:`CLIPS` clips. A training has diverged

* if it is far worse than predicting nothing (:data:`FAR` times that loss) for :data:`REPORTS`
  reports; no network that learns is, whatever its data; or
* if :data:`POINTS` points each are :data:`RISE` times the lowest mean of as many points before, and
  at least half as bad as predicting nothing: what was learned is lost.

Everything is plain data, so that a resumed training judges as one that was never stopped.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Divergence"]

CLIPS = 32  # of a point
POINTS = 3
RISE = 4.0
FAR = 10.0
REPORTS, ITERATIONS = 3, 10  # at least so many reports over so many iterations


@dataclass
class Divergence:
    """What is known of a training's losses; iterations count from 1."""

    nothing: float = 0.0  # loss of a network that predicts zero; 0 while it is not known
    lowest: float | None = None  # mean of POINTS points
    lowest_at: int = 0
    healthy: int = 0  # iteration up to which the loss is known to be sound
    since: int | None = None  # the last sound iteration before it diverged; None: it has not
    loss: float | None = None  # the newest that was bad
    _reported: int = 0
    _start: int = 0  # of the point being gathered
    _clips: int = 0
    _sum: float = 0.0
    _points: list[float] = field(default_factory=list)  # the newest sound ones
    _bad: list[int] = field(default_factory=list)  # starts of the newest points that rose
    _far: list[int] = field(default_factory=list)  # starts of the newest reports that are far off
    _sound: int = 0  # points since the last that was bad

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Divergence:
        """Continue from :meth:`state`."""
        known = {name: value for name, value in state.items() if name in cls.__dataclass_fields__}
        return cls(**known)

    def state(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)

    @property
    def limit(self) -> float:
        """The loss from which on a point is bad."""
        limits = [FAR * self.nothing] if self.nothing else []
        if self.lowest is not None:
            limits.append(max(RISE * self.lowest, 0.5 * self.nothing))
        return min(limits, default=math.inf)

    def report(self, iteration: int, loss: float | None, clips: int, *, last: bool = False) -> None:
        """Take in the mean ``loss`` of ``clips`` clips up to ``iteration``.

        Args:
            iteration: iterations done.
            loss: None where every step was skipped: that is counted elsewhere.
            clips: since the report before.
            last: no report will follow; a loss that is far off then counts at once.
        """
        begin, self._reported = self._reported, iteration
        if loss is None or clips <= 0:
            return
        far = not loss <= FAR * (self.nothing or math.inf)
        self._far = [*self._far, begin][-REPORTS:] if far else []
        self._clips += clips
        self._sum += loss * clips
        mean = self._sum / self._clips
        if self._clips >= CLIPS:
            self._point(iteration, mean)
        elif self._clips >= CLIPS // 4 and not far and not self._bad and mean <= self.limit:
            self.healthy = iteration
        enough = len(self._far) == REPORTS and iteration - self._far[0] >= ITERATIONS
        if far and (enough or last):
            self._diverged(self._far[0], loss)

    def _point(self, iteration: int, mean: float) -> None:
        begin, self._start = self._start, iteration
        self._clips, self._sum = 0, 0.0
        if not mean <= self.limit:
            self._bad, self._sound = [*self._bad, begin][-POINTS:], 0
            rose = self.lowest is not None and not mean <= max(
                RISE * self.lowest, 0.5 * self.nothing
            )
            if len(self._bad) == POINTS and rose:
                self._diverged(self._bad[0], mean)
            return
        self._bad, self.healthy = [], iteration
        self._sound += 1
        self._points = [*self._points, mean][-POINTS:]
        if len(self._points) == POINTS:
            newest = sum(self._points) / POINTS
            if self.lowest is None or newest < self.lowest:
                self.lowest, self.lowest_at = newest, iteration
        if self._sound >= POINTS:
            self.since = self.loss = None  # it has recovered

    def _diverged(self, begin: int, loss: float) -> None:
        if self.since is None:
            self.since = min(begin, self.healthy)
        self.loss = loss

    def warning(self) -> str:
        """Say it for people; empty if there is nothing to say."""
        if self.since is None or self.loss is None:
            return ""
        before = "" if self.lowest is None else f", the lowest was {self.lowest:.3g}"
        return (
            f"Training has diverged after iteration {self.since}: the loss is {self.loss:.3g}"
            f"{before}, and predicting nothing gives {self.nothing:.3g}."
        )
