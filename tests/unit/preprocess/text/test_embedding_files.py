"""Tests for embedding files: exchanged with upstream's loader, and no other pickle is read."""

import contextlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peak_memory import PEAK_KIB
from video2world_common.exit_codes import UserError
from video2world_preprocess.text.embedding_files import read_embedding, write_embedding

EMBEDDING = np.arange(12, dtype=np.float16).reshape(3, 4)


def test_the_guides_loader_reads_what_we_write(tmp_path):
    path = tmp_path / "a.pickle"
    write_embedding(path, EMBEDDING.astype(np.float32))
    with path.open("rb") as stream:
        content = pickle.load(stream)  # noqa: S301  the guide's loader, on our own file
    assert isinstance(content, list)
    assert len(content) == 1
    assert content[0].dtype == np.float16
    assert content[0].ndim == 2
    np.testing.assert_array_equal(content[0], EMBEDDING)
    np.testing.assert_array_equal(read_embedding(path), EMBEDDING)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pickle"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4"])
@pytest.mark.parametrize("numpy_1", [False, True])
def test_every_protocol_and_both_numpy_generations_are_read(tmp_path, protocol, dtype, numpy_1):
    array = np.asfortranarray(EMBEDDING) if dtype == "f4" else EMBEDDING
    data = pickle.dumps([array.astype(dtype)], protocol=protocol)
    if numpy_1:
        # strings carry their length in the binary protocols
        old, new = b"numpy._core.", b"numpy.core."
        for module in (b"multiarray", b"numeric"):
            for mark in (b"\x8c", b"X"):
                size = 1 if mark == b"\x8c" else 4
                before, after = old + module, new + module
                data = data.replace(
                    mark + len(before).to_bytes(size, "little") + before,
                    mark + len(after).to_bytes(size, "little") + after,
                )
        data = data.replace(old, new) if protocol < 4 else data
        # the replaced frame is one byte shorter than its header says
        if protocol >= 4:
            data = data[:3] + (len(data) - 11).to_bytes(8, "little") + data[11:]
        assert old not in data
    path = tmp_path / "a.pickle"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_embedding(path), EMBEDDING)


class _Payload:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_executes_is_refused_and_named(tmp_path, protocol):
    path, proof = tmp_path / "evil.pickle", tmp_path / "proof"
    path.write_bytes(pickle.dumps([_Payload(os.system, f"touch {proof}")], protocol=protocol))
    with pytest.raises(UserError, match=r"evil\.pickle is refused.*system"):
        read_embedding(path)
    assert not proof.exists()
    with path.open("rb") as stream:
        pickle.load(stream)  # noqa: S301  the payload is live: upstream's loader runs it
    assert proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        [_Payload(eval, "1+1")],
        [_Payload(getattr, 1, "real")],
        [_Payload(np.load, "/etc/passwd")],
        [np.array([["x"]], dtype=object)],
        [np.array([["text"]])],
        [np.ones((2, 2), np.int64)],
        [np.ones(3, np.float16)],
        [np.ones((0, 4), np.float16)],
        [np.full((1, 4), np.nan, np.float16)],
        [EMBEDDING, EMBEDDING],
        {"a": EMBEDDING},
        [],
        7,
        _Payload(os.getcwd),
    ],
)
def test_anything_but_one_array_of_numbers_is_refused(tmp_path, content):
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"odd\.pickle"):
        read_embedding(path)


@pytest.mark.parametrize(
    "data",
    [
        b"]r" + (1 << 26).to_bytes(4, "little") + b".",  # a memo of this size takes 1 GiB
        b"]p67108864\n.",
        b"\x96" + (1 << 30).to_bytes(8, "little") + b"ab.",  # a byte array
        b"]" * (16 << 20) + b".",  # 0.9 GiB of empty lists
    ],
)
def test_a_file_cannot_request_large_amounts_of_memory(tmp_path, data):
    path = tmp_path / "greedy.pickle"
    path.write_bytes(data)
    code = PEAK_KIB + (
        "import sys\n"
        "from pathlib import Path\n"
        "from video2world_preprocess.text.embedding_files import read_embedding\n"
        "from video2world_common.exit_codes import UserError\n"
        "before = peak_kib()\n"
        "try:\n    read_embedding(Path(sys.argv[1]))\n"
        "except UserError as error:\n    print(error)\n"
        "print(peak_kib() - before)\n"
    )
    reported = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    error, kibibytes = reported.stdout.splitlines()
    assert re.search(r"greedy\.pickle is (refused|damaged)", error)
    assert int(kibibytes) < 100 << 10


def test_a_file_cannot_change_how_the_next_is_read(tmp_path):
    poison = tmp_path / "poison.pickle"
    poison.write_bytes(b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(UserError, match="poison"):
        read_embedding(poison)
    write_embedding(tmp_path / "good.pickle", EMBEDDING)
    np.testing.assert_array_equal(read_embedding(tmp_path / "good.pickle"), EMBEDDING)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.pickle"
    write_embedding(path, np.ones((5, 1024)))
    whole = path.read_bytes()
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.pickle"):
            read_embedding(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), position=st.integers(0, 150), whole=st.booleans())
def test_random_bytes_give_an_array_or_a_user_error(tmp_path, data, position, whole):
    path: Path = tmp_path / "fuzz.pickle"
    good = pickle.dumps([EMBEDDING])
    path.write_bytes(data if whole else good[:position] + data[:4] + good[position + 4 :])
    with contextlib.suppress(UserError):
        assert read_embedding(path).ndim == 2
