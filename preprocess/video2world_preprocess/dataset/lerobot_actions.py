"""Read the actions of a LeRobotDataset's episodes from its Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from video2world_common.action_statistics import MOST_DIMENSIONS
from video2world_common.exit_codes import UserError
from video2world_common.lerobot_columns import INDEX_COLUMNS, labels_of, width_of
from video2world_preprocess.actions.layout import ActionLayout, Column, Track
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.dataset.lerobot_dataset import LeRobotDataset
from video2world_preprocess.dataset.lerobot_files import DatasetFiles, FolderFiles, ListedFile
from video2world_preprocess.dataset.lerobot_layout import path_candidates
from video2world_preprocess.dataset.lerobot_metadata import read_episodes
from video2world_preprocess.dataset.parquet_columns import batches, column_names, column_widths
from video2world_preprocess.dataset.source import Source
from video2world_preprocess.listing import nearest
from video2world_preprocess.stage_report import Report

__all__ = ["LeRobotActions", "find_actions"]

MOST_VALUES = 1 << 28  # of an episode


@dataclass
class LeRobotActions:
    """The rows of episodes, each in one of ``files`` (by the episode's source name)."""

    layout: ActionLayout
    description: str
    _files: DatasetFiles
    _by_name: Mapping[str, tuple[int, ListedFile]]  # episode and file
    _others: Mapping[str, ListedFile]  # all data files of a folder, by path
    _is_v3: bool

    def digest(self, source: Source) -> str:
        """Return the digest of all that decides the actions of a source."""
        _, file = self._by_name.get(source.name, (0, ListedFile("", 0, "")))
        value = f"{self.layout.digest}/{source.origin}/{file.path}/{file.identity}"
        return hashlib.sha256(value.encode()).hexdigest()[:24]

    def batches(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Return the sources by file."""
        groups: dict[str, list[Source]] = {}
        for source in sources:
            _, file = self._by_name.get(source.name, (0, ListedFile("", 0, "")))
            groups.setdefault(file.path, []).append(source)
        return list(groups.values())

    def tracks(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Track | str]]:
        """Yield the rows of each source of one file, or why they cannot be used."""
        wanted = {self._by_name[s.name][0]: s for s in sources if s.name in self._by_name}
        for source in sources:
            if source.name not in self._by_name:
                yield source, "its data file is missing; add it to the dataset"
        if not wanted:
            return
        file = self._by_name[next(iter(wanted.values())).name][1]
        for path in (file, *self._neighbors(file)):
            if not wanted:
                return
            for episode, track in self._read(path, set(wanted)):
                yield wanted.pop(episode), track
        for source in wanted.values():
            yield source, f"{file.path} has no rows of it, although the metadata say so"

    def _neighbors(self, file: ListedFile) -> list[ListedFile]:
        """Return the files before and after a file, as converters record a stale number."""
        paths = sorted(self._others)
        if not self._is_v3 or file.path not in self._others:
            return []
        place = paths.index(file.path)
        near = [n for n in (place + 1, place - 1) if 0 <= n < len(paths)]
        return [self._others[paths[n]] for n in near]

    def _read(self, file: ListedFile, wanted: set[int]) -> Iterator[tuple[int, Track | str]]:
        path = self._files.local(file)
        try:
            yield from _episodes(path, file.path, self.layout.columns, wanted, self._is_v3)
        finally:
            self._files.release(file)


def _episodes(
    path: Path, label: str, columns: Sequence[Column], wanted: set[int], is_v3: bool
) -> Iterator[tuple[int, Track | str]]:
    """Yield the rows of the ``wanted`` episodes in a file; one of version 2 has one episode."""
    known = column_names(path)
    keys = [key for key in ("episode_index", "frame_index", "timestamp") if key in known]
    if is_v3 and "episode_index" not in keys:
        raise UserError(f"{label}: the column episode_index is missing")
    reader: _Reader | None = None
    first = 0
    for batch in batches(path, [*keys, *(column.name for column in columns)]):
        count = len(batch[columns[0].name])
        numbers = np.full(count, next(iter(wanted)) if wanted and not is_v3 else -1)
        if is_v3:
            numbers = _numbers(batch["episode_index"], -1).astype(np.int64)
        edges = np.flatnonzero(np.diff(numbers)) + 1
        for start, stop in zip([0, *edges], [*edges, count], strict=True):
            episode = int(numbers[start]) if count else -1
            if reader is not None and reader.episode != episode:
                yield reader.episode, reader.finish()
                reader = None
            if episode in wanted:
                reader = reader or _Reader(episode, label, columns, first + int(start))
                reader.add({name: array[start:stop] for name, array in batch.items()})
        first += count
    if reader is not None:
        yield reader.episode, reader.finish()


class _Reader:
    """Collects the rows of one episode, and what is wrong with them first."""

    def __init__(self, episode: int, label: str, columns: Sequence[Column], first: int) -> None:
        self.episode, self._label, self._columns, self._first = episode, label, columns, first
        self._values: list[np.ndarray] = []
        self._times: list[np.ndarray] = []
        self._count = 0
        self._fault = ""

    def add(self, batch: Mapping[str, Any]) -> None:
        if self._fault:
            return
        try:
            parts = [self._matrix(batch[c.name], c.name, len(c.labels)) for c in self._columns]
            count = len(parts[0])
            if "frame_index" in batch:
                frames = _numbers(batch["frame_index"], -1)
                bad = np.flatnonzero(frames != np.arange(self._count, self._count + count))
                if len(bad):
                    raise UserError(
                        f"{self._row(int(bad[0]))}: frame_index is {frames[bad[0]]:g} instead of "
                        f"{self._count + bad[0]}: the rows are not in order, or some are missing"
                    )
            self._values.append(np.concatenate(parts, axis=1))
            self._times += [_numbers(batch["timestamp"], np.nan)] if "timestamp" in batch else []
            self._count += count
            if self._count * self._values[0].shape[1] > MOST_VALUES:
                raise UserError(f"{self._label}: an episode of more than {MOST_VALUES} values")
        except UserError as error:
            self._fault = str(error)
            self._values = []

    def finish(self) -> Track | str:
        """Return the rows, or what is wrong with them."""
        if self._fault:
            return self._fault
        times = np.concatenate(self._times) if self._times else None
        return Track(np.concatenate(self._values), times, self._label, self._first)

    def _row(self, number: int) -> str:
        return f"{self._label}: row {self._first + self._count + number}"

    def _matrix(self, array: Any, name: str, width: int) -> np.ndarray:
        """Return the values of a column [rows, width], float64; those of null are NaN."""
        import pyarrow as pa
        from pyarrow import compute

        kind = array.type
        if (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or (pa.types.is_fixed_size_list(kind))
        ):
            lengths = compute.list_value_length(array).to_numpy(zero_copy_only=False)
            bad = np.flatnonzero(lengths != width)  # NaN, of null, too
            if len(bad):
                found = lengths[bad[0]]
                said = "null" if np.isnan(found) else f"{found:g} values"
                raise UserError(
                    f"{self._row(int(bad[0]))}: {name} has {said}, but {width} are expected: its "
                    "dimension differs from that of the other episodes or of meta/info.json"
                )
            array = array.flatten()
        elif width != 1:
            raise UserError(f"{self._label}: {name} has one value per row instead of {width}")
        values: np.ndarray = _numbers(array, np.nan).reshape(-1, width)
        return values


def _numbers(array: Any, missing: float) -> np.ndarray:
    """Return an Arrow array of numbers as float64.

    Raises:
        UserError: it is of another type.
    """
    import pyarrow as pa

    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"a column holds {kind}, not numbers")
    array = array.cast(pa.float64(), safe=False) if not pa.types.is_float16(kind) else array
    values: np.ndarray = np.array(array.to_numpy(zero_copy_only=False), np.float64)
    return np.where(np.isnan(values), missing, values) if array.null_count else values


def find_actions(
    files: DatasetFiles,
    data: LeRobotDataset,
    selection: ActionSelection,
    name: str,
    report: Report,
) -> LeRobotActions:
    """Return the actions of the episodes of ``data``; its sources get their digests.

    Raises:
        UserError: the dataset has no such columns or values; the message lists those that it has.
    """
    located = _located(files, data, report)
    if not located:
        raise UserError(f"{name}: none of the episodes has a data file, which --actions needs")
    first = next(iter(located.values()))[1]
    columns = _columns(files, first, data.info.features, selection)
    others = files.listed("data") if isinstance(files, FolderFiles) else {}
    named = ", ".join(selection.columns)
    found = LeRobotActions(
        ActionLayout.of(selection, columns),
        f"{named} of the LeRobotDataset {name}",
        files,
        located,
        {path: file for path, file in others.items() if path.endswith(".parquet")},
        data.version == "v3.0",
    )
    for group in data.files:
        group.sources = {
            number: replace(source, actions=found.digest(source))
            for number, source in group.sources.items()
        }
    return found


def _located(
    files: DatasetFiles, data: LeRobotDataset, report: Report
) -> dict[str, tuple[int, ListedFile]]:
    """Return the episode and data file of each source, by the source's name."""
    sources = {number: s for group in data.files for number, s in group.sources.items()}
    candidates: dict[int, dict[str, None]] = {}
    if data.version == "v3.0":
        meta = files.listed("meta")
        paths = [
            files.local(file)
            for name, file in sorted(meta.items())
            if name.startswith("meta/episodes/") and name.endswith(".parquet")
        ]
        # what is wrong with the entries was reported when the episodes were found
        episodes = read_episodes(paths, "data", False, Report(report.stage))
        for number in sources:
            if (episode := episodes.get(number)) is not None:
                candidates[number] = path_candidates(
                    "v3.0",
                    "image",
                    data.info,
                    "",
                    chunk_index=episode.chunk,
                    file_index=episode.file,
                )
    else:
        for number in sources:
            candidates[number] = path_candidates(
                data.version, "image", data.info, "", episode_index=number
            )
    listed: dict[str, ListedFile] = {}
    folders = {str(PurePosixPath(path).parent) for paths in candidates.values() for path in paths}
    for folder in sorted(folders):
        listed |= files.listed(folder)
    found = {}
    for number, possible in sorted(candidates.items()):
        place = next((path for path in possible if path in listed), None)
        if place is not None:
            found[sources[number].name] = (number, listed[place])
    return found


def _columns(
    files: DatasetFiles, file: ListedFile, features: Mapping[str, Any], selection: ActionSelection
) -> list[Column]:
    """Return the selected columns, with the names of their values."""
    widths = column_widths(files.local(file))  # a download is kept until its rows are read
    known = {
        column: width for column, width in widths.items() if column not in INDEX_COLUMNS and width
    }
    found = []
    for column in selection.columns:
        if column not in known:
            close = nearest(column, known)
            hint = f"did you mean {close}? " if close else ""
            listed = ", ".join(f"{c} ({width})" for c, width in known.items()) or "none"
            raise UserError(
                f"--actions {column}: {file.path} has no such column of numbers; {hint}It has "
                f"{listed} (spec.dataset.actions.columns)"
            )
        feature = features.get(column)
        feature = feature if isinstance(feature, Mapping) else {}
        width = width_of(feature.get("shape")) or known[column]
        if not 1 <= width <= MOST_DIMENSIONS:
            raise UserError(
                f"--actions {column}: {width} values per row, at most {MOST_DIMENSIONS} are read"
            )
        found.append(Column.of(column, labels_of(feature, column, width)))
    return found
