"""Tests that no item ends a stage, neither with an error nor by crashing a worker process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hostile_items
from hostile_items import Hostile
from video2world_common.exit_codes import UserError
from video2world_common.sharding import Shard
from video2world_preprocess.dataset.source import CutSettings, OneCaption, Source
from video2world_preprocess.dataset.splitter import Splitter, split_all
from video2world_preprocess.device_pool import process_items
from video2world_preprocess.item_faults import Crashed, is_unexpected, reason_for
from video2world_preprocess.stage_report import Report
from video2world_preprocess.video.writer import write_video
from video2world_preprocess.worker_pool import WorkerPool

RULE = CutSettings(window_seconds=2.0, min_last_seconds=2.5, min_frames=17)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video of two windows."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, np.full((40, 32, 32, 3), 90, np.uint8), 10)
    return path


def source(video: Path, name: str, captions: object, origin: str = "1") -> Source:
    return Source(name, "video", video, "train", captions, origin)


def split(folder: Path, sources: list[Source], workers: int) -> dict:
    """Return the report of one run."""
    split_all(folder, sources, RULE, workers, Shard(), Report("dataset"))
    return json.loads((folder / "report.json").read_text())


def test_errors_of_every_type_affect_only_their_item(tmp_path: Path, video: Path) -> None:
    """In this process as in workers; another run retries failures that may be temporary."""
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        bad = [source(video, f"bad {how}", Hostile(how)) for how in hostile_items.FAULTS]
        sources = [source(video, "a", OneCaption("A.")), *bad, source(video, "z", Hostile())]
        report = split(folder, sources, workers)
        assert report["counts"]["episodes"] == 2
        assert report["counts"]["new_windows"] == 4
        dropped = {p["item"]: p["reason"] for p in report["dropped"]}
        assert set(dropped) == {"v.mp4"}
        assert len(report["dropped"]) == len(hostile_items.FAULTS)
        reasons = {
            record.stem: json.loads(record.read_text())["dropped"][0]["reason"]
            for record in (folder / ".sources").glob("bad*")
        }
        assert reasons.pop("bad user") == "it is not of use"
        for how, error in [
            ("zero", "ZeroDivisionError"),
            ("memory", "MemoryError"),
            ("unportable", "Unportable"),
            ("long", "OSError: [Errno 36] File name too long"),
            ("key", "KeyError: 'gone'"),
        ]:
            assert reasons[f"bad {how}"].startswith(f"unexpected {error}"), reasons
        assert all(is_unexpected(reason) for reason in reasons.values())
        again = split(folder, [source(video, s.name, Hostile()) for s in sources], workers)
        assert again["dropped"] == []
        assert again["counts"]["episodes"] == len(sources)


@pytest.mark.parametrize("how", hostile_items.MACHINE)
def test_errors_of_the_machine_end_the_stage(tmp_path: Path, video: Path, how: str) -> None:
    for workers in (1, 2) if how == "full" else (1,):
        sources = [source(video, "a", OneCaption("A.")), source(video, "b", Hostile(how))]
        with pytest.raises(OSError, match=r"\[Errno"):
            split(tmp_path / str(workers), sources, workers)


def test_a_crash_affects_only_its_item_and_no_finished_window(tmp_path: Path, video: Path) -> None:
    once = str(tmp_path / "once")
    names = {
        "killed": "was killed",
        "segfault": "terminated by SIGSEGV",
        "exit": "with exit code 3",
    }
    sources = [source(video, f"good {n}", OneCaption(str(n))) for n in range(3)]
    sources += [source(video, how, Hostile(how)) for how in names]
    sources += [source(video, "once", Hostile("killed", once))]
    folder = tmp_path / "out"
    report = split(folder, sources, 2)
    assert report["counts"]["episodes"] == 4  # an item is tried twice
    records = {p.stem: json.loads(p.read_text()) for p in (folder / ".sources").glob("*.json")}
    for how, words in names.items():
        (problem,) = records[how]["dropped"]
        assert words in problem["reason"]
        assert "give the stage more memory" in problem["reason"]
    assert records["once"]["dropped"] == []
    # a video whose windows were cut before keeps them
    del sources[-1]
    sources[0] = source(video, "good 0", Hostile("killed"))
    lost = folder / "train/videos/good 0_window_1_frame_20-39.mp4"
    lost.unlink()
    report = split(folder, sources, 2)
    assert report["counts"]["episodes"] == 3
    assert report["counts"]["windows"] == 5
    (reason,) = [p["reason"] for p in report["dropped"] if "1 of its 2 windows" in p["reason"]]
    assert is_unexpected(reason)
    assert (folder / "train/metas/good 0_window_0_frame_0-19.txt").read_text() == "The arm moves."
    assert not lost.exists()


def test_an_item_that_crashed_the_only_process_is_isolated_in_the_next_run(
    tmp_path: Path, video: Path
) -> None:
    """With one worker: the item ended the process, so the next run isolates it."""
    sources = [source(video, n, Hostile("exit" if n == "b" else "")) for n in "abc"]
    code = (
        "import multiprocessing, pickle, sys\n"
        "import hostile_items\n"
        "from video2world_preprocess.dataset.splitter import split_all\n"
        "if __name__ == '__main__':\n"
        "    hostile_items.parent_process = lambda: 1\n"
        "    split_all(*pickle.load(sys.stdin.buffer))\n"
    )
    given = pickle.dumps((tmp_path / "out", sources, RULE, 1, Shard(), Report("dataset")))
    (tmp_path / "main.py").write_text(code)
    paths = os.pathsep.join(path for path in sys.path if path)
    done = [
        subprocess.run(
            [sys.executable, tmp_path / "main.py"],
            input=given,
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for _ in range(2)
    ]
    assert [run.returncode for run in done] == [3, 0], done[1].stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["counts"]["episodes"] == 2
    assert "with exit code 3" in report["dropped"][0]["reason"]


def test_the_stage_ends_if_all_fail(tmp_path: Path, video: Path) -> None:
    with pytest.raises(UserError, match="no window is left to train on"):
        split(tmp_path, [source(video, "a", Hostile("user"))], 1)
    with pytest.raises(OSError, match=r"no window is left .*unexpected ZeroDivisionError"):
        split(tmp_path, [source(video, "a", Hostile("zero"))], 1)
    with pytest.raises(OSError, match=r"no window is left .*a worker process was killed"):
        split(tmp_path, [source(video, n, Hostile("killed")) for n in "ab"], 2)


def test_a_failed_item_is_finished_for_other_shards_and_retried_by_the_next_run(
    tmp_path: Path, video: Path
) -> None:
    bad = source(video, "bad", Hostile("zero"))
    with Splitter(tmp_path, RULE, 1) as first:
        assert first.needs(bad)
        first.acquire_slot()
        first.submit(bad)
        assert first.is_done(bad)
        assert not first.needs(bad)
    with Splitter(tmp_path, RULE, 1) as later:
        assert later.is_done(bad)
        assert later.needs(bad)


@pytest.mark.parametrize("on", [["cpu"], ["x", "y"]])
def test_each_item_gets_a_result_or_a_reason(tmp_path: Path, on: list[str]) -> None:
    items = ["", "value", "killed"] if len(on) > 1 else ["", *hostile_items.FAULTS, ""]
    found = [
        (item, result, why)
        for item, result, why in process_items(hostile_items.load, items, on, tmp_path)
    ]
    assert sorted(item for item, *_ in found) == sorted(items)
    for item, result, why in found:
        assert (result is None) == bool(item) == (why is not None)
        assert result is None or result.split(":")[0] in on
    with pytest.raises(OSError, match="No space left"):
        list(process_items(hostile_items.load, ["full"], on, tmp_path))


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("user", UserError, "it is not of use"),
        ("zero", RuntimeError, "ZeroDivisionError"),
        ("killed", OSError, "could not load what it needs: .*killed.*more memory"),
    ],
)
def test_errors_while_loading_end_the_stage(how: str, error: type[Exception], words: str) -> None:
    with WorkerPool(functools.partial(hostile_items.load_badly, how), ["x"]) as helpers:
        futures = [helpers.submit(""), helpers.submit("")]
    for future in futures:
        with pytest.raises(error, match=words):
            future.result()


def test_workers_do_not_outlive_an_error() -> None:
    helpers = WorkerPool(hostile_items.load, ["x"])
    with contextlib.suppress(ZeroDivisionError), helpers:
        helper = Path("/proc") / helpers.submit("pid").result()
        waiting = [helpers.submit("sleep"), helpers.submit("")]
        raise ZeroDivisionError
    deadline = time.monotonic() + 30
    while helper.exists() and "zombie" not in (helper / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not waiting[1].done()


@pytest.mark.parametrize("below", [True, False])
def test_a_missing_permission_affects_one_item_unless_it_is_for_the_output_folder(
    tmp_path: Path, below: bool
) -> None:
    name = tmp_path / ("out/train/x.mp4" if below else "in/x.mp4")
    error = PermissionError(13, "Permission denied", str(name))
    if below:
        with pytest.raises(PermissionError):
            reason_for(error, tmp_path / "out")
    else:
        assert os.fspath(name) in reason_for(error, tmp_path / "out")


def test_a_failed_gpu_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA error"):
        reason_for(RuntimeError("CUDA error: an illegal memory access"), tmp_path)
    assert "out of memory" in reason_for(RuntimeError("CUDA out of memory."), tmp_path)
    assert is_unexpected(reason_for(Crashed("killed"), tmp_path))
