"""Choose how often a run saves checkpoints, from what a save costs and how often runs fail.

Saving more often costs time; saving less often loses more iterations when the run fails. The time
between two saves that loses least is J. T. Daly's, "A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006), equation 37,
which refines J. W. Young's sqrt(2 x cost x seconds between failures), Communications of the ACM 17
(1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from video2world_common.progress_events import duration

__all__ = [
    "FIRST_SAVE",
    "LONGEST",
    "Interval",
    "Measured",
    "choose",
    "daly_seconds",
    "every",
    "next_save",
    "seconds_between_failures",
]

# Llama 3: 419 unexpected interruptions in 54 days on 16,384 GPUs (arXiv:2407.21783, section 3.3.4).
GPU_SECONDS_PER_FAILURE = 16_384 * 54 * 86_400 / 419
# The published rate weighs as much as this fraction of a failure (50 hours of one GPU): clusters
# differ by orders of magnitude, so a run's own first failure counts for more.
PRIOR_FAILURES = 0.001

FIRST_SAVE = 20  # iterations after which the first checkpoint is saved, to measure what it costs
LONGEST = 3600.0  # seconds: what a failure of a kind that no rate foresees loses at most
SHARE = 10.0  # an interval is at least this many times as long as what a save costs
WRITES = 2.0  # and this many times as long as writing it in the background takes


def seconds_between_failures(devices: int, failures: int = 0, device_seconds: float = 0.0) -> float:
    """Return the expected seconds between two failures of a run.

    It is the mean of a Gamma prior around the published rate, updated by what was observed
    (failures are a Poisson process). The rate is never below the published one: one run without a
    failure does not contradict it.

    Args:
        devices: GPUs of the run, or processes without one.
        failures: those observed of this run, which lost iterations.
        device_seconds: time over which they were observed, times the devices.
    """
    published = 1 / GPU_SECONDS_PER_FAILURE
    observed = (PRIOR_FAILURES + failures) / (PRIOR_FAILURES / published + device_seconds)
    return 1 / (max(published, observed) * max(devices, 1))


def daly_seconds(cost: float, between: float) -> float:
    """Return the time to train between two saves that loses least time.

    Args:
        cost: seconds that a save keeps training waiting.
        between: expected seconds between two failures.
    """
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


@dataclass(frozen=True)
class Measured:
    """What a run has measured of itself, in seconds.

    ``save`` is how long a save keeps training waiting, ``write`` how long it is then written in the
    background (0: not at all, or not known yet), ``iteration`` how long an iteration takes.
    """

    save: float
    write: float
    iteration: float


@dataclass(frozen=True)
class Interval:
    """A number of iterations between two saves, and why it is that many."""

    iterations: int
    reason: str

    @property
    def text(self) -> str:
        """The interval and its reason as one sentence."""
        return f"{every(self.iterations)}: {self.reason}"


def every(iterations: int) -> str:
    """Say how often checkpoints are saved."""
    return "every iteration" if iterations == 1 else f"every {iterations} iterations"


def choose(measured: Measured, between: float) -> Interval:
    """Return the interval that loses least time, within its bounds.

    Args:
        measured: what the run has measured.
        between: expected seconds between two failures.
    """
    facts = f"saves cost {_seconds(measured.save)}, a failure every {duration(between)} expected"
    best = daly_seconds(measured.save, between)
    shortest, why = max(
        (SHARE * measured.save, f"the shortest, {SHARE:g} times the cost of a save"),
        (WRITES * measured.write, f"the shortest, {WRITES:g} times as long as writing one takes"),
    )
    seconds, bound = best, ""
    if seconds > LONGEST:
        seconds, bound = LONGEST, f" (the longest, {duration(LONGEST)})"
    if seconds < shortest:
        seconds, bound = shortest, f" ({why})"
    iterations = max(1, round(seconds / measured.iteration)) if measured.iteration > 0 else 1
    return Interval(iterations, facts + bound)


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else duration(value)


def next_save(iteration: int, interval: int, validation_interval: int | None = None) -> int:
    """Return the iteration of the next save after ``iteration``.

    A run that is validated every ``validation_interval`` iterations saves at validated ones, as
    only their checkpoints have a validation loss: the interval becomes a multiple of it, or divides
    it into nearly equal parts.
    """
    if validation_interval is None:
        return iteration + interval
    validated = iteration // validation_interval * validation_interval
    parts = round(validation_interval / interval)
    if parts <= 1:
        return validated + max(1, round(interval / validation_interval)) * validation_interval
    part = math.ceil(validation_interval / parts)
    inner = validated + ((iteration - validated) // part + 1) * part
    return min(inner, validated + validation_interval)
