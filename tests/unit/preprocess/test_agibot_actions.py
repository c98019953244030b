"""Tests for the actions of AgiBotWorld's proprioception files: aligned rows, and defects."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from video2world_common.action_statistics import ActionStatistics
from video2world_preprocess import agibot
from video2world_preprocess.actions.poses import matrix_of_quaternion, relative_poses
from video2world_preprocess.actions.sequence import read_actions
from video2world_preprocess.video.writer import write_video

CAMERA = "head_center_fisheye_color"
DATA = Path("datasets/agibot")
OUT = Path(f"datasets/agibot_{CAMERA}")
FRAMES = 110
LOCAL = ("--prepare", "--local", "--min_frames", "30", "--workers", "1")


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fields(episode: int, rows: int = FRAMES, rate: int = 10) -> dict[str, np.ndarray]:
    """Return the fields of an episode, whose values say its number and time in frames."""
    time = np.arange(rows) * 10 / rate
    half = 0.05 * time
    turn = np.stack([0 * half, np.sin(half), 0 * half, np.cos(half)], axis=-1)
    return {
        "state/joint/position": np.stack([time + joint for joint in range(14)], axis=1),
        "state/end/position": np.stack([[time, 2 * time, 0 * time]] * 2).transpose(2, 0, 1),
        "state/end/orientation": np.stack([turn, turn], axis=1),
        "state/effector/position": np.stack([time % 120, 0 * time + episode], axis=1),
        "action/effector/position": np.stack([time, -time], axis=1),
        "timestamp": (1_700_000_000 + np.arange(rows) / rate) * 1e9,
    }


def write_fields(episode: int, values: dict[str, np.ndarray]) -> Path:
    path = DATA / f"proprio_stats/327/{episode}/proprio_stats.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value.astype(np.int64) if name == "timestamp" else value
    return path


@pytest.fixture
def task() -> None:
    """Write a task of three episodes, as an archive."""
    pixels = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    pixels += (np.arange(FRAMES) * 2).astype(np.uint8)[:, None, None, None]
    write_video(Path("clip.mp4"), pixels, 10)
    archive = DATA / "observations/327/1-3.tar"
    archive.parent.mkdir(parents=True)
    data = Path("clip.mp4").read_bytes()
    with tarfile.open(archive, "w") as opened:
        for episode in (1, 2, 3):
            member = tarfile.TarInfo(f"{episode}/videos/{CAMERA}.mp4")
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
            write_fields(episode, fields(episode))
    info = [
        {
            "episode_id": episode,
            "init_scene_text": "A shelf.",
            "label_info": {
                "action_config": [{"start_frame": 0, "end_frame": FRAMES, "action_text": "Pick."}]
            },
        }
        for episode in (1, 2, 3)
    ]
    path = DATA / "task_info/task_327.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(info))


def run(*flags: str) -> tuple[int, dict[str, Any]]:
    (OUT / "report.json").unlink(missing_ok=True)
    code = agibot.main([*LOCAL, *flags])
    path = OUT / "report.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def written() -> dict[tuple[int, int], np.ndarray]:
    """Return the actions of each window by episode and first frame; check their numbers."""
    found = {}
    for path in OUT.glob("*/videos/*.mp4"):
        first, last = map(int, path.stem.rpartition("_")[2].split("-"))
        rows = read_actions(path.parent.parent / "actions" / f"{path.stem}.safetensors")
        assert len(rows) == last - first
        found[int(path.stem.split("_")[3]), first] = rows
    return found


@pytest.mark.usefixtures("task")
def test_rows_lead_to_the_next_frame_and_states_are_those_of_it() -> None:
    names = ("state/joint/position", "action/effector/position")
    code, _ = run("--actions", *names, "--val_episode_ids", "3")
    assert code == 0
    found = written()
    assert sorted(found) == [(e, first) for e in (1, 2, 3) for first in (0, 50)]
    for (_, first), rows in found.items():
        for k, row in enumerate(rows):
            later = first + k + 1
            np.testing.assert_array_equal(row[:14], [later + joint for joint in range(14)])
            np.testing.assert_array_equal(row[14:], [first + k, -first - k])
    described = ActionStatistics.read(OUT / "actions.json")
    assert described.dimension == 16
    assert described.names[::15] == ("state/joint/position_0", "action/effector/position_1")
    assert described.fps == 10
    assert described.rows == sum(len(rows) for (e, _), rows in found.items() if e != 3)
    stamps = {path: path.stat().st_mtime_ns for path in OUT.glob("*/*/*")}
    assert run("--actions", *names, "--val_episode_ids", "3")[0] == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in OUT.glob("*/*/*")}


@pytest.mark.usefixtures("task")
def test_the_pose_of_one_arm_becomes_relative() -> None:
    names = [f"state/end/position_{k}" for k in range(3)]
    names += [f"state/end/orientation_{k}" for k in range(4)] + ["state/effector/position_0"]
    columns = ("state/end/position", "state/end/orientation", "state/effector/position")
    flags = ("--action_names", *names, "--action_representation", "relative_pose")
    assert run("--actions", *columns, *flags)[0] == 0
    values = fields(1)
    rotations = matrix_of_quaternion(values["state/end/orientation"][:, 0])
    expected = relative_poses(values["state/end/position"][:, 0], rotations)
    np.testing.assert_allclose(written()[1, 50][:, :6], expected[50:109], atol=1e-6)
    np.testing.assert_array_equal(written()[1, 0][:, 6], values["state/effector/position"][1:50, 0])


@pytest.mark.usefixtures("task")
def test_bad_files_leave_their_episode_out() -> None:
    path = write_fields(2, fields(2, 50))
    write_fields(3, fields(3, 330, rate=30))  # resampled
    code, report = run("--actions", "state/joint/position")
    assert code == 0
    reasons = {problem["item"]: problem["reason"] for problem in report["dropped"]}
    assert set(reasons) == {"task_327_episode_2"}
    assert "50 rows for 110 frames of the video: fewer actions" in reasons["task_327_episode_2"]
    np.testing.assert_allclose(written()[3, 50][:, 0], np.arange(51, 110), atol=1e-4)

    for values, reason in (
        (fields(2) | {"state/joint/position": np.full((FRAMES, 14), np.nan)}, "row 0: state/joint"),
        (fields(2) | {"state/joint/position": np.zeros((FRAMES, 13))}, "has 13 values per row"),
        ({"timestamp": np.zeros(FRAMES)}, "the field state/joint/position is missing"),
    ):
        write_fields(2, values)
        code, report = run("--actions", "state/joint/position")
        assert code == 0
        assert reason in report["dropped"][0]["reason"]
    path.write_bytes(path.read_bytes()[:500])
    assert (
        "the HDF5 file is damaged"
        in run("--actions", "state/joint/position")[1]["dropped"][0]["reason"]
    )
    path.unlink()
    reason = run("--actions", "state/joint/position")[1]["dropped"][0]["reason"]
    assert "episode_2" not in str(sorted(OUT.glob("*/actions/*")))
    assert "2/proprio_stats.h5: there is no such file" in reason
    write_fields(2, fields(2))
    assert not run("--actions", "state/joint/position")[1]["dropped"]
    assert len(written()) == 6


@pytest.mark.usefixtures("task")
def test_links_to_other_files_are_not_followed() -> None:
    other = write_fields(9, fields(9))
    with h5py.File(DATA / "proprio_stats/327/2/proprio_stats.h5", "a") as file:
        del file["state/joint/position"]
        file["state/joint/position"] = h5py.ExternalLink(
            str(other.resolve()), "/state/joint/position"
        )
    report = run("--actions", "state/joint/position")[1]
    assert "the field state/joint/position is missing" in report["dropped"][0]["reason"]


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--actions", "state/joint/positon"), "did you mean state/joint/position? It has"),
        (("--task_ids", "327", "328", "--actions", "x"), "no archives|no datasets/agibot/proprio"),
        (("--actions", "state/end/position", "--action_names", "x"), "state/end/position_5"),
    ],
)
def test_wrong_flags_are_refused(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags)[0] == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error
