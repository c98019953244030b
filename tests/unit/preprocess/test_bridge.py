"""Tests for the bridge command: aligned windows with relative poses, and defects."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_datasets import picture, shown
from video2world_common.action_statistics import ActionStatistics
from video2world_preprocess import bridge
from video2world_preprocess.actions.poses import relative_actions
from video2world_preprocess.actions.sequence import read_actions, read_sequence
from video2world_preprocess.video.reader import read_frames
from video2world_preprocess.video.writer import write_video

OUT = Path("out")


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def states(number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    time = np.arange(count)
    pose = np.stack(
        [0.01 * time, 0.1 * number + 0 * time, 0.001 * time**2, 0.3 * time - 3, 0.1 * time, -time],
        axis=1,
    )
    return pose, (time % 3) / 2


def episode(split: str, number: int, count: int = 16, frames: int | None = None, **change: Any):
    """Write an episode whose pictures show its number and frame."""
    pose, gripper = states(number, count)
    video = f"videos/{split}/{number}/rgb.mp4"
    value = {
        "episode_id": number,
        "state": np.c_[pose, np.full(count, 7)].tolist(),
        "continuous_gripper_state": gripper.tolist(),
        "action": [[9.0] * 7] * (count - 1),  # of another sense, never read
        "videos": [{"video_path": video}],
        "texts": [f"push cube {number}"],
    } | change
    path = Path(f"bridge/annotation/{split}/{number}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    pixels = np.stack([picture(number, k, 1) for k in range(count if frames is None else frames)])
    write_video(Path("bridge") / video, pixels, Fraction(4))
    return path


def run(*flags: str) -> tuple[int, dict[str, Any]]:
    (OUT / "report.json").unlink(missing_ok=True)
    arguments = ["--data_dir", "bridge", "--dataset_dir", "out", "--workers", "1", *flags]
    code = bridge.main(arguments)
    path = OUT / "report.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def windows() -> dict[tuple[str, int], int]:
    """Check every frame and action of every window; return the number of frames by episode."""
    found = {}
    for path in sorted(OUT.glob("*/videos/*.mp4")):
        number = int(path.stem.split("_")[1])
        codes = [shown(pixels) for pixels in read_frames(path)]
        assert codes == [(number, k, 1) for k in range(len(codes))]
        rows = read_actions(path.parent.parent / "actions" / f"{path.stem}.safetensors")
        expected = relative_actions(*states(number, 40))[: len(codes) - 1]
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        found[path.parent.parent.name, number] = len(codes)
    return found


def test_an_episode_becomes_one_window_with_its_relative_poses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = episode("train", 3, 16)
    episode("train", 4, 25)
    episode("val", 5, 13)
    episode("test", 6, 14)
    code, report = run("--require_val")
    assert code == 0
    assert windows() == {("train", 3): 16, ("train", 4): 25, ("val", 5): 13}
    assert not report["dropped"]
    assert "17 clips of 13 frames to train on" in capsys.readouterr().out
    captions = {p.stem.split("_")[1]: p.read_text() for p in OUT.glob("*/metas/*")}
    assert captions["4"] == "push cube 4"
    described = ActionStatistics.read(OUT / "actions.json")
    assert (described.representation, described.fps, described.rows) == ("relative_pose", 4, 39)
    assert described.scale == (20,) * 6 + (1,)
    window = next(OUT.glob("train/actions/train_3_*"))  # what inference makes of the same file
    np.testing.assert_array_equal(read_sequence(path, described), read_actions(window))
    videos = {p: p.stat().st_mtime_ns for p in OUT.glob("*/*/*")}
    assert run()[0] == 0
    assert videos == {p: p.stat().st_mtime_ns for p in OUT.glob("*/*/*")}


def test_without_val_test_is_held_out() -> None:
    episode("train", 1)
    episode("test", 6)
    assert run("--require_val")[0] == 0
    assert windows() == {("train", 1): 16, ("val", 6): 16}


def test_bad_episodes_are_counted_and_left_out_and_none_replaces_them() -> None:
    episode("train", 1)
    episode("train", 2, 16, frames=15)  # one frame was lost
    episode("train", 3, 16, frames=20)  # the first 16 are used
    bad = {
        10: ({}, 12, "shorter than one window"),
        11: ({"frames": 14}, 20, "20 rows for 14 frames of the video"),
        12: ({"state": [[0.0] * 6] * 15 + [[0.0] * 5 + [None]]}, 16, "state: row 15 is"),
        13: ({"state": [[0.0] * 5] * 16}, 16, "rows of 5 values, at least 6"),
        14: ({"continuous_gripper_state": [0.0] * 15}, 16, "15 values for 16 rows of state"),
        15: ({"continuous_gripper_state": [0.0] * 15 + [2]}, 16, "row 15 is 2, from 0 (open)"),
        16: ({"videos": []}, 16, "has no videos"),
        17: ({"videos": [{"video_path": "../secret.mp4"}]}, 16, "leads out of"),
        18: ({"videos": [{"video_path": "videos/none.mp4"}]}, 16, "videos/none.mp4 is missing"),
        19: ({"videos": [{}]}, 16, "video_path None of camera 0"),
        20: ({"state": "many"}, 16, "state: a list of rows is expected"),
    }
    for number, (change, count, _) in bad.items():
        episode("train", number, count, **change)
    Path("bridge/annotation/train/21.json").write_text("{")
    Path("bridge/videos/train/1/rgb.txt").write_text("not read")
    code, report = run()
    assert code == 0
    assert windows() == {("train", 1): 16, ("train", 2): 15, ("train", 3): 16}
    reasons = {problem["item"]: problem["reason"] for problem in report["dropped"]}
    assert set(reasons) == {f"train_{number}" for number in [*bad, 21]}
    for number, (_, _, reason) in bad.items():
        assert reason in reasons[f"train_{number}"]
    assert "21.json is not valid JSON" in reasons["train_21"]
    assert report["dropped_by_kind"] == {"episode": 12}


def test_shards_share_the_episodes() -> None:
    for number in range(4):
        episode("train", number)
    assert run("--shards", "2", "--shard", "1") == (0, {})
    assert run("--shards", "2", "--shard", "0")[0] == 0
    assert len(windows()) == 4
    assert ActionStatistics.read(OUT / "actions.json").rows == 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data_dir", "none"), "annotation/train is missing"),
        (("--min_frames", "1"), "--min_frames 1: give a number of 2 or more"),
        (("--camera_id", "2"), "no episode can be used.*its cameras are 0 to 0"),
    ],
)
def test_wrong_flags_are_refused(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    episode("train", 1)
    assert run(*flags)[0] == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("states", "stride", "interval", "clips"),
    [
        (12, 1, 1, 0),
        (13, 1, 1, 1),
        (14, 1, 1, 2),
        (25, 1, 1, 13),
        (40, 1, 1, 28),
        (40, 2, 1, 16),
        (40, 1, 4, 7),
    ],
)
def test_clips_are_counted_as_upstream_does(
    states: int, stride: int, interval: int, clips: int
) -> None:
    assert bridge.clip_count(states, 13, stride, interval) == clips
