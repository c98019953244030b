"""Check the invariants in every state that the API server's store ever had, change by change."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from control_plane import Change
from video2world_operator.plan.stage import SAMPLING

from .history import Foreign, History, Run, StatusChange
from .status_claims import describe, false_claims

__all__ = ["Checker", "Violation"]

FREED_WITHIN = 120.0  # seconds after a failure; success and suspension free GPUs beforehand


@dataclass(frozen=True)
class Violation:
    """A broken invariant: of which resource, since which revision, and how."""

    invariant: str
    resource: str
    revision: int
    text: str


class Checker:
    """Feed it every change in order; violations are in :attr:`violations`.

    ``known``: stages and inputs hashes that workers report as done before.
    """

    def __init__(self, known: Set[tuple[str, str]] = frozenset()) -> None:
        self._known = known
        self.history = History()
        self.violations: list[Violation] = []
        self.states = 0
        self.longest_held = 0.0  # seconds that a failed resource's pods held GPUs

    def see(self, change: Change, now: float) -> None:
        """Take in the next change; ``now`` in seconds of a monotonic clock."""
        self.states += 1
        match self.history.record(change, now):
            case Foreign(resource, text):
                self.violations.append(Violation("owned", resource, change.revision, text))
            case StatusChange(run, before):
                self._check_status(run, before, change.revision)
                self._check(run, change.revision)
            case Run() as run:
                self._check(run, change.revision)

    def _check(self, run: Run, revision: int) -> None:
        """Check a resource and its children together."""
        live = {w.job: w.attempt for w in run.workers.values() if w.live}
        live |= {
            j.uid: (j.stage, j.attempt)
            for j in run.jobs.values()
            if not j.finished and not j.deleting
        }
        working = [attempt for attempt in live.values() if attempt[0] != SAMPLING]
        if len(working) > 1:  # by Job: two Jobs of the same number would be two attempts, too
            names = ", ".join(map(describe, sorted(working)))
            self.report(run, "one attempt", f"live: {names}", revision)
        if not run.exists:
            return
        phase, holders = run.status.get("phase"), run.gpu_holders
        if phase in ("Succeeded", "Suspended"):
            if holders:
                text = f"{phase}, but {', '.join(holders)} live"
                self.report(run, "GPUs freed", text, revision)
            elif live:
                names = ", ".join(map(describe, sorted(live.values())))
                self.report(run, "true claims", f"{phase}, but live: {names}", revision)
        now = self.history.now
        if phase != "Failed":
            run.failed_at = None
        elif run.failed_at is None:
            run.failed_at = now
        if run.failed_at is not None and holders:
            self.longest_held = max(self.longest_held, now - run.failed_at)

    def check_deadlines(self, now: float) -> None:
        """Report failed resources that still hold GPUs at ``now``."""
        for run in self.history.runs.values():
            if run.exists and run.failed_at is not None and now - run.failed_at > FREED_WITHIN:
                holders = run.gpu_holders
                if holders:
                    text = f"failed {now - run.failed_at:.0f} s ago, but {', '.join(holders)} live"
                    self.report(run, "GPUs freed", text)

    def _check_status(self, run: Run, before: Mapping[str, Any], revision: int) -> None:
        status = run.status
        counters = {
            name: status.get(name, 0) for name in ("attempt", "restarts", "observedGeneration")
        } | {f"attempt of {e['name']}": e.get("attempt", 0) for e in status.get("stages", [])}
        for name, value in counters.items():
            if value < run.highest.get(name, 0):
                text = f"{name} was {run.highest[name]}, now it is {value}"
                self.report(run, "only grows", text, revision)
            run.highest[name] = max(value, run.highest.get(name, 0))
        if counters["observedGeneration"] > run.generation:
            text = "observes a generation that does not exist"
            self.report(run, "true claims", text, revision)
        for text in false_claims(run, before, self._known):
            self.report(run, "true claims", text, revision)

    def report(self, run: Run, invariant: str, text: str, revision: int = 0) -> None:
        """Add the first violation of an invariant by a resource; later ones may follow from it."""
        if invariant not in run.violated:
            run.violated.add(invariant)
            self.history.note(run, revision, f"BROKEN: {invariant}: {text}")
            self.violations.append(Violation(invariant, run.name, revision, text))
