"""Detect from the reported losses whether and when training has diverged.

A single loss says little: it depends on the drawn noise level, by a factor of twenty. Reports are
therefore combined into points of at least :data:`CLIPS` clips. Training has diverged

* if its loss is :data:`FAR` times that of predicting zero for :data:`REPORTS` reports, which no
  network that learns exceeds, whatever its data; or
* if :data:`POINTS` points in a row are each :data:`RISE` times the lowest mean of as many earlier
  points, and at least half as bad as predicting zero: what was learned is lost.

The state is plain data, so that a resumed run comes to the same results as an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["REMEDY", "Divergence"]

REMEDY = (
    "Lower optimizer.lr (spec.training.learningRate) or raise scheduler.warm_up_steps "
    "(spec.training.warmupIterations)."
)
CLIPS = 32  # per point
POINTS = 3
RISE = 4.0
FAR = 10.0
REPORTS, ITERATIONS = 3, 10  # at least this many reports over this many iterations


@dataclass
class Divergence:
    """State of the detection, saved under these names; iterations count from 1."""

    nothing: float = 0.0  # loss of a network that predicts zero; 0 if not known yet
    lowest: float | None = None  # lowest mean of POINTS points
    lowest_at: int = 0
    healthy: int = 0  # newest iteration with a sound loss
    since: int | None = None  # the last sound iteration before training diverged; None: it has not
    loss: float | None = None  # the newest bad loss
    _reported: int = 0  # iteration of the last report
    _start: int = 0  # first iteration of the incomplete point
    _clips: int = 0  # of the incomplete point
    _sum: float = 0.0  # of the incomplete point's losses
    _points: list[float] = field(default_factory=list)  # the newest sound points
    _bad: list[int] = field(default_factory=list)  # starts of the newest consecutive bad points
    _far: list[int] = field(default_factory=list)  # starts of the newest reports far above zero's
    _sound: int = 0  # points since the last bad one

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Divergence:
        """Restore a :meth:`state`."""
        known = {name: value for name, value in state.items() if name in cls.__dataclass_fields__}
        return cls(**known)

    def state(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return asdict(self)

    @property
    def limit(self) -> float:
        """The loss above which a point is bad."""
        limits = [FAR * self.nothing] if self.nothing else []
        if self.lowest is not None:
            limits.append(max(RISE * self.lowest, 0.5 * self.nothing))
        return min(limits, default=math.inf)

    def report(self, iteration: int, loss: float | None, clips: int, *, last: bool = False) -> None:
        """Evaluate a progress report.

        Args:
            iteration: iterations done.
            loss: mean loss since the last report; None if all steps were skipped.
            clips: number of clips since the last report.
            last: no report will follow, so a single one far above zero's loss is enough.
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
            self.since = self.loss = None  # training has recovered

    def _diverged(self, begin: int, loss: float) -> None:
        if self.since is None:
            self.since = min(begin, self.healthy)
        self.loss = loss

    def warning(self) -> str:
        """Describe the divergence for the log; empty if there is none."""
        if self.since is None or self.loss is None:
            return ""
        before = "" if self.lowest is None else f", the lowest was {self.lowest:.3g}"
        return (
            f"Training has diverged after iteration {self.since}: the loss is {self.loss:.3g}"
            f"{before}, and predicting nothing gives {self.nothing:.3g}."
        )
