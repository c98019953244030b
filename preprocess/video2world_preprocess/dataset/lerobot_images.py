"""Read the pictures of episodes that a LeRobotDataset stores in its Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_preprocess.dataset.lerobot_frames import Placement, Span, spans_of
from video2world_preprocess.dataset.lerobot_layout import fill
from video2world_preprocess.dataset.parquet_columns import batches

__all__ = ["ImageRows", "image_spans"]

LARGEST_GROUP = 8 << 30  # bytes of pictures in a row group, which are read a few at a time
ROWS = 8  # pictures in memory
MOST_PIXELS = 1 << 26


def image_spans(
    path: Path, placements: tuple[Placement, ...], fps: Fraction
) -> tuple[int, dict[int, Span]]:
    """Return the number of rows of a file, and which of them belong to which episode.

    Metadata may name the wrong file: the column ``episode_index`` decides.

    Raises:
        UserError: the file is unusable.
    """
    runs: dict[int, list[int]] = {}  # first row, row after the last
    faults: dict[int, str] = {}
    row = 0
    for batch in batches(path, ["episode_index", "frame_index"]):
        pairs = zip(batch["episode_index"], batch["frame_index"], strict=True)
        for episode, frame in ((e.as_py(), f.as_py()) for e, f in pairs):
            run = runs.setdefault(episode, [row, row])
            if run[1] != row or frame != row - run[0]:
                faults.setdefault(episode, f"its rows are not in order (row {row} of {path})")
            run[1] = row + 1
            row += 1
    found = {}
    for placement in placements:
        number = placement.episode
        if number not in runs:
            found[number] = Span(fault=f"{path} has no rows of it, although the metadata say so")
        elif number in faults:
            found[number] = Span(fault=faults[number])
        else:
            start, stop = runs[number]
            alone = Placement(number, placement.length)
            span = spans_of([alone], stop - start, fps)[number]
            found[number] = Span(start, start + span.stop, span.remarks, span.fault)
    return row, found


class ImageRows:
    """The pictures in the column ``camera`` of a Parquet file as frames, numbered by row."""

    aspect: Fraction | None = None

    def __init__(self, path: Path, camera: str, root: Path | None, fps: Fraction) -> None:
        self.fps = fps
        self._path, self._camera, self._root = path, camera, root
        self._next = 0
        self._rows = self._read()

    def _read(self) -> Iterator[Any]:
        columns = batches(self._path, [self._camera], rows=ROWS, largest_group=LARGEST_GROUP)
        for batch in columns:
            yield from batch[self._camera]

    def frames(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures of rows ``start .. stop - 1``.

        Raises:
            UserError: one of them is missing, or no color picture.
        """
        while self._next < stop:
            row = next(self._rows, None)
            if row is None:
                raise UserError(f"{self._path}: it ends before row {self._next}")
            self._next += 1
            if self._next > start:
                yield av.VideoFrame.from_ndarray(self._pixels(row.as_py()), format="rgb24")

    def _pixels(self, value: object) -> np.ndarray:
        data = value.get("bytes") if isinstance(value, dict) else value
        place = f"{self._path}: the picture of {self._camera} in row {self._next - 1}"
        if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
            data = self._separate_file(value["path"], place)
        if not isinstance(data, bytes):
            raise UserError(f"{place} is missing")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"{place} is depth (mode {image.mode}), not color")
                if image.width * image.height > MOST_PIXELS:
                    raise UserError(f"{place} has {image.width}x{image.height} pixels")
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{place} cannot be read ({error})") from None

    def _separate_file(self, name: str, place: str) -> bytes:
        if self._root is None:
            raise UserError(
                f"{place} is stored as a path only; download the dataset to the volume and set "
                "dataset.lerobot.path (--data_dir)"
            )
        try:
            path = on_volume(self._root / fill(name, {}))
        except ValueError as error:
            raise UserError(f"{place}: its path {error}") from None
        if not path.is_file():
            raise UserError(f"{place}: there is no file {path}")
        return path.read_bytes()
