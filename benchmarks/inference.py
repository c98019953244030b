"""Measure inference at full size on a GPU (``python -m benchmarks.inference --peer diffusers``).

Prints a table and writes ``benchmarks/results/inference.json``. Every case runs in a process of its
own; one that fails is reported and does not cost the others. ``--only`` measures some cases and
keeps what the record says of the others. ``--tiny`` tries the cases on any machine and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .cases import answer, between, machine, run_case, verdicts, write

MODULE = "benchmarks.inference"
RESULTS = Path(__file__).parent / "results" / "inference.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "inference.md"
MARKS = (
    "<!-- inference: made by `python -m benchmarks.inference --document` -->",
    "<!-- /inference -->",
)
ORDER = (
    "network_pass",
    "vae_decode",
    "sparse",
    "offload",
    "full_10fps",
    "full_16fps",
    "full_sparse",
)


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write the record."""
    flags = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    flags.add_argument("--peer", choices=("diffusers", "none"), default="none")
    flags.add_argument("--commit", default="", help="commit, without a git repository")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    flags.add_argument("--tiny", action="store_true", help="try the cases, measure nothing")
    flags.add_argument(
        "--document", action="store_true", help="only put the record into docs/inference.md"
    )
    flags.add_argument("--case", help=argparse.SUPPRESS)
    flags.add_argument("--options", default="{}", help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    if args.case:
        from .inference_cases import CASES

        return answer(CASES, args.case, args.options)
    if args.document:
        recorded = json.loads(args.json.read_text(encoding="utf-8"))
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8"), recorded), "utf-8")
        return 0
    record: dict[str, Any] = {"cases": {}}
    if args.json.exists():
        record = json.loads(args.json.read_text(encoding="utf-8"))
    for name in args.only:
        options: dict[str, Any] = {"tiny": True} if args.tiny else {}
        if name == "network_pass":
            options["peer"] = args.peer == "diffusers"
        found = run_case(name, MODULE, **options)
        if args.tiny:
            if "error" in found:
                return 1
            continue
        found["machine"] = machine(MODULE, args.commit)
        record["cases"][name] = found
        record["goals"] = goals(record["cases"])
        write(args.json, record)
    if args.tiny:
        return 0
    print(table(record))
    return 0 if all(one["met"] for one in record["goals"]) else 1


def goals(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the finished cases with the goals."""

    def value(*path: str) -> float | None:
        found: Any = cases
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, int | float) else None

    rows = [
        (
            "2B, 720p, 93 frames, 35 steps with guidance, embedding to mp4, s",
            value("full_16fps", "seconds"),
            214,
        ),
        ("a network pass over diffusers' transformer", value("network_pass", "of_diffusers"), 0.83),
        ("2B, 720p, 61 frames (10 fps), embedding to mp4, s", value("full_10fps", "seconds"), 104),
        ("approximate over exact, 61 frames", value("full_10fps", "approximate", "of_exact"), 0.5),
        ("sparse over dense, an evaluation of 93 frames", value("sparse", "of_dense"), 0.5),
        ("2B sparse, 720p, 93 frames, embedding to mp4, s", value("full_sparse", "seconds"), 74),
        ("the same, approximate, s", value("full_sparse", "approximate", "seconds"), 32),
        ("VAE decode of 93x704x1280 over diffusers", value("vae_decode", "of_diffusers"), 0.6),
        ("peak memory, exact, GiB", value("full_16fps", "peak_GiB"), 32),
        ("peak memory with offload, GiB", value("offload", "peak_GiB"), 20),
    ]
    return [
        {"goal": f"{what} <= {limit:g}", "measured": measured, "met": measured <= limit}
        for what, measured, limit in rows
        if measured is not None
    ]


def table(record: dict[str, Any]) -> str:
    """Return the record as a text table."""
    lines = []
    for name, one in record["cases"].items():
        where = one["machine"]["device"]
        if "error" in one:
            lines.append(f"{name:<14}failed: {one['error']}")
        else:
            lines.append(f"{name:<14}{one['seconds']:>10} s  {one.get('peak_GiB', '')}  {where}")
    return "\n".join([*lines, "", *verdicts(record)])


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's tables between its marks."""
    return between(MARKS, text, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """Return the record's tables."""
    cases = record["cases"]
    lines = ["| goal | measured | |", "| --- | --- | --- |"]
    for one in record["goals"]:
        met = "met" if one["met"] else "**missed**"
        lines.append(f"| {one['goal']} | {one['measured']:.4g} | {met} |")
    lines += [
        "",
        "| case | seconds | peak memory, GiB | where and when |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in cases.items():
        place = one["machine"]
        where = f"{place['nvidia_smi'].splitlines()[0]}, PyTorch {place['torch']}, {place['date']}"
        where += f", commit {place['commit'][:12]}, `{place['command']}`"
        result = f"failed: {one['error']}" if "error" in one else f"{one['seconds']:.4g}"
        lines.append(f"| {name} | {result} | {one.get('peak_GiB', '')} | {where} |")
    rows = [
        (f"{name}: {part}", one[part])
        for name, one in cases.items()
        for part in ("condition", "denoise", "decode", "write")
        if part in one
    ]
    if rows:
        lines += ["", "| part of a sample | seconds |", "| --- | --- |"]
        lines += [f"| {name} | {seconds:.4g} |" for name, seconds in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
