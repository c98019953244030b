"""Tests for the lerobot command: every frame of every window, and datasets with defects.

The datasets are written by tests/support/lerobot_datasets.py at 10 frames/s; their pictures show
the numbers of episode, frame and camera, so that a window that is off by one frame is noticed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hostile_items import Hostile
from lerobot_datasets import DEPTH, TOP, WRIST, Dataset
from lerobot_runs import EPISODES, FLAGS, OUT, change_episodes, reasons, run, windows
from video2world_common.sharding import Shard
from video2world_preprocess import lerobot
from video2world_preprocess.dataset.lerobot_cutter import cut_dataset
from video2world_preprocess.dataset.lerobot_dataset import (
    EpisodeNumbers,
    Selection,
    find_episodes,
)
from video2world_preprocess.dataset.lerobot_files import FolderFiles
from video2world_preprocess.dataset.source import CutSettings
from video2world_preprocess.stage_report import Report


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty volume the working directory, as for a worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVT_LOG", "1")
    return tmp_path


CASES = [
    ("v3.0", "av1"),
    ("v3.0", "hevc"),
    ("v3.0", "h264-long"),
    ("v3.0", "image"),
    ("v2.0", "h264"),
    ("v2.0", "image"),
    ("v2.1", "av1"),
]


@pytest.mark.parametrize(("version", "codec"), CASES)
def test_every_frame_of_every_window_is_the_datasets(version: str, codec: str) -> None:
    other = "image" if codec == "image" else "h264"
    cameras = {WRIST: other, TOP: codec}  # whose files hold other numbers of episodes
    lengths = (24, 18, 30, 9, 27)
    tasks = ("push cube", "open drawer", "push cube", "push cube", "open drawer")
    Dataset(Path("data"), version, lengths, tasks, cameras, chunks_size=2).write()
    code, report = run("--val_episode_ids", "1", "3-4")
    assert code == 0
    assert windows(camera=1) == dict(enumerate(lengths))
    assert report["counts"]["format"] == version
    assert report["counts"]["camera"] == TOP
    assert not report["dropped"]
    held_out = {int(p.stem.split("_")[1]) for p in OUT.glob("val/videos/*")}
    assert held_out == {1, 3, 4}
    captions = {p.stem.split("_")[1]: p.read_text() for p in OUT.glob("*/metas/*")}
    assert list(map(captions.get, ("000000", "000001"))) == ["push cube", "open drawer"]


@pytest.mark.parametrize("codec", ["h264-long", "av1"])
def test_a_few_episodes_of_a_file_with_many(codec: str) -> None:
    lengths = [70 + n for n in range(8)]
    Dataset(Path("data"), lengths=lengths, tasks=["t"] * 8, cameras={TOP: codec}, group=8).write()
    code, _ = run("--episode_ids", "2", "6-7", "--val_episode_ids", "7")
    assert code == 0
    assert windows() == {2: 72, 6: 76, 7: 77}


def test_a_share_of_the_episodes_is_held_out() -> None:
    lengths = (9, 9, 9, 9, 9, 9)
    Dataset(Path("data"), lengths=lengths, tasks=["t"] * 6, cameras={TOP: "h264"}, group=6).write()

    def held_out(*flags: str) -> set[int]:
        assert run("--require_val", *flags)[0] == 0
        assert set(windows()) == set(range(6))
        return {int(path.stem.split("_")[1]) for path in OUT.glob("val/videos/*")}

    share = held_out("--val_percent", "40")
    assert 0 < len(share) < 5
    assert held_out("--val_percent", "40") == share
    named = next(number for number in range(6) if number not in share)
    assert held_out("--val_percent", "40", "--val_episode_ids", str(named)) == {*share, named}
    assert len(held_out("--val_percent", "1")) == 1  # at least one
    assert run("--require_val")[0] == 2


def test_a_second_run_changes_nothing_and_new_settings_replace_windows() -> None:
    Dataset(Path("data")).write()
    assert run()[0] == 0
    before = {p: p.stat().st_mtime_ns for p in OUT.glob("*/*/*")}
    code, report = run()
    assert (code, report["counts"]["new_windows"]) == (0, 0)
    assert {p: p.stat().st_mtime_ns for p in OUT.glob("*/*/*")} == before
    some = next(iter(before))
    some.unlink()
    assert run()[1]["counts"]["new_windows"] == (some.suffix == ".mp4")
    assert some.is_file()
    code, report = run("--episode_ids", "0", "2", "--window-size", "2", "--min-last-window", "3")
    assert (code, windows()) == (0, {0: 24, 2: 30})
    assert report["counts"]["removed_windows"] == 7


def test_shards_make_what_one_command_makes() -> None:
    Dataset(Path("data"), lengths=(24, 18, 30, 9), tasks=["a"] * 4, group=4).write()
    assert run("--shards", "2", "--shard", "1")[1] == {}
    code, report = run("--shards", "2", "--shard", "0")
    assert code == 0
    assert windows() == dict(enumerate((24, 18, 30, 9)))
    assert report["counts"]["episodes"] == 4
    assert not (OUT / ".lerobot").exists()


def test_a_finished_stage_runs_again_only_if_the_dataset_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("STAGE", "dataset"), ("RESOURCE", "a"), ("INPUTS_HASH", "1")):
        monkeypatch.setenv(f"V2W_{name}", value)
    flags = ["--data_dir", "data", "--dataset_dir", "out", "--camera", "top", *FLAGS]
    Dataset(Path("data"), "v2.1").write()
    assert lerobot.main(flags) == 0
    capsys.readouterr()
    assert lerobot.main(flags) == 0
    assert "dataset: nothing to do" in capsys.readouterr().out
    Dataset(Path("data"), "v2.1", lengths=(24, 18, 31)).write()
    assert lerobot.main(flags) == 0
    assert "dataset: run again" in capsys.readouterr().out
    assert windows() == {0: 24, 1: 18, 2: 31}


# ---------------------------------------------------------------- cameras and captions


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ("elbow", f"--camera elbow: the dataset's cameras are {TOP}, {WRIST} (and depth"),
        (DEPTH, f"--camera {DEPTH} is depth (meta/info.json marks it as a depth map)"),
        ("scene", "--camera observation.images.scene is depth (its pixel format gray12le"),
        ("head_depth", "--camera head_depth is depth (its name says so)"),
    ],
)
def test_an_unusable_camera_is_refused(
    camera: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features = {
        DEPTH: {"dtype": "video", "info": {"is_depth_map": True}},
        "observation.images.scene": {"dtype": "video", "info": {"video.pix_fmt": "gray12le"}},
        "head_depth": {"dtype": "video", "video_info": None},
    }
    Dataset(Path("data"), features=features).write()
    assert run(camera=camera)[0] == 2
    assert expected in capsys.readouterr().err


def test_the_only_camera_needs_no_flag_and_of_several_one_must_be_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--data_dir", "data", "--dataset_dir", "out", *FLAGS]
    Dataset(Path("data")).write()
    assert lerobot.main(flags) == 2
    assert f"the dataset's cameras are {TOP}, {WRIST}" in capsys.readouterr().err
    shutil.rmtree("data")
    Dataset(Path("data"), cameras={"image": "h264"}, features={DEPTH: {"dtype": "video"}}).write()
    assert lerobot.main(flags) == 0
    assert windows() == {0: 24, 1: 18, 2: 30}


def texts() -> dict[int, str]:
    return {int(p.stem.split("_")[1]): p.read_text() for p in sorted(OUT.glob("*/metas/*"))}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "captions.jsonl",
            '{"episode_index": 0, "caption": "Pushes."}\nnonsense\n\n'
            '{"episode_index": 2, "caption": " "}\n{"episode_index": 1, "caption": "Opens, a."}\n',
        ),
        ("captions.csv", 'caption,episode_index\r\nPushes.,0\r\n"Opens, a.",1\r\n,2\r\n?,x\r\n'),
    ],
)
def test_captions_from_a_file(name: str, content: str) -> None:
    Dataset(Path("data")).write()
    Path(name).write_text(content)
    code, report = run("--caption", "File", "--caption_file", name)
    assert code == 0
    assert texts() == {0: "Pushes.", 1: "Opens, a."}
    assert reasons(report)["episode_000002"] == "the caption file has no line for it"
    assert report["dropped_by_kind"] == {"caption": 2, "episode": 1}


def test_tasks_are_hints_for_an_endpoint() -> None:
    Dataset(Path("data"), tasks=("push cube", "", "None")).write()
    code, report = run("--caption", "Endpoint")
    assert (code, report["dropped"]) == (0, [])
    assert texts() == {0: "push cube", 1: "", 2: ""}


def test_an_episode_without_a_task_is_left_out() -> None:
    Dataset(Path("data"), "v2.1", tasks=("push cube", "", "None")).write()
    code, report = run()
    assert (code, texts()) == (0, {0: "push cube"})
    assert "it has no task text" in reasons(report)["episode_000001"]
    assert "it has no task text" in reasons(report)["episode_000002"]


@pytest.mark.parametrize("column", ["task", None])
def test_tasks_by_number_and_several_tasks(column: str | None) -> None:
    Dataset(Path("data"), task_column=column).write()
    change_episodes(lambda rows: rows | {"tasks": [["1"], ["0", "1"], ["7"]]})
    path = EPISODES
    table = pq.read_table(path).drop_columns("tasks")
    numbers = pa.array([[1], [0, 1], [7]])
    pq.write_table(table.append_column("tasks", numbers), path)
    code, report = run()
    assert (code, texts()) == (0, {0: "open drawer", 1: "push cube. open drawer."})
    assert "it has no task text" in reasons(report)["episode_000002"]


# ---------------------------------------------------------------- failures


def cut_with(failures: dict[int, str], folder: Path = OUT) -> dict[str, Any]:
    """Cut the five episodes of one file, of which some fail; return the report."""
    report = Report("dataset")
    files = FolderFiles(Path("data"), "")
    none = EpisodeNumbers("", ())
    data = find_episodes(files, Selection("data", "top", none, none, "Task", None), report)
    (file,) = data.files
    for number, how in failures.items():
        file.sources[number] = replace(file.sources[number], captions=Hostile(how))
    rule = CutSettings(1.0, 1.5, 5)
    cut_dataset(data, files, files.root, folder, rule, 2, Shard(), report)
    return json.loads((folder / "report.json").read_text())


def test_a_failure_of_any_kind_costs_its_episode_of_a_file() -> None:
    lengths = (24, 18, 30, 9, 27)
    Dataset(Path("data"), lengths=lengths, tasks=["t"] * 5, group=5).write()
    report = cut_with({1: "killed", 2: "zero", 3: "segfault"})
    assert windows() == {0: 24, 4: 27}
    found = reasons(report)
    assert "was killed" in found["episode_000001"]
    assert found["episode_000002"].startswith("unexpected ZeroDivisionError")
    assert "terminated by SIGSEGV" in found["episode_000003"]
    assert len(found) == 3
    assert cut_with({})["dropped"] == []
    assert windows() == dict(enumerate(lengths))


@pytest.mark.parametrize("how", ["full", "input"])
def test_a_failure_of_the_machine_ends_the_stage(how: str) -> None:
    Dataset(Path("data"), lengths=(24, 18), tasks=["t"] * 2, group=2).write()
    with pytest.raises(OSError, match=r"\[Errno"):
        cut_with({1: how})
    cut_with({})
    assert windows() == {0: 24, 1: 18}
