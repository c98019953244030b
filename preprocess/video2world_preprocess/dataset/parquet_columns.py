"""Read columns of untrusted Parquet files with bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume

__all__ = ["LFS_POINTER", "batches", "check_content", "column_names", "column_widths"]

LFS_POINTER = b"version https://git-lfs"
MAGIC = b"PAR1"
LARGEST_FOOTER = 128 << 20  # bytes; LeRobot writes a row group of 10 rows and 250 columns
LARGEST_GROUP = 256 << 20  # bytes of the wanted columns of a row group, decompressed
MOST_ROWS = 1 << 28  # of a file
LARGEST_BATCH = 256 << 20  # bytes
ROWS = 1024  # of a batch


def check_content(path: Path) -> None:
    """Check that a file is on the volume, has content, and is not a pointer of Git LFS.

    Raises:
        UserError: it is not.
    """
    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such file")
    with path.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if not start:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if start == LFS_POINTER:
        raise UserError(
            f"{path}: a pointer of Git LFS instead of the content; run git lfs pull, or download "
            "the dataset with hf download"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file.

    Raises:
        UserError: it is damaged or of a hostile size, also within the ``with`` block.
    """
    import pyarrow
    from pyarrow import parquet

    check_content(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(size - 8, 0))
        end = stream.read(8)
    footer = int.from_bytes(end[:4], "little")
    if size < 12 or end[4:] != MAGIC or footer > size - 12:
        raise UserError(f"{path}: not a Parquet file, or truncated; copy or download it again")
    if footer > LARGEST_FOOTER:
        raise UserError(f"{path}: its footer has {footer} bytes, at most {LARGEST_FOOTER} are read")
    try:
        with parquet.ParquetFile(
            path,
            memory_map=False,
            buffer_size=1 << 20,
            pre_buffer=False,
            thrift_string_size_limit=LARGEST_FOOTER,
            thrift_container_size_limit=1 << 20,
        ) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise UserError(f"{path}: {file.metadata.num_rows} rows, at most {MOST_ROWS}")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: the Parquet file is damaged ({why[:200]}); copy or download it again"
        ) from None


def column_names(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        UserError: the file is unusable.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def batches(
    path: Path,
    columns: Sequence[str],
    *,
    rows: int = ROWS,
    largest_group: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the ``columns`` in batches of at most ``rows`` rows, as Arrow arrays by name.

    Args:
        largest_group: bytes of the columns of one row group, decompressed, above which the file
            is refused; default: ``LARGEST_GROUP``.

    Raises:
        UserError: the file is unusable, or lacks a column.
    """
    largest = LARGEST_GROUP if largest_group is None else largest_group
    with _opened(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: the column {', '.join(missing)} is missing")
        schema = file.metadata.schema
        leaves = [
            place
            for place in range(len(schema))
            if any(_is_in(schema.column(place).path, name) for name in columns)
        ]
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            size = sum(group.column(place).total_uncompressed_size for place in leaves)
            if size > largest:
                raise UserError(
                    f"{path}: {size} bytes in one row group, at most {largest} are read; "
                    "write it with smaller row groups"
                )
            # A text may be stored once and repeated in every row, and is at most as long as all.
            most = max(min(rows, LARGEST_BATCH // max(size, 1)), 1)
            for batch in file.iter_batches(most, [number], list(columns), use_threads=False):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))


def _is_in(path: str, column: str) -> bool:
    """Whether the leaf ``path`` of a schema belongs to ``column``, whose name may have dots."""
    return path == column or path.startswith(f"{column}.")


def column_widths(path: Path) -> dict[str, int]:
    """Return how many numbers a row has in each column, 0 for columns of other types.

    Of a list without a fixed size, the first row decides.

    Raises:
        UserError: the file is unusable.
    """
    from pyarrow import types

    with _opened(path) as file:
        schema = file.schema_arrow
    found = {}
    for name in schema.names:
        kind = schema.field(name).type
        is_list = types.is_list(kind) or types.is_large_list(kind)
        is_fixed = types.is_fixed_size_list(kind)
        inner = kind.value_type if is_list or is_fixed else kind
        is_number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
        found[name] = (kind.list_size if is_fixed else 1) if is_number else 0
        if is_list and is_number:
            first = next((batch[name] for batch in batches(path, [name], rows=1)), None)
            row = None if first is None or not len(first) else first[0].as_py()
            found[name] = len(row) if row else 0
    return found
