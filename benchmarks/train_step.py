"""Measure the training step on this machine's GPU.

Run as ``python -m benchmarks.train_step --peer diffusers``. Prints a table and writes
``benchmarks/results/train_step.json``. Every case runs in a process of its own; one that fails is
reported and does not affect the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .cases import GRADIENTS, answer, between, machine, run_case, verdicts, write

RESULTS = Path(__file__).parent / "results" / "train_step.json"
ORDER = (
    "matrix_rate",
    "step_2b",
    "step_2b_sparse",
    "peer_diffusers",
    "rank_14b",
    "rank_14b_sparse",
    "lora_14b",
    "gradients",
    "gradients_sparse",
)
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
MARKS = (
    "<!-- train_step: made by `python -m benchmarks.train_step --document` -->",
    "<!-- /train_step -->",
)
MODULE = "benchmarks.train_step"


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write the record."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    flags.add_argument("--peer", choices=("diffusers", "none"), default="none")
    flags.add_argument("--commit", default="", help="commit, without a git repository")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument("--case", help=argparse.SUPPRESS)
    flags.add_argument("--options", default="{}", help=argparse.SUPPRESS)
    flags.add_argument(
        "--document", action="store_true", help="only write the record into docs/performance.md"
    )
    flags.add_argument(
        "--resume", action="store_true", help="keep the cases of the record, if it is of the commit"
    )
    flags.add_argument("--skip", nargs="*", default=[], help="cases not to run")
    args = flags.parse_args(argv)
    if args.case:
        from .train_step_cases import CASES

        return answer(CASES, args.case, args.options)
    if args.document:
        record: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8"))
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8"), record), "utf-8")
        return 0
    record = {"machine": machine(MODULE, args.commit), "cases": {}}
    if args.resume and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if before["machine"]["commit"] == record["machine"]["commit"]:
            record["cases"] = {k: v for k, v in before["cases"].items() if "error" not in v}
    cases = [one for one in ORDER if one not in args.skip and one not in record["cases"]]
    if args.peer == "none":
        cases = [one for one in cases if one != "peer_diffusers"]
    for name in cases:
        record["cases"][name] = run_case(name, MODULE)
        record["goals"] = goals(record["cases"])
        write(args.json, record)
    print(table(record))
    return 0 if all(one["met"] for one in record["goals"]) else 1


def goals(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the finished cases with the goals."""

    def value(case: str, key: str) -> float | None:
        found = cases.get(case, {}).get(key)
        return found if isinstance(found, int | float) else None

    def ratio(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    seconds, sparse = value("step_2b", "seconds"), value("step_2b_sparse", "seconds")
    rows = [
        ("2B, 93 x 704 x 1280, whole step, s", seconds, "<=", 11.0),
        (
            "the same over the diffusers step (forward and backward only)",
            ratio(seconds, value("peer_diffusers", "seconds")),
            "<=",
            0.63,
        ),
        (
            "its useful TFLOP/s over this run's matrix rate",
            ratio(value("step_2b", "useful_tflops"), value("matrix_rate", "tflops")),
            ">=",
            0.80,
        ),
        (
            "its peak memory over the card's",
            ratio(value("step_2b", "peak_GiB"), value("step_2b", "card_GiB")),
            "<=",
            0.97,
        ),
        (
            "14B at context parallel 8, one rank's share without transfers, s",
            value("rank_14b", "seconds"),
            "<=",
            5.8,
        ),
        ("2B sparse, the same clip, whole step, s", sparse, "<=", 3.7),
        ("the same over the dense step", ratio(sparse, seconds), "<=", 0.34),
        (
            "the same over the diffusers step (dense, forward and backward only)",
            ratio(sparse, value("peer_diffusers", "seconds")),
            "<=",
            0.22,
        ),
        (
            "its useful TFLOP/s (of the patterns) over this run's matrix rate",
            ratio(value("step_2b_sparse", "useful_tflops"), value("matrix_rate", "tflops")),
            ">=",
            0.60,
        ),
        (
            "14B sparse at context parallel 8, one rank's share without transfers, s",
            value("rank_14b_sparse", "seconds"),
            "<=",
            2.4,
        ),
        *_gradient_rows(cases.get("gradients", {})),
        *_sparse_gradient_rows(cases.get("gradients_sparse", {})),
    ]
    return [
        {
            "goal": f"{what} {sign} {limit:.5g}",
            "measured": round(measured, 5),
            "met": measured <= limit if sign == "<=" else measured >= limit,
        }
        for what, measured, sign, limit in rows
        if measured is not None
    ]


def _gradient_rows(found: dict[str, Any]) -> list[tuple[str, float | None, str, float]]:
    """Return each kernel's largest error, and its ratio to torch's against the spread of draws."""
    errors = {name: one for name, one in found.items() if isinstance(one, dict) and "dq" in one}
    largest = {name: max(one[what] for what in GRADIENTS) for name, one in errors.items()}
    rows: list[tuple[str, float | None, str, float]] = [
        (f"largest relative error of {name} against float64", error, "<=", 1e-2)
        for name, error in largest.items()
    ]
    if torch_error := largest.get("torch"):
        limit = round(1 + errors["torch"]["spread"] / torch_error, 4)
        rows += [
            (
                f"that of {name} over torch's (1 + its spread over the draws)",
                error / torch_error,
                "<=",
                limit,
            )
            for name, error in largest.items()
            if name != "torch"
        ]
    return rows


def _sparse_gradient_rows(found: dict[str, Any]) -> list[tuple[str, float | None, str, float]]:
    """Return FlashAttention-4's largest error of all patterns, and its ratio to flex's."""

    def worst(kernel: str) -> float | None:
        rows = [one for name, one in found.items() if name.endswith(kernel)]
        return max((one[what] for one in rows for what in GRADIENTS), default=None)

    ours, flex = worst("flash_attention_4"), worst("flex")
    return [
        ("largest relative error of sparse gradients against float64", ours, "<=", 1e-2),
        ("the same over flex attention's", ours / flex if ours and flex else None, "<=", 1.05),
    ]


def table(record: dict[str, Any]) -> str:
    """Return the record as a text table."""
    cases = record["cases"]
    lines = [f"{record['machine']['device']}, torch {record['machine']['torch']}", ""]
    lines.append(f"{'case':<18}{'seconds':>10}{'useful TFLOP/s':>16}{'peak GiB':>10}")
    for name, one in cases.items():
        if "seconds" in one:
            rate = one.get("useful_tflops", one.get("tflops", ""))
            lines.append(f"{name:<18}{one['seconds']:>10}{rate:>16}{one.get('peak_GiB', ''):>10}")
        elif "error" in one:
            lines.append(f"{name:<18}  failed: {one['error']}")
    return "\n".join([*lines, "", *verdicts(record)])


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's tables between its marks."""
    return between(MARKS, text, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """Return the record's tables."""
    where, cases = record["machine"], record["cases"]
    lines = [
        f"{where['nvidia_smi']} (name, driver, memory), PyTorch {where['torch']}, cuDNN "
        f"{where['cudnn']}, Python {where['python']}, {where['date']}, commit "
        f"{where['commit'][:12]}, `{where['command']}`. Medians; every run is in the JSON.",
        "",
        "| goal | measured | |",
        "| --- | --- | --- |",
        *(
            f"| {one['goal']} | {one['measured']:.4g} | {'met' if one['met'] else 'missed'} |"
            for one in record["goals"]
        ),
        "",
        "| case | seconds | useful TFLOP/s | peak memory, GiB |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in cases.items():
        if "seconds" in one:
            rate = one.get("useful_tflops", one.get("tflops", ""))
            lines.append(f"| {name} | {one['seconds']:.4g} | {rate} | {one.get('peak_GiB', '')} |")
        elif "error" in one:
            lines.append(f"| {name} | failed: {one['error']} | | |")
    for name in ("step_2b", "step_2b_sparse", "rank_14b", "rank_14b_sparse"):
        kinds = cases.get(name, {}).get("device_seconds")
        if kinds:
            total = sum(kinds.values())
            shares = ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())
            lines += ["", f"The {total:.2f} s of device time of {name}: {shares}."]
    lines += ["", "| kernel | output | dq | dk | dv |", "| --- | --- | --- | --- | --- |"]
    for name, one in cases.get("gradients", {}).items():
        if isinstance(one, dict) and "dq" in one:
            errors = " | ".join(f"{one[what]:.2e}" for what in GRADIENTS)
            lines.append(f"| {name} | {errors} |")
        elif isinstance(one, dict):
            lines.append(f"| {name} | not measured: {one['not_here'].partition(';')[0]} | | | |")
    for name, one in cases.get("gradients_sparse", {}).items():
        if isinstance(one, dict):
            errors = " | ".join(f"{one[what]:.2e}" for what in GRADIENTS)
            lines.append(f"| sparse pattern {name} | {errors} |")
    if commit := cases.get("gradients_sparse", {}).get("commit"):
        lines += ["", f"Sparse gradients were measured at commit {commit[:12]}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
