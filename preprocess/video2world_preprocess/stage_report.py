"""Count what a stage did, and report every item that it left out: in the log and in files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video2world_common.events import emit, say
from video2world_common.files import write_json, write_text
from video2world_preprocess.report_page import render_page

__all__ = ["Problem", "Report", "printable", "write_report"]

MAX_LINES = 20  # problems to print, so that the log stays readable; the file has all of them


def printable(text: str) -> str:
    """Return ``text`` with control characters, line breaks and surrogates escaped."""
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text
    )


@dataclass(frozen=True)
class Problem:
    """An item that was left out or changed: its kind (episode, window, ...), its name, and why."""

    kind: str
    item: str
    reason: str


@dataclass
class Report:
    """The counts of a stage, the items it dropped, and notes for the user."""

    stage: str
    counts: dict[str, Any] = field(default_factory=dict)
    dropped: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def drop(self, kind: str, item: str, reason: str) -> None:
        """Record that ``item`` is left out, and print it."""
        self.dropped.append(Problem(kind, printable(item), printable(reason)))
        item, reason = self.dropped[-1].item, self.dropped[-1].reason
        if len(self.dropped) <= MAX_LINES:
            say(f"{self.stage}: dropped {kind} {item}: {reason}")
        elif len(self.dropped) == MAX_LINES + 1:
            say(f"{self.stage}: more items are dropped; see report.json for all of them")

    def note(self, kind: str, item: str, reason: str) -> None:
        """Record something about ``item`` that the user may want to know."""
        self.notes.append(Problem(kind, printable(item), printable(reason)))

    @property
    def dropped_by_kind(self) -> dict[str, int]:
        """The number of dropped items by kind."""
        kinds = sorted({problem.kind for problem in self.dropped})
        return {kind: sum(p.kind == kind for p in self.dropped) for kind in kinds}

    def summary(self) -> dict[str, Any]:
        """Return the counts for an event line."""
        return {**self.counts, "dropped": self.dropped_by_kind, "notes": len(self.notes)}

    def as_json(self) -> dict[str, Any]:
        """Return the complete report for ``report.json``."""
        return {
            "counts": self.counts,
            "dropped": [vars(problem) for problem in self.dropped],
            "dropped_by_kind": self.dropped_by_kind,
            "notes": [vars(problem) for problem in self.notes],
        }

    def show(self) -> None:
        """Print the counts as text and as an event line."""
        for name, value in self.counts.items():
            say(f"  {name.replace('_', ' ')}: {value}")
        for kind, count in self.dropped_by_kind.items():
            say(f"  dropped ({kind}): {count}")
        for problem in self.notes[:MAX_LINES]:
            say(f"  note: {problem.kind} {problem.item}: {problem.reason}")
        emit("report", self.stage, **self.summary())


def write_report(folder: Path, report: Report, samples: Sequence[Path] = (), **more: Any) -> None:
    """Write ``report.json`` (with the fields ``more``) and ``report.html`` into ``folder``.

    The files of stages other than dataset are named ``report-<stage>``. The page shows a few of
    the videos ``samples``.
    """
    stem = "report" if report.stage == "dataset" else f"report-{report.stage}"
    write_json(folder / f"{stem}.json", {"stage": report.stage, **more, **report.as_json()})
    problems = {"Left out": report.dropped, "Notes": report.notes}
    title = f"{folder.name}: {report.stage}"
    write_text(folder / f"{stem}.html", render_page(title, report.counts, problems, samples))
