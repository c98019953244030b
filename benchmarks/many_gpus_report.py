"""Write the goals and tables of the record of ``benchmarks.many_gpus``."""

from __future__ import annotations

from typing import Any

__all__ = ["goals", "markdown", "table"]

GOALS = {("2B", 8, 2): 6.0, ("14B", 8, 8): 6.0}  # seconds per iteration by size, GPUs and context


def goals(size: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the goals that were measured, and whether they are met."""
    rows = []
    for row in found.get("layouts", {}).values():
        limit = GOALS.get((size, row.get("gpus"), row.get("context_parallel")))
        if limit is not None and "seconds" in row:
            what = f"{size}, {row['gpus']} GPUs, context parallel {row['context_parallel']}, s"
            rows.append(
                {
                    "goal": f"{what} <= {limit:g}",
                    "measured": row["seconds"],
                    "met": row["seconds"] <= limit,
                }
            )
    return rows


def table(found: dict[str, Any]) -> str:
    """Return the layouts as a text table."""
    lines = [f"{'layout':<30}{'s/iteration':>12}{'efficiency':>12}{'peak GiB':>10}{'NCCL s':>8}"]
    for name, row in found.get("layouts", {}).items():
        if "error" in row:
            lines.append(f"{name:<30}  failed: {row['error']}")
            continue
        communication = row.get("device_seconds", {}).get("communication", "")
        lines.append(
            f"{name:<30}{row['seconds']:>12}{row.get('efficiency', ''):>12}"
            f"{row['peak_GiB'] or '':>10}{communication:>8}"
        )
    return "\n".join(lines)


def markdown(record: dict[str, Any]) -> str:
    """Return the record as Markdown, for docs/performance.md."""
    place = record["machine"]
    cards = place["nvidia_smi"].splitlines()
    lines = [
        f"{len(cards)} x {cards[0]} (name, driver, memory) of one host, PyTorch {place['torch']}, "
        f"{place['date']}, commit {place['commit'][:12]}, `{place['command']}`."
    ]
    for size, cases in record["cases"].items():
        lines += [
            "",
            f"| {size}: GPUs, data x context parallel | attention | s per iteration | "
            "efficiency | peak GiB per GPU | s of communication | loss, gradient norm against "
            "one GPU's |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in cases.get("layouts", {}).items():
            if "error" in row:
                lines.append(f"| {name} | | failed: {row['error']} | | | | |")
                continue
            layout = f"{row['gpus']}, {row['data_parallel']} x {row['context_parallel']}"
            nccl = row.get("device_seconds", {}).get("communication", "")
            difference = ""
            if "loss_difference" in row and row["gpus"] > 1:
                difference = f"{row['loss_difference']:.1e}, {row['norm_difference']:.1e}"
            lines.append(
                f"| {layout} | {row.get('attention', '')} | {row['seconds']:.2f} | "
                f"{row.get('efficiency', '')} | {row['peak_GiB']} | {nccl} | {difference} |"
            )
        if rows := cases.get("inference"):
            lines += [
                "",
                f"| {size}: GPUs that share a sample | s per noise level, both branches | "
                "speed-up | s of decoding |",
                "| --- | --- | --- | --- |",
            ]
            lines += [
                f"| {gpus} | {row['seconds_a_level']} | {row.get('speedup', '')} | "
                f"{row['timings']['decode']} |"
                for gpus, row in rows.items()
                if "error" not in row
            ]
    return "\n".join(lines)
