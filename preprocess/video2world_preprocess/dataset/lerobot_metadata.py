"""Read which episodes a LeRobotDataset has, where each is stored, and what it shows."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.user_text import checked_caption, parse_json
from video2world_preprocess.dataset.parquet_columns import batches, check_content, column_names
from video2world_preprocess.stage_report import Report

__all__ = ["Episode", "json_lines", "read_episodes", "read_info", "read_tasks"]

LARGEST_JSON = 64 << 20  # bytes of info.json
LONGEST_LINE = 16 << 20  # bytes
LARGEST_NUMBER = 1 << 40
PLACEHOLDERS = frozenset({"none", "null", "nan", "n/a", "todo", "placeholder", "task"})


@dataclass(frozen=True)
class Episode:
    """An episode of the dataset.

    ``length`` is its number of rows, ``tasks`` are the texts or numbers of its tasks. Version 3.0
    also says in which file it is (``chunk`` and ``file``), and for a video from when to when, in
    seconds.
    """

    index: int
    length: int | None
    tasks: tuple[str | int, ...] = ()
    chunk: int = 0
    file: int = 0
    begin: float = 0.0
    end: float | None = None

    def caption(self, tasks: Mapping[int, str]) -> str | None:
        """Return the texts of its tasks, as sentences if there are several; None if it has none.

        Args:
            tasks: the dataset's tasks by number, for episodes that refer to them by number.
        """
        texts = []
        for task in self.tasks:
            try:
                text = checked_caption(tasks.get(task) if isinstance(task, int) else task)
            except ValueError:
                continue
            if text.casefold() not in PLACEHOLDERS and text not in texts:
                texts.append(text)
        if len(texts) > 1:
            texts = [t if t.endswith((".", "!", "?")) else f"{t}." for t in texts]
        return " ".join(texts) or None


def read_info(path: Path) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        UserError: there is none.
    """
    check_content(path)
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path}: {path.stat().st_size} bytes, at most {LARGEST_JSON} are read")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} {error}; copy or download it again") from None


def json_lines(path: Path, report: Report, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a JSON Lines file with their places; report lines that are none."""
    check_content(path)
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                report.drop(kind, place, f"the line is longer than {LONGEST_LINE} bytes")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE)
                continue
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = parse_json(line)
                if not isinstance(value, dict):
                    raise ValueError("is not a JSON object")
            except ValueError as error:
                report.drop(kind, place, str(error))
                continue
            yield place, value


def read_tasks(paths: Iterable[Path], report: Report) -> dict[int, str]:
    """Return the texts of tasks by number, from ``tasks.jsonl`` or ``tasks.parquet``.

    Pandas writes the texts as its index, whose column is ``task`` or ``__index_level_0__``.
    """
    found: dict[int, str] = {}
    for path in paths:
        rows: Iterator[tuple[str, Mapping[str, Any]]]
        try:
            if path.suffix == ".parquet":
                names = column_names(path)
                text = next((n for n in ("task", "__index_level_0__") if n in names), "task")
                rows = (
                    (f"{path}[{number}]", {"task_index": row["task_index"], "task": row[text]})
                    for number, row in _rows(path, ["task_index", text])
                )
            else:
                rows = json_lines(path, report, "task")
            for place, row in rows:
                try:
                    index = _integer(row.get("task_index"), "task_index")
                    found.setdefault(index, checked_caption(row.get("task")))
                except ValueError as error:
                    report.drop("task", place, f"its text or number {error}")
        except UserError as error:
            report.note("metadata", path.name, f"{error}; it is not needed where episodes say it")
    return found


def read_episodes(
    paths: Iterable[Path], prefix: str | None, video: bool, report: Report
) -> dict[int, Episode]:
    """Return the episodes by number; report entries that are unusable.

    Args:
        paths: ``episodes.jsonl``, or the Parquet files in ``meta/episodes/``.
        prefix: of the columns that say in which file an episode is, for version 3.0.
        video: whether they also say at which time.

    Raises:
        UserError: a file is unusable; no episode is left.
    """
    found: dict[int, Episode] = {}
    problems: list[str] = []
    for path in paths:
        try:
            if prefix is None:
                entries = json_lines(path, report, "episode")
            else:
                entries = _parquet_entries(path, prefix, video)
            for place, entry in entries:
                _add(found, place, entry, report)
        except UserError as error:
            problems.append(str(error))
            report.drop("metadata", path.name, str(error))
    if not found:
        why = f": {problems[0]}" if problems else ""
        raise UserError(f"the dataset lists no usable episode{why}")
    return found


def _add(found: dict[int, Episode], place: str, entry: Mapping[str, Any], report: Report) -> None:
    name = place
    try:
        index = _integer(entry.get("episode_index"), "episode_index")
        name = f"episode_{index:06d}"
        if index in found:
            raise ValueError(f"is listed again ({place}); the first entry is used")
        episode = Episode(index, None, _tasks(entry.get("tasks")))
        if entry.get("length") is not None:
            length = _integer(entry["length"], "length")
            if length < 1:
                raise ValueError(f"length is {length}, so it has no frames")
            episode = replace(episode, length=length)
        if "chunk" in entry:
            episode = replace(
                episode,
                chunk=_integer(entry["chunk"], "chunk_index"),
                file=_integer(entry["file"], "file_index"),
            )
        if "begin" in entry:
            begin = _seconds(entry["begin"], "from_timestamp")
            end = None if entry.get("end") is None else _seconds(entry["end"], "to_timestamp")
            episode = replace(episode, begin=begin, end=end)
    except ValueError as error:
        report.drop("episode", name, str(error))
    else:
        found[index] = episode


def _parquet_entries(
    path: Path, prefix: str, video: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    columns = {
        "episode_index": "episode_index",
        "length": "length",
        "tasks": "tasks",
        f"{prefix}/chunk_index": "chunk",
        f"{prefix}/file_index": "file",
    }
    if video:
        columns |= {f"{prefix}/from_timestamp": "begin", f"{prefix}/to_timestamp": "end"}
    optional = {"length", "tasks", f"{prefix}/to_timestamp"}
    names = column_names(path)
    wanted = [name for name in columns if name in names or name not in optional]
    for number, row in _rows(path, wanted):
        yield f"{path}[{number}]", {columns[name]: value for name, value in row.items()}


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the values of every row."""
    number = 0
    for batch in batches(path, columns):
        arrays = list(batch.items())
        for place in range(len(arrays[0][1])):
            yield number, {name: array[place].as_py() for name, array in arrays}
            number += 1


def _tasks(value: object) -> tuple[str | int, ...]:
    values: Iterable[object] = value if isinstance(value, list | tuple) else [value]
    return tuple(v for v in values if isinstance(v, str | int) and not isinstance(v, bool))


def _integer(value: object, name: str) -> int:
    """Return a whole number, which may be stored as another type.

    Raises:
        ValueError: it is none.
    """
    return int(_number(value, name, lambda v: v.is_integer() and 0 <= v < LARGEST_NUMBER))


def _seconds(value: object, name: str) -> float:
    return _number(value, name, lambda v: 0 <= v < LARGEST_NUMBER)


def _number(value: object, name: str, valid: Callable[[float], bool]) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not (math.isfinite(number) and valid(number)):
        raise ValueError(f"{name} is {value!r:.40}, not a valid number")
    return number
