"""Caption the episodes of a LeRobotDataset: from their tasks, or from a file of the user."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_common.user_text import checked_caption, decode
from video2world_preprocess.dataset.lerobot_metadata import Episode, json_lines
from video2world_preprocess.dataset.source import OneCaption
from video2world_preprocess.stage_report import Report

__all__ = ["CAPTIONS", "CaptionKind", "caption_of", "read_caption_file"]

CaptionKind = Literal["Task", "File", "Endpoint"]
CAPTIONS: tuple[CaptionKind, ...] = ("Task", "File", "Endpoint")
LARGEST_FILE = 1 << 30  # bytes


def read_caption_file(path: Path, report: Report) -> dict[int, str]:
    """Return the captions by episode of a .csv or JSON Lines file; report unusable lines.

    Raises:
        UserError: the file is missing or has no usable line.
    """
    if not on_volume(path).is_file():
        raise UserError(f"--caption_file {path}: there is no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"--caption_file {path}: at most {LARGEST_FILE} bytes are read")
    is_csv = path.suffix.lower() == ".csv"
    found: dict[int, str] = {}
    try:
        for place, row in _csv_rows(path) if is_csv else json_lines(path, report, "caption"):
            try:
                index = _episode(row)
                if index in found:
                    raise ValueError(f"episode {index} already has a caption on an earlier line")
                found[index] = _caption(row)
            except ValueError as error:
                report.drop("caption", place, str(error))
    except (ValueError, csv.Error) as error:
        raise UserError(f"--caption_file {path} {error}") from None
    if not found:
        raise UserError(
            f"--caption_file {path}: it has no usable line; give JSON Lines such as "
            '{"episode_index": 0, "caption": "..."}, or CSV with the header episode_index,caption'
        )
    return found


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(decode(path.read_bytes()).splitlines())
    if not {"episode_index", "caption"} <= set(rows.fieldnames or ()):
        raise ValueError("has no header with episode_index and caption; add it as the first line")
    for row in rows:
        yield f"{path}:{rows.line_num}", row


def _episode(row: Mapping[str, Any]) -> int:
    value = row.get("episode_index")
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 13):
        raise ValueError(f"episode_index is {value!r:.40}, not a number")
    return int(text)


def _caption(row: Mapping[str, Any]) -> str:
    try:
        return checked_caption(row.get("caption"))
    except ValueError as error:
        raise ValueError(f"its caption {error}") from None


def caption_of(
    kind: CaptionKind, episode: Episode, tasks: Mapping[int, str], file: Mapping[int, str]
) -> OneCaption:
    """Return the caption of all windows of ``episode``.

    For ``Endpoint`` it is the hint that the captions stage gives the model, which may be empty.

    Raises:
        UserError: it has none.
    """
    if kind == "File":
        if episode.index not in file:
            raise UserError("the caption file has no line for it")
        return OneCaption(file[episode.index])
    text = episode.caption(tasks)
    if text is None and kind == "Task":
        raise UserError(
            "it has no task text, from which its caption is made; give the texts in a file "
            "(--caption File), or exclude the episode"
        )
    return OneCaption(text or "")
