"""Read the actions of AgiBotWorld's episodes from their proprioception files (HDF5).

The layout is ``proprio_stats/TASK/EPISODE/proprio_stats.h5`` below the data folder, with one row
per frame of the video in fields such as ``state/joint/position`` and times in ``timestamp``
(nanoseconds): https://huggingface.co/datasets/agibot-world/AgiBotWorld-Alpha.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.action_statistics import MOST_DIMENSIONS
from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_preprocess.actions.annotations import MOST_ROWS
from video2world_preprocess.actions.layout import ActionLayout, Column, Track
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.dataset.agibot_layout import AgiBotLayout, clip_prefix
from video2world_preprocess.dataset.source import Source
from video2world_preprocess.listing import nearest

__all__ = ["AgiBotActions", "find_agibot_actions"]

TIMES = "timestamp"  # nanoseconds
LARGEST_CHUNK = 256 << 20  # bytes, decompressed
MOST_FIELDS = 1000  # to look at in a file


class AgiBotActions:
    """The rows of the episodes' files, each with the fields of ``layout``."""

    def __init__(self, layout: ActionLayout, folder: AgiBotLayout) -> None:
        self.layout, self._folder = layout, folder
        named = ", ".join(column.name for column in layout.columns)
        self.description = f"{named} of AgiBotWorld's proprio_stats in {folder.data_dir}"
        self._paths: dict[str, Path] = {}  # by source name

    def digest(self, task: int, episode: int) -> str:
        """Return the digest of all that decides the actions of an episode."""
        path = self._folder.proprio(task, episode)
        self._paths[clip_prefix(task, episode)] = path
        try:
            status = path.stat()
        except OSError:
            stamp = ""
        else:
            stamp = f"{status.st_size}-{status.st_mtime_ns}"
        return hashlib.sha256(f"{self.layout.digest}/{stamp}".encode()).hexdigest()[:24]

    def batches(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Return each source alone."""
        return [[source] for source in sources]

    def tracks(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Track | str]]:
        """Yield the rows of each source."""
        for source in sources:
            path = self._paths[source.name]
            with _opened(path) as file:
                parts = [_values(path, file, column) for column in self.layout.columns]
                rows = {
                    len(part): c.name for part, c in zip(parts, self.layout.columns, strict=True)
                }
                if len(rows) > 1:
                    said = ", ".join(f"{name} has {count}" for count, name in rows.items())
                    raise UserError(f"{path}: the fields differ in their rows: {said}")
                yield source, Track(np.concatenate(parts, 1), _times(path, file), str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file.

    Raises:
        UserError: it is missing or damaged, also within the ``with`` block.
    """
    import h5py

    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such file; download it, or exclude the episode")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path}: the HDF5 file is damaged ({str(error)[:200]})") from None


def _field(path: Path, file: Any, name: str) -> Any | None:
    """Return the array ``name`` of numbers in an HDF5 file, None if there is none.

    Links are not followed, as they may lead to other files, and neither are arrays whose values are
    in other files.
    """
    import h5py

    found = file
    for part in name.strip("/").split("/"):
        is_group = isinstance(found, h5py.Group)
        if not is_group or not isinstance(found.get(part, getlink=True), h5py.HardLink):
            return None
        found = found[part]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub" or not found.shape:
        return None
    if found.is_virtual or found.external:
        raise UserError(f"{path}: {name} is stored in other files, which are not read")
    width = math.prod(found.shape[1:])
    chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
    if found.shape[0] > MOST_ROWS or width > MOST_DIMENSIONS or chunk > LARGEST_CHUNK:
        raise UserError(
            f"{path}: {name} has the shape {list(found.shape)}; at most {MOST_ROWS} rows of "
            f"{MOST_DIMENSIONS} values are read"
        )
    return found


def _values(path: Path, file: Any, column: Column) -> np.ndarray:
    """Return the rows of a field [rows, width], float64."""
    field, width = _field(path, file, column.name), len(column.labels)
    if field is None:
        raise UserError(f"{path}: the field {column.name} is missing")
    found = math.prod(field.shape[1:])
    if found != width:
        raise UserError(
            f"{path}: {column.name} has {found} values per row, but {width} are expected: its "
            "dimension differs from that of the other episodes"
        )
    values: np.ndarray = np.asarray(field[()], np.float64).reshape(len(field), width)
    return values


def _times(path: Path, file: Any) -> np.ndarray | None:
    """Return the rows' seconds since the first one, if the file has their times."""
    field = _field(path, file, TIMES)
    if field is None or len(field.shape) != 1 or not len(field):
        return None
    times: np.ndarray = field[()]
    seconds: np.ndarray = (times - times[0]).astype(np.float64) / 1e9
    return seconds


def find_agibot_actions(
    selection: ActionSelection, folder: AgiBotLayout, tasks: Sequence[int]
) -> AgiBotActions:
    """Return the actions of the episodes of ``tasks``; the first file decides the dimensions.

    Raises:
        UserError: there are no files, or they have no such fields.
    """
    first: Path | None = None
    for task in tasks:
        top = folder.proprio(task, 0).parent.parent
        paths = sorted(top.glob("*/proprio_stats.h5"))
        if not paths:
            raise UserError(
                f"--actions: there is no {top}/EPISODE/proprio_stats.h5, and the archives of "
                "proprio_stats are not downloaded: download and unpack those of this task there, "
                "or leave out spec.dataset.actions"
            )
        first = first or paths[0]
    assert first is not None
    columns = []
    with _opened(first) as file:
        for name in selection.columns:
            field = _field(first, file, name)
            if field is None:
                known = _known(file)
                close = nearest(name, known)
                hint = f"did you mean {close}? " if close else ""
                raise UserError(
                    f"--actions {name}: {first} has no such field of numbers; {hint}It has "
                    f"{', '.join(known) or 'none'} (spec.dataset.actions.columns)"
                )
            width = math.prod(field.shape[1:])
            labels = [f"{name}_{place}" for place in range(width)] if width > 1 else [name]
            columns.append(Column.of(name, labels))
    return AgiBotActions(ActionLayout.of(selection, columns), folder)


def _known(file: Any) -> list[str]:
    """Return the names of the fields of numbers."""
    import h5py

    found: list[str] = []

    def visit(name: str, value: Any) -> bool | None:
        if isinstance(value, h5py.Dataset) and value.dtype.kind in "fiub" and value.shape:
            found.append(name)
        return True if len(found) >= MOST_FIELDS else None

    file.visititems(visit)
    return sorted(name for name in found if name != TIMES)
