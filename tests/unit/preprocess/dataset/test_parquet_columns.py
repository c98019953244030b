"""Tests that reading Parquet files takes bounded memory, whatever they hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peak_memory import PEAK_KIB
from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.parquet_columns import batches, column_names

READ = (
    PEAK_KIB
    + """
import sys
from pathlib import Path
from video2world_preprocess.dataset.parquet_columns import batches
rows = 0
for batch in batches(Path(sys.argv[1]), ["text"]):
    rows += len(batch["text"])
print(rows, peak_kib() // 1024)
"""
)


def test_a_long_text_in_every_row_is_not_multiplied(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    text = pa.array(["x" * (8 << 20)])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 200), text)
    pq.write_table(
        pa.table({"text": repeated}),
        path,
        compression="zstd",
        write_statistics=False,
        dictionary_pagesize_limit=1 << 30,
    )
    assert path.stat().st_size < 1 << 20  # for 1.7 GB
    command = [sys.executable, "-c", READ, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows, mib = map(int, out.split())
    assert rows == 200
    assert mib < 800


def test_only_the_columns_asked_for_are_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = {"a.b": [1, 2, 3], "a.bc": ["y" * 10_000] * 3, "c": [[1], [2], [3]]}
    pq.write_table(pa.table(table), path)
    assert column_names(path) == ["a.b", "a.bc", "c"]
    found = list(batches(path, ["a.b", "c"], largest_group=1000))
    assert [b.to_pylist() for b in found[0].values()] == [[1, 2, 3], [[1], [2], [3]]]
    with pytest.raises(UserError, match="bytes in one row group, at most 1000 are read"):
        list(batches(path, ["a.bc"], largest_group=1000))
    with pytest.raises(UserError, match="the column x is missing"):
        list(batches(path, ["x"]))
