"""Tests for the actions that the lerobot command writes: row by row, and datasets with defects.

The numbers of every row say its episode and frame, as the pictures do, so that actions that are off
by one row are noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_datasets import TOP, Dataset
from lerobot_runs import EPISODES, OUT, notes, reasons, run, windows
from video2world_common.action_statistics import ActionStatistics
from video2world_preprocess.actions.poses import matrix_of, relative_poses
from video2world_preprocess.actions.sequence import normalise, read_actions

DATA = Path("data/data/chunk-000/file-000.parquet")
NAMES = ["shoulder", "elbow", "gripper"]
FEATURES = {
    "action": {"dtype": "float32", "shape": [3], "names": {"motors": NAMES}},
    "observation.pose": {"dtype": "float32", "shape": [7], "names": None},
    "observation.qpose": {"dtype": "float64", "shape": [8], "names": None},
}


def command(episode: int, frame: int) -> list[float]:
    return [episode + frame / 1000, frame**2, (frame % 5) / 4]


def pose(episode: int, frame: int) -> list[float]:
    return [
        0.01 * frame,
        0.02 * episode - 0.001 * frame**2,
        0.1,
        0.1 * frame - 3.0,  # passes pi
        0.3 * np.sin(frame),
        -0.2 * frame,
        frame % 2,
    ]


def quaternion_pose(episode: int, frame: int) -> list[float]:
    *position, roll, pitch, yaw, gripper = pose(episode, frame)
    (sr, sp, sy), (cr, cp, cy) = (f(np.array([roll, pitch, yaw]) / 2) for f in (np.sin, np.cos))
    x, y = sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy
    z, w = cr * cp * sy - sr * sp * cy, cr * cp * cy + sr * sp * sy
    return [*position, x, y, z, w, gripper]


COLUMNS: dict[str, Callable[[int, int], Any]] = {
    "action": command,
    "observation.pose": pose,
    "observation.qpose": quaternion_pose,
}


def dataset(version: str = "v3.0", columns: dict[str, Any] | None = None, **more: Any) -> Dataset:
    more = {"cameras": {TOP: "h264"}, "group": 3} | more
    return Dataset(
        Path("data"), version, numbers_of=COLUMNS | (columns or {}), features=FEATURES, **more
    )


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written() -> dict[tuple[int, int], np.ndarray]:
    """Return the actions of each window by episode and first frame; check their numbers."""
    found = {}
    for path in sorted(OUT.glob("*/videos/*.mp4")):
        first, last = map(int, path.stem.rpartition("_")[2].split("-"))
        rows = read_actions(path.parent.parent / "actions" / f"{path.stem}.safetensors")
        assert rows.dtype == np.float32
        assert len(rows) == last - first
        found[int(path.stem.split("_")[1]), first] = rows
    assert len(list(OUT.glob("*/actions/*"))) == len(found)
    return found


def statistics() -> ActionStatistics:
    return ActionStatistics.read(OUT / "actions.json")


@pytest.mark.parametrize(
    ("version", "codec"), [("v2.0", "h264"), ("v2.1", "h264"), ("v3.0", "h264"), ("v3.0", "image")]
)
def test_every_row_leads_to_the_next_frame_of_its_window(version: str, codec: str) -> None:
    data = dataset(version, cameras={TOP: codec}, numbers=(0, 1, 2))
    data.write()
    code, report = run("--actions", "action", "--val_episode_ids", "1")
    assert code == 0
    assert windows() == {0: 24, 1: 18, 2: 30}  # the pictures of the windows show these frames
    found = written()
    assert len(found) == 7
    for (episode, first), rows in found.items():
        for k, row in enumerate(rows):  # the command of frame first + k
            np.testing.assert_array_equal(row, np.float32(command(episode, first + k)))
    train = np.concatenate([rows for (episode, _), rows in found.items() if episode != 1])
    described = statistics()
    assert described.names == tuple(NAMES)
    assert (described.rows, described.fps, described.dimension) == (len(train), 10, 3)
    np.testing.assert_allclose(described.mean, train.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(described.std, train.std(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_array_equal([described.min, described.max], [train.min(0), train.max(0)])
    normal = normalise(train, described)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-6)
    assert report["counts"]["action_rows"] == len(train)


def test_values_are_chosen_by_name_and_states_are_those_of_the_later_frame() -> None:
    dataset().write()
    names = ["gripper", "observation.pose_1", "shoulder"]
    flags = ("--actions", "action", "observation.pose", "--action_names", *names)
    assert run(*flags)[0] == 0
    assert statistics().names == tuple(names)
    for (episode, first), rows in written().items():
        for k, row in enumerate(rows):
            now, later = command(episode, first + k), pose(episode, first + k + 1)
            np.testing.assert_array_equal(row, np.float32([now[2], later[1], now[0]]))


@pytest.mark.parametrize("column", ["observation.pose", "observation.qpose"])
def test_relative_poses_are_those_of_a_known_trajectory(column: str) -> None:
    dataset().write()
    flags = ("--actions", column, "--action_representation", "relative_pose")
    assert run(*flags, "--action_normalization", "published")[0] == 0
    for (episode, first), rows in written().items():
        poses = np.array([pose(episode, first + k) for k in range(len(rows) + 1)])
        expected = relative_poses(poses[:, :3], matrix_of(poses[:, 3:6]))
        np.testing.assert_allclose(rows[:, :6], expected, atol=2e-6)
        np.testing.assert_array_equal(rows[:, 6], poses[1:, 6])
    described = statistics()
    assert described.names == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert (described.representation, described.rows) == ("relative_pose", 65)
    assert described.offset == (0,) * 7
    assert described.scale == (20,) * 6 + (1,)


def stamps(kind: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in OUT.glob(f"*/{kind}/*")}


def test_other_columns_remake_the_actions_and_no_video() -> None:
    dataset().write()
    assert run("--actions", "action")[0] == 0
    videos, actions = stamps("videos"), stamps("actions")
    content = (OUT / "actions.json").read_bytes()
    assert run("--actions", "action")[0] == 0
    assert (stamps("videos"), stamps("actions")) == (videos, actions)
    assert (OUT / "actions.json").read_bytes() == content

    flags = ("--actions", "observation.pose", "--action_representation", "relative_pose")
    assert run(*flags)[0] == 0
    assert stamps("videos") == videos
    remade = stamps("actions")
    assert all(remade[path] > time for path, time in actions.items())
    assert statistics().scale != (20,) * 6 + (1,)
    assert run(*flags, "--action_normalization", "published")[0] == 0
    assert stamps("actions") == remade  # they are raw
    assert statistics().scale == (20,) * 6 + (1,)

    path = next(iter(remade))
    path.unlink()
    assert run(*flags)[0] == 0
    assert path.is_file()
    assert run()[0] == 0
    assert stamps("videos") == videos
    assert not stamps("actions")
    assert not (OUT / "actions.json").exists()


def test_shards_give_the_same_statistics_as_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (24, 18, 30, 9, 27)
    dataset(lengths=lengths, tasks=["t"] * 5).write()
    assert run("--actions", "action", "--val_episode_ids", "3")[0] == 0
    whole, rows = (OUT / "actions.json").read_bytes(), written()
    OUT.rename("alone")
    for shard in (2, 0, 1):
        flags = ("--shards", "3", "--shard", str(shard))
        code, report = run("--actions", "action", "--val_episode_ids", "3", *flags)
        assert code == 0
        assert bool(report) == (shard == 1)
    assert (OUT / "actions.json").read_bytes() == whole
    assert all((written()[key] == value).all() for key, value in rows.items())


def change_rows(change: Callable[[dict[str, list[Any]]], None]) -> None:
    columns = pq.read_table(DATA).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), DATA)


def put(row: int, value: Any, column: str = "action") -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[column][row] = value

    return change


BAD_ROWS = {  # by episode: the value of its second row, the column, and the reason
    1: ([0.0, float("nan"), 0.0], "action", "elbow is nan"),
    2: ([0.0, float("inf"), 0.0], "action", "elbow is inf"),
    3: ([0.0, 1e300, 0.0], "action", "elbow is too large"),
    4: (None, "action", "action has null, but 3 are expected"),
    5: ([0.0] * 4, "action", "action has 4 values, but 3 are expected"),
    6: ([0.0] * 100_000, "action", "action has 100000 values, but 3 are expected"),
    7: (7, "frame_index", "frame_index is 7 instead of 1"),
}


def bad_reasons(report: dict[str, Any], bad: dict[int, tuple[Any, str, str]]) -> None:
    """Check that exactly the ``bad`` episodes of 12 rows are left out, with file and row."""
    assert report["dropped_by_kind"] == {"episode": len(bad)}
    for episode, (_, _, reason) in bad.items():
        found = reasons(report)[f"episode_{episode:06d}"]
        place = f"data/chunk-000/file-000.parquet: row {12 * episode + 1}: "
        assert found.startswith(f"its actions: {place}{reason}")


def test_episodes_with_bad_rows_are_left_out_and_named() -> None:
    dataset(lengths=(12,) * 9, tasks=["t"] * 9, group=9).write()
    for episode, (value, column, _) in BAD_ROWS.items():
        change_rows(put(12 * episode + 1, value, column))
    code, report = run("--actions", "action")
    assert code == 0
    bad_reasons(report, BAD_ROWS)
    assert set(windows()) == {0, 8} == {episode for episode, _ in written()}
    assert report["counts"]["windows"] == 2
    videos = stamps("videos")
    assert run("--actions", "action")[0] == 0
    assert stamps("videos") == videos
    assert run()[0] == 0  # they are used without actions
    assert set(windows()) == set(range(9))


def test_poses_with_bad_quaternions_or_grippers_are_left_out() -> None:
    bad = {
        1: ([0, 0, 0, 0, 0, 0, 1.01, 0.0], "", "the quaternion qx, qy, qz, qw has the length 1.01"),
        2: ([0, 0, 0, 0, 0, 0, 1.0, 120.0], "", "the gripper is 120, out of the range from 0"),
    }
    nearly = [0, 0, 0, 0, 0, 0, 1.0008, 0.0]
    dataset(lengths=(12,) * 4, tasks=["t"] * 4, group=4).write()
    for episode, value in ((1, bad[1][0]), (2, bad[2][0]), (3, nearly)):
        change_rows(put(12 * episode + 1, value, "observation.qpose"))
    pose = ("--actions", "observation.qpose", "--action_representation", "relative_pose")
    code, report = run(*pose, "--action_normalization", "published")
    assert code == 0
    bad_reasons(report, bad)
    assert set(windows()) == {0, 3}


def test_rows_that_are_missing_leave_their_episode_out() -> None:
    dataset().write()
    table = pq.read_table(DATA)
    pq.write_table(pa.concat_tables([table.slice(0, 35), table.slice(42)]), DATA)
    code, report = run("--actions", "action")
    assert code == 0
    assert reasons(report) == {
        "episode_000001": "its actions: data/chunk-000/file-000.parquet: 11 rows for 18 frames of "
        "the video: fewer actions than frames, or more: they are 10 per second and end at 1.000 s, "
        "the video's 10 frames/s at 1.700 s"
    }


def test_one_row_less_than_frames_is_enough_for_commands_but_not_for_states() -> None:
    dataset().write()
    table = pq.read_table(DATA)
    pq.write_table(pa.concat_tables([table.slice(0, 41), table.slice(42)]), DATA)
    code, report = run("--actions", "action")
    assert (code, report["dropped"]) == (0, [])
    assert {episode for episode, _ in written()} == {0, 1, 2}
    code, report = run("--actions", "observation.pose")
    assert "17, but the video has 18 frames: fewer" in reasons(report)["episode_000001"]


def test_rows_of_another_rate_are_resampled_by_their_timestamps() -> None:
    """30 rows per second for 10 frames per second."""
    dataset("v2.1", lengths=(24, 18)[:1] * 2, tasks=("a", "b")).write()
    for episode in range(2):
        path = Path(f"data/data/chunk-000/episode_{episode:06d}.parquet")
        count = 72
        columns = {
            "action": [[episode, row / 3, 0.0] for row in range(count)],
            "frame_index": list(range(count)),
            "episode_index": [episode] * count,
            "timestamp": [row / 30 for row in range(count)],
        }
        pq.write_table(pa.table(columns), path)
    episodes = Path("data/meta/episodes.jsonl")
    episodes.write_text(episodes.read_text().replace('"length": 24', '"length": 72'))
    code, report = run("--actions", "action")
    assert code == 0
    assert "72 rows for 24 frames; actions are resampled" in notes(report)
    for (episode, first), rows in written().items():
        for k, row in enumerate(rows):
            np.testing.assert_allclose(row, [episode, first + k, 0], atol=1e-5)


def test_a_stale_file_number_is_found_out_by_the_rows() -> None:
    dataset().write()
    table = pq.read_table(DATA)
    pq.write_table(table.slice(0, 42), DATA)
    pq.write_table(table.slice(42), DATA.with_name("file-001.parquet"))
    assert pq.read_table(EPISODES)["data/file_index"].to_pylist() == [0, 0, 0]
    code, report = run("--actions", "action")
    assert (code, report["dropped"]) == (0, [])
    for (episode, first), rows in written().items():
        np.testing.assert_array_equal(rows[0], np.float32(command(episode, first)))


REFUSED = [
    (("--actions", "actoin"), "did you mean action? It has observation.state (2), action (3)"),
    (("--actions", "action", "--action_names", "gripperr"), "did you mean gripper? the columns"),
    (("--actions", "action", "--action_names", "wing"), "have shoulder, elbow, gripper"),
    (("--actions", "action", "action"), "action is given twice"),
    (("--action_names", "elbow"), "give the columns as --actions"),
    (("--actions", "action", "--action_normalization", "published"), "that of relative poses"),
    (("--actions", "action", "--action_representation", "relative_pose"), "7 values are needed"),
    (("--actions", "timestamp"), "has no such column of numbers"),
    (
        (
            *("--actions", "action", "observation.pose", "--action_representation"),
            *("relative_pose", "--action_names", "shoulder", "observation.pose_1"),
            *(f"observation.pose_{place}" for place in range(2, 7)),
        ),
        "which are no commands",
    ),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_wrong_flags_are_refused_with_what_there_is(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset().write()
    assert run(*flags)[0] == 2
    assert message in capsys.readouterr().err


def test_nothing_is_left_when_no_episode_has_usable_actions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing = {"action": lambda episode, frame: [float("nan")] * 3}
    dataset(columns=nothing).write()
    assert run("--actions", "action")[0] == 2
    assert "no window is left to train on" in capsys.readouterr().err


def test_a_run_that_was_killed_resumes() -> None:
    dataset().write()
    assert run("--actions", "action")[0] == 0
    expected = {path: path.read_bytes() for path in OUT.glob("*/actions/*")}
    record = OUT / ".sources/episode_000001.json"  # as before its actions were written
    value = json.loads(record.read_text()) | {"actions_by": "", "moments": None}
    record.write_text(json.dumps(value))
    for path in OUT.glob("*/actions/episode_000001_*"):
        path.unlink()
    (OUT / "actions.json").unlink()
    videos = stamps("videos")
    assert run("--actions", "action")[0] == 0
    assert {path: path.read_bytes() for path in OUT.glob("*/actions/*")} == expected
    assert stamps("videos") == videos
    assert statistics().rows == 65


def test_windows_of_an_earlier_version_get_actions_without_being_cut_again() -> None:
    dataset().write()
    assert run()[0] == 0
    for path in OUT.glob(".sources/*.json"):
        record = json.loads(path.read_text())
        for name in ("frames", "actions_by", "moments"):
            del record[name]
        record["clips"] = record["clips"][:1]  # the others were left out
        path.write_text(json.dumps(record))
    for path in OUT.glob("*/*/*_window_[12]_*"):
        path.unlink()
    videos = stamps("videos")
    assert run("--actions", "action")[0] == 0
    assert {path: time for path, time in stamps("videos").items() if path in videos} == videos
    assert set(windows()) == {0, 1, 2} == {episode for episode, _ in written()}
