"""Prepare the table of an evaluation for the results page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from video2world_trainer.evaluation.action_gate import VARIANTS
from video2world_trainer.evaluation.report import FOLDER
from video2world_trainer.evaluation.table import METRICS
from video2world_trainer.results.rendering import render

__all__ = ["evaluation_section"]

OPEN_STRIPS = 4  # shown at once; the others after a click
PER_CLIP = 1  # metrics in the caption of a strip


def evaluation_section(table: Mapping[str, Any]) -> Markup:
    """Render the section; empty without a table, or for a damaged one."""
    try:
        return render("evaluation.html.jinja", **_variables(table)) if table else Markup("")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return Markup("")


def _variables(table: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [name for name in table["metrics"] if name in METRICS]
    clips, answer = table["clips"], table["answer"]
    strips = [
        {
            "image": f"{FOLDER}/{clip['strip']}",
            "name": clip["clip"],
            "prompt": clip["prompt"],
            "videos": [(label, f"{FOLDER}/{path}") for label, path in clip["videos"].items()],
            "figures": _clip_figures(clip["values"], metrics, answer["checkpoint"]),
        }
        for clip in clips
    ]
    return {
        "answer": _with_units_kept(answer["text"]),
        "verdict": answer["verdict"],
        "columns": [
            (METRICS[name].label, "higher" if METRICS[name].more_is_better else "lower")
            for name in metrics
        ],
        "rows": [
            (row["name"], [_cell(name, row["metrics"][name]) for name in metrics])
            for row in table["rows"]
        ],
        "notes": _notes(table),
        "actions": _actions(table["actions"]) if "actions" in table else None,
        "shown": strips[:OPEN_STRIPS],
        "folded": strips[OPEN_STRIPS:],
    }


def _with_units_kept(text: str) -> str:
    """Keep numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%|dB)", "\N{NO-BREAK SPACE}", text)


def _cell(metric: str, found: Mapping[str, Any]) -> dict[str, str]:
    kind = METRICS[metric]
    cell = {"value": kind.text(found["value"]), "interval": "", "difference": ""}
    if found["low"] is not None:
        cell["interval"] = f"{found['low']:.{kind.digits}f} to {found['high']:.{kind.digits}f}"
    if (difference := found.get("difference")) is not None:
        cell["difference"] = kind.text(difference["value"], sign=True)
        if difference["low"] is not None:
            low, high = (f"{difference[end]:+.{kind.digits}f}" for end in ("low", "high"))
            cell["difference"] += f" ({low} to {high})"
    return cell


def _actions(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the action gate's sentence, its rows of losses, and how much videos differ."""
    verdict = {True: "better", False: "worse", None: "unclear"}[found["followed"]]
    rows = []
    losses = found.get("variants", {})
    for name, one in ((name, losses[name]) for name in VARIANTS if name in losses):
        lift, interval = "", ""
        if name != "true":
            lift = f"{one['lift']:+.1%}"
            if one["low"] is not None:
                interval = f"{one['low']:+.1%} to {one['high']:+.1%}"
        rows.append((VARIANTS[name], f"{one['loss']:.4f}", lift, interval))
    motion = found.get("motion") or {}
    note = ""
    if motion.get("ratio") is not None:
        note = (
            f"Videos from one first frame under {motion['sequences']} sequences of actions differ "
            f"by {motion['by_actions']:.3f} (root mean square of latents), videos of different "
            f"seeds under the same actions by {motion['by_seed']:.3f}: {motion['ratio']:.1f} times."
        )
    return {"text": found["text"], "verdict": verdict, "rows": rows, "note": note}


def _clip_figures(values: Mapping[str, Any], metrics: list[str], checkpoint: str) -> str:
    shown = [name for name in metrics if name in values["base"]][:PER_CLIP]
    return ", ".join(
        f"{METRICS[name].label} {METRICS[name].text(values['base'][name])} (base) to "
        f"{METRICS[name].text(values[checkpoint][name])}"
        for name in shown
    )


def _notes(table: Mapping[str, Any]) -> list[str]:
    count, frames = len(table["clips"]), sorted({clip["frames"] for clip in table["clips"]})
    span = f"{frames[0]}" if len(frames) == 1 else f"{frames[0]} to {frames[-1]}"
    found = (figures for row in table["rows"] for figures in row["metrics"].values())
    some = any(figures["low"] is not None for figures in found)
    intervals = " with 95 % bootstrap intervals" if some else ""
    notes = [
        f"{count} clips of {table['windows']} held-out windows, {span} generated frames each; "
        f"conditioning frames are not counted. Means over clips{intervals}; differences are paired "
        "with the base weights."
    ]
    if table["requested"] > count:
        notes.append(f"{table['requested']} samples were requested.")
    notes += [f"No {METRICS[name].label}: {why}." for name, why in table["skipped_metrics"].items()]
    notes += [f"Left out: {name}: {why}." for name, why in table["left_out"].items()]
    if weights := table.get("lpips_weights"):
        notes.append(f"LPIPS with {weights['path']} (SHA-256 {weights['sha256']}).")
    return notes
