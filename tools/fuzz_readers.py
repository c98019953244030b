"""Fuzz the readers of untrusted data: archives, captions, task_info, and records on the volume.

    pip install atheris && python tools/fuzz_readers.py -max_total_time=600

Coverage-guided, with atheris (flags are passed on to its libFuzzer). Damage must be reported or
raise a UserError; any other exception, a hang or an endless walk is a finding.
"""

from __future__ import annotations

import builtins
import io
import itertools
import json
import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import IO

import atheris

with atheris.instrument_imports(include=["video2world_preprocess", "tarfile", "json"]):
    import tarfile

    from video2world_common.exit_codes import UserError
    from video2world_preprocess.archives.tar_scan import misaligned_piece, walk
    from video2world_preprocess.dataset.captions import CaptionFile, read_task_info
    from video2world_preprocess.dataset.records import read_record
    from video2world_preprocess.dataset.windows import Window
    from video2world_preprocess.stage_report import Report

CAMERA = "head_center_fisheye_color"
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm"))
SPARSE_LIMIT = 1 << 24


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in (
            *(f"1/depth/{n}.png" for n in range(9)),
            f"1/videos/{CAMERA}.mp4",
            "long/" * 30 + "é",
            f"22/videos/{CAMERA}.mp4",
        ):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(b"v" * 700))
    return buffer.getvalue()


CAPTION = {
    "video_clip": "task_327_episode_1_window_0_frame_0-149",
    "task_id": 327,
    "episode_id": 1,
    "start_frame": 0,
    "end_frame": 149,
    "caption": "a robot",
}
ENTRY = {
    "episode_id": 1,
    "task_id": 327,
    "init_scene_text": "A shelf.",
    "label_info": {"action_config": [{"start_frame": 0, "end_frame": 9, "action_text": "Pick."}]},
}
RECORD = {
    "cut_by": "a",
    "told_by": "b",
    "split": "train",
    "fps": 30.0,
    "source_bytes": 1,
    "clips": [["name", 0, 9, 100, False]],
    "dropped": [],
    "notes": [],
}
SEEDS = {
    b"t": _archive(),
    b"c": json.dumps(CAPTION).encode() + b"\n",
    b"i": json.dumps([ENTRY]).encode(),
    b"r": json.dumps(RECORD).encode(),
}


def _with_good_checksums(data: bytes) -> bytes:
    """Fix the header checksums; otherwise almost every mutated header would be rejected at once."""
    blocks = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def _tar(data: bytes) -> None:
    data = _with_good_checksums(data) if data[-1:] != b"!" else data
    pieces = []
    min_skip = 700 * (data[-2] % 4) if len(data) > 1 else 0
    bounds = [0, len(data) // 2, max(len(data), 1)]
    for start, stop in itertools.pairwise(bounds):

        def take(member: object, content: IO[bytes]) -> None:
            content.read(SPARSE_LIMIT)

        piece = walk(io.BytesIO(data), start, stop, CAMERA, take, None if start else 0, min_skip)
        assert all(start <= m.offset < stop and m.episode >= 0 for m in piece.members)
        pieces.append(piece)
    for _ in range(4):
        if (wrong := misaligned_piece(pieces)) is None:
            return
        old = pieces[wrong[0]]
        pieces[wrong[0]] = walk(
            io.BytesIO(data), old.start, old.stop, CAMERA, lambda *_: None, wrong[1]
        )
    raise AssertionError("the pieces do not become consistent")


def _text(kind: bytes, data: bytes) -> None:
    path = FOLDER / ".sources" / "text.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    report, window = Report("fuzz"), Window(0, 0, 150)
    if kind == b"c":
        CaptionFile.read(path, report)
    elif kind == b"i":
        for info in read_task_info(path, report).values():
            info.text("name", window, Fraction(30))
    else:
        for name, *_ in read_record(FOLDER, "text").clips:
            assert name
            assert "/" not in name


def one(data: bytes) -> None:
    """Run one case; its first byte selects the reader."""
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"t":
            _tar(rest)
        elif kind in (b"c", b"i", b"r"):
            _text(kind, rest)
    except UserError:
        pass


def main() -> None:
    """Fuzz until libFuzzer's limits are reached."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for kind, seed in SEEDS.items():
        (corpus / kind.decode()).write_bytes(kind + seed)
    builtins.print = lambda *_, **__: None  # silence the report's lines for each item
    os.environ.pop("V2W_RESOURCE", None)
    atheris.Setup([*sys.argv, "-max_len=16384", "-timeout=20", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
