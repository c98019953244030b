"""Write the table of an evaluation as JSON and CSV, and a strip of frames for each clip."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.files import read_json, write_json, write_text
from video2world_preprocess.video.reader import read_frames
from video2world_trainer.evaluation.action_gate import VARIANTS
from video2world_trainer.generation.contact_sheet import write_contact_sheet

__all__ = ["FOLDER", "TABLE", "read_table", "write_strip", "write_table"]

FOLDER = "evaluation"  # in a run's folder of results
TABLE = "evaluation.json"


def write_table(folder: Path, table: Mapping[str, Any]) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.csv`` (rows) and ``clips.csv`` (clips).

    With the losses of the action gate also ``actions.csv``.

    Returns:
        The files written.
    """
    paths = [folder / TABLE, folder / "evaluation.csv", folder / "clips.csv"]
    write_json(paths[0], table)
    write_text(paths[1], _rows_as_csv(table["rows"]))
    write_text(paths[2], _clips_as_csv(table["clips"], table["metrics"]))
    if losses := table.get("actions", {}).get("losses"):
        paths.append(folder / "actions.csv")
        kinds = [name for name in VARIANTS if name in losses]
        lines = zip(table["actions"]["names"], *(losses[name] for name in kinds), strict=True)
        write_text(paths[-1], _csv(["clip", *kinds], [list(line) for line in lines]))
    return paths


def read_table(results: Path) -> dict[str, Any]:
    """Read the table in a run's folder of results; empty if there is none, or a damaged one."""
    try:
        value = read_json(results / FOLDER / TABLE)
    except (OSError, ValueError, RecursionError):
        return {}
    needed = ("rows", "clips", "answer", "metrics")
    return value if isinstance(value, dict) and all(key in value for key in needed) else {}


def _rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("value", "low", "high")
    header = ["model", "iteration", "metric", *names, *(f"difference_{name}" for name in names)]
    lines: list[list[object]] = []
    for row in rows:
        for metric, found in row["metrics"].items():
            difference = found.get("difference", {})
            figures = [found[name] for name in names] + [difference.get(name) for name in names]
            lines.append([row["model"], row["iteration"], metric, *figures])
    return _csv(header, lines)


def _clips_as_csv(clips: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    shown = [name for name in metrics if name != "latent_frechet"]  # of the set, not of a clip
    lines = [
        [clip["clip"], model, *(values[name] for name in shown)]
        for clip in clips
        for model, values in clip["values"].items()
    ]
    return _csv(["clip", "model", *shown], lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in line] for line in lines])
    return text.getvalue()


def write_strip(target: Path, truth: np.ndarray, videos: Mapping[str, Path], fps: float) -> None:
    """Write a picture with rows of frames: the ground truth, and ``videos`` by label."""
    rows = {"ground truth": truth} | {label: read_frames(path) for label, path in videos.items()}
    write_contact_sheet(target, rows, fps)
