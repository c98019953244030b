"""Write the tables of docs/reliability.md from the records of chaos and torture."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .cases import Marks, between

__all__ = ["CHAOS", "CHAOS_KUEUE", "DOCUMENT", "TORTURE", "documented", "write"]

ROOT = Path(__file__).resolve().parents[1]
CHAOS = ROOT / "benchmarks" / "results" / "chaos.json"
CHAOS_KUEUE = ROOT / "benchmarks" / "results" / "chaos_kueue.json"
TORTURE = ROOT / "benchmarks" / "results" / "torture.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- {0}: made by `python -m benchmarks.reliability` -->"
CHAOS_MARKS: Marks = (BEGIN.format("chaos"), "<!-- /chaos -->")
KUEUE_MARKS: Marks = (BEGIN.format("chaos with Kueue"), "<!-- /chaos with Kueue -->")
TORTURE_MARKS: Marks = (BEGIN.format("torture"), "<!-- /torture -->")

Record = dict[str, Any]


def documented(
    text: str, chaos: Record | None, kueue: Record | None, torture: Record | None
) -> str:
    """Return ``text`` with the records' tables between its marks; a record may be missing."""
    text = between(CHAOS_MARKS, text, _chaos(chaos, 200) if chaos else "Not run yet.")
    text = between(KUEUE_MARKS, text, _chaos(kueue, 50) if kueue else "Not run yet.")
    return between(TORTURE_MARKS, text, _torture(torture) if torture else "Not run yet.")


def write() -> None:
    """Update the document from the records."""
    records = (
        json.loads(path.read_text()) if path.exists() else None
        for path in (CHAOS, CHAOS_KUEUE, TORTURE)
    )
    DOCUMENT.write_text(documented(DOCUMENT.read_text(), *records))


def _machine(machine: Record) -> str:
    return (
        f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, commit "
        f"{machine['commit']}, {machine['date']}, `{machine['command'].strip()}`"
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["", *(f"| {' | '.join(str(cell) for cell in row)} |" for row in lines)]


def _sum(trials: list[Record], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in trials:
        total.update(one[name])
    return dict(sorted(total.items()))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _chaos(record: Record, goal: int) -> str:
    trials = sorted(record["trials"], key=lambda one: int(one["seed"]))
    failed = [one for one in trials if one["broken"]]
    commits = sorted({one["commit"] for one in trials})
    kueue = f", Kueue v{record['kueue']}" if "kueue" in record else ""
    lines = [
        f"**{len(trials) - len(failed)} of {len(trials)} seeds without a violation** (goal: "
        f"{goal} of {goal}). Kubernetes {record['control_plane']}{kueue}, "
        f"{_machine(record['machine'])}; commits of the trials: {', '.join(commits)}."
    ]
    seconds = sorted(one["seconds"] for one in trials)
    ends = sorted(one["seconds_from_calm_to_all_ended"] for one in trials)
    count = record["resources"]
    lines += _table(
        ("figure", "all seeds"),
        [
            (
                f"resources applied (each seed: {count}, and those created again)",
                f"{sum(one['resources'] for one in trials):,}",
            ),
            ("Jobs created", f"{sum(one['jobs'] for one in trials):,}"),
            ("restarts", f"{sum(one['restarts'] for one in trials):,}"),
            ("final phases of the resources", _listed(_sum(trials, "phases"))),
            ("states checked", f"{sum(one['states'] for one in trials):,}"),
            (f"faults (each seed: {record['faults']})", _listed(_sum(trials, "faults"))),
            ("the operator's requests, by response", _listed(_sum(trials, "requests"))),
            ("exits of an operator process", _listed(_sum(trials, "operator_ends"))),
            (
                "seconds from the last fault until all resources have ended",
                f"median {ends[len(ends) // 2]}, longest {ends[-1]}",
            ),
            (
                "longest time that a failed resource's pods held a GPU, seconds",
                max(one["longest_gpu_held_after_failure_s"] for one in trials),
            ),
            ("seconds a seed takes", f"median {seconds[len(seconds) // 2]}, longest {seconds[-1]}"),
        ],
    )
    if failed:
        lines += _table(
            ("seed", "invariant", "resource", "observation"),
            [
                (one["seed"], b["invariant"], b["resource"], b["text"][:200].replace("\n", " "))
                for one in failed
                for b in one["broken"][:3]
            ],
        )
    return "\n".join(lines)


def _torture(record: Record) -> str:
    lines: list[str] = []
    if trials := record.get("killed"):
        first, kills = trials[0], sum(one["kills"] for one in trials)
        ranks, launchers, runs = (
            sum(one.get(name, 0) for one in trials) for name in ("ranks", "launchers", "whole_runs")
        )
        lost = sum(one["iterations_lost"]["all"] for one in trials) / max(1, kills)
        most = max(one["iterations_lost"]["largest"] for one in trials)
        seeds = ", ".join(str(one["seed"]) for one in trials)
        lines += [
            f"**{kills} kills** (goal: 200; seeds {seeds}): {ranks} of a rank, {launchers} of a "
            f"launcher. {runs} runs of {first['iterations']} iterations completed, each bit-wise "
            "identical to the undisturbed run at every checkpoint compared and at the end. A kill "
            f"lost {lost:.1f} iterations on average, {most} at most (a checkpoint every "
            f"{first['checkpoint_every']}). {_machine(trials[-1]['machine'])}."
        ]
    if full := record.get("full"):
        lines += [
            "",
            f"**A full volume.** Exit codes {full['exit_codes']}, message: "
            f'"{next(iter(full["said"]), "")}". The newest complete checkpoint was of iteration '
            f"{full['whole_before']}. After space was freed: exit codes "
            f"{full['exit_codes_with_room']}, iteration {full['whole_after']}.",
        ]
    if locked := record.get("read-only"):
        lines += [
            "",
            f"**A read-only volume.** Exit codes {locked['exit_codes']}, message: "
            f'"{next(iter(locked["said"]), "")}". Newest complete checkpoint before and after: '
            f"iteration {locked['whole_before']} and {locked['whole_after']}. Writable again: exit "
            f"codes {locked['exit_codes_writable']}, iteration {locked['whole_at_the_end']}.",
        ]
    return "\n".join(lines).strip()


def main() -> int:
    """Update the document and return the exit code."""
    write()
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
