"""What a dataset command did with each item, told in full to people and to ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .events import emit, say

__all__ = ["Problem", "Report"]

SHOWN = 20  # problems printed one by one; a large task's log stays readable, the file has all


@dataclass(frozen=True)
class Problem:
    """One thing that was left out: its ``kind`` (episode, window, ...), its name, and why."""

    kind: str
    item: str
    reason: str


@dataclass
class Report:
    """Counts of a dataset stage, with every dropped item and every remark worth knowing."""

    stage: str
    counts: dict[str, Any] = field(default_factory=dict)
    dropped: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def drop(self, kind: str, item: str, reason: str) -> None:
        """Count ``item`` as left out and name it in the log."""
        self.dropped.append(Problem(kind, item, reason))
        if len(self.dropped) <= SHOWN:
            say(f"{self.stage}: dropped {kind} {item}: {reason}")
        elif len(self.dropped) == SHOWN + 1:
            say(f"{self.stage}: more items are dropped; see report.json for all of them")

    def note(self, kind: str, item: str, reason: str) -> None:
        """Remember something done to ``item`` that its owner may want to know."""
        self.notes.append(Problem(kind, item, reason))

    @property
    def dropped_by_kind(self) -> dict[str, int]:
        """How many items of each kind were left out."""
        kinds = sorted({problem.kind for problem in self.dropped})
        return {kind: sum(p.kind == kind for p in self.dropped) for kind in kinds}

    def summary(self) -> dict[str, Any]:
        """The counts, flat enough for an event line."""
        return {**self.counts, "dropped": self.dropped_by_kind, "notes": len(self.notes)}

    def as_json(self) -> dict[str, Any]:
        """Everything, for ``report.json``."""
        return {
            "counts": self.counts,
            "dropped": [vars(problem) for problem in self.dropped],
            "dropped_by_kind": self.dropped_by_kind,
            "notes": [vars(problem) for problem in self.notes],
        }

    def show(self) -> None:
        """Print the counts for people, and as one event line."""
        for name, value in self.counts.items():
            say(f"  {name.replace('_', ' ')}: {value}")
        for kind, count in self.dropped_by_kind.items():
            say(f"  dropped ({kind}): {count}")
        for problem in self.notes[:SHOWN]:
            say(f"  note: {problem.kind} {problem.item}: {problem.reason}")
        emit("report", self.stage, **self.summary())
