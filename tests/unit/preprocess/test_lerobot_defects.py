"""Tests that the lerobot command names every defect of a dataset, and keeps all that is good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_datasets import TOP, Dataset
from lerobot_runs import EPISODES, change_episodes, notes, reasons, run, windows
from video2world_preprocess.dataset import parquet_columns


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty volume the working directory, as for a worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVT_LOG", "1")
    return tmp_path


def change_info(**values: Any) -> None:
    path = Path("data/meta/info.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def video(episode: int) -> Path:
    return Path(f"data/videos/chunk-000/{TOP}/episode_{episode:06d}.mp4")


def v3_video(file: int) -> Path:
    return Path(f"data/videos/{TOP}/chunk-000/file-{file:03d}.mp4")


def lengthen(name: str, by: int) -> Callable[[], None]:
    """Return a change of the length of episode 1 in the metadata."""

    def change() -> None:
        if name == "v3.0":
            change_episodes(lambda rows: rows | {"length": [24, 18 + by, 30]})
            return
        path = Path("data/meta/episodes.jsonl")
        path.write_text(path.read_text().replace('"length": 18', f'"length": {18 + by}'))

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FAULTY: list[tuple[str, str, Callable[[], Any], str]] = [
    ("v2.1", "missing video", lambda: video(1).unlink(), "episode_000001.mp4 is missing"),
    ("v2.0", "empty video", lambda: video(1).write_bytes(b""), "the file is empty"),
    ("v2.0", "pointer", lambda: video(1).write_text(POINTER), "a pointer of Git LFS"),
    (
        "v2.1",
        "truncated video",
        lambda: video(1).write_bytes(video(1).read_bytes()[:-300]),
        "the video is truncated or corrupt",
    ),
    ("v2.1", "too few frames", lengthen("v2.1", 3), "21 rows, but 18 frames"),
    ("v3.0", "too few frames", lengthen("v3.0", 3), "21 rows, but 18 frames"),
    ("v3.0", "too many frames", lengthen("v3.0", -3), "15 rows, but 18 frames"),
    (
        "v3.0",
        "NaN as a length",
        lambda: change_episodes(lambda rows: rows | {"length": [24.0, float("nan"), 30.0]}),
        "length is nan, not a valid number",
    ),
    (
        "v3.0",
        "NaN as a time",
        lambda: change_episodes(
            lambda rows: rows | {f"videos/{TOP}/from_timestamp": [0.0, float("nan"), 0.0]}
        ),
        "from_timestamp is nan, not a valid number",
    ),
    (
        "v3.0",
        "a file that does not exist",
        lambda: change_episodes(lambda rows: rows | {f"videos/{TOP}/file_index": [0, 5, 1]}),
        "file-005.mp4 is missing",
    ),
    (
        "v3.0",
        "a time beyond the end",
        lambda: change_episodes(
            lambda rows: (
                rows | {f"videos/{TOP}/from_timestamp": [0.0, 99.0, 0.0], "length": [24, 19, 30]}
            )
        ),
        "the file has no frame for it",
    ),
]


@pytest.mark.parametrize(
    ("version", "change", "reason"),
    [(version, change, reason) for version, _, change, reason in FAULTY],
    ids=[f"{version} {name}" for version, name, *_ in FAULTY],
)
def test_a_defect_costs_its_episode(version: str, change: Callable[[], Any], reason: str) -> None:
    Dataset(Path("data"), version).write()
    change()
    code, report = run()
    assert code == 0
    assert windows() == {0: 24, 2: 30}
    assert list(reasons(report)) == ["episode_000001"]
    assert reason in reasons(report)["episode_000001"]


def damage_a_packet() -> None:
    path = v3_video(0)
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[36]
    data = bytearray(path.read_bytes())
    data[entry.pos + 5 : entry.pos + entry.size] = bytes(entry.size - 5)
    path.write_bytes(data)


def test_a_damaged_packet_costs_its_window() -> None:
    Dataset(Path("data")).write()
    damage_a_packet()
    code, report = run()
    assert code == 0
    assert windows() == {0: 24, 1: 10, 2: 30}
    reason = reasons(report)["episode_000001_window_1_frame_10-17"]
    assert "the video is truncated or corrupt: frame" in reason


HARMLESS: list[tuple[str, str, Callable[[], Any], str]] = [
    (
        "v3.0",
        "one frame too few",
        lengthen("v3.0", 1),
        "19 rows, but 18 frames; the first 18 are used",
    ),
    (
        "v3.0",
        "time off by a frame",
        lambda: change_episodes(
            lambda rows: rows | {f"videos/{TOP}/from_timestamp": [0.0, 2.5, 0.0]}
        ),
        "its from_timestamp is 0.100 s off the frame count",
    ),
    (
        "v3.0",
        "times of a merged dataset",
        lambda: change_episodes(
            lambda rows: rows | {f"videos/{TOP}/from_timestamp": [50.0, 3.0, 0.0]}
        ),
        "its from_timestamp is 50.000 s off the frame count",
    ),
    (
        "v3.0",
        "a version that lies",
        lambda: change_info(
            codebase_version="v2.1",
            video_path="videos/chunk-{episode_chunk:03d}/{video_key}/"
            "episode_{episode_index:06d}.mp4",
        ),
        "says v2.1, but the files are those of v3.0",
    ),
    ("v2.0", "v2.0 labelled v3.0", lambda: change_info(codebase_version="v3.0"), "says v3.0"),
    (
        "v2.0",
        "field of v3 in a template of v2",
        lambda: change_info(
            video_path="videos/chunk-{chunk_index:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        ),
        "",
    ),
    ("v3.0", "absolute path", lambda: change_info(video_path="/etc/{video_key}"), "leads out of"),
    ("v2.1", "path to above", lambda: change_info(video_path="../{video_key}"), "leads out of"),
    (
        "v3.0",
        "format string",
        lambda: change_info(video_path="{video_key.__class__}"),
        "is not a path with fields",
    ),
    ("v3.0", "no paths", lambda: change_info(video_path=None, data_path=None), ""),
    ("v3.0", "fps as a float", lambda: change_info(fps=10.0), ""),
    (
        "v3.0",
        "wrong fps",
        lambda: change_info(fps=20),
        "meta/info.json says 20 frames/s, but the video has 10, which are used",
    ),
    ("v2.1", "fps is missing", lambda: change_info(fps="NaN"), "the files' own rate is used"),
    ("v3.0", "no features", lambda: change_info(features=None), "cameras are taken from"),
    ("v2.0", "wrong chunks_size", lambda: change_info(chunks_size=1), ""),
    ("v2.0", "wrong count", lambda: change_info(total_episodes=100), "says 100 episodes, but 3"),
    (
        "v2.1",
        "byte order mark, CRLF and a blank line",
        lambda: Path("data/meta/episodes.jsonl").write_bytes(
            b"\xef\xbb\xbf"
            + Path("data/meta/episodes.jsonl").read_bytes().replace(b"\n", b"\r\n")
            + b"\r\n"
        ),
        "",
    ),
    ("v3.0", "no tasks", lambda: Path("data/meta/tasks.parquet").unlink(), ""),
]


@pytest.mark.parametrize(
    ("version", "change", "note"),
    [(version, change, note) for version, _, change, note in HARMLESS],
    ids=[f"{version} {name}" for version, name, *_ in HARMLESS],
)
def test_a_harmless_defect_is_noted(version: str, change: Callable[[], Any], note: str) -> None:
    Dataset(Path("data"), version).write()
    change()
    code, report = run()
    assert (code, report["dropped"]) == (0, [])
    assert windows() == {0: 24, 1: 18, 2: 30}
    assert note in notes(report)
    assert bool(notes(report)) == bool(note)


def test_times_may_drift() -> None:
    Dataset(Path("data"), drift=0.004).write()
    code, report = run()
    assert (code, report["dropped"], report["notes"]) == (0, [], [])
    assert windows() == {0: 24, 1: 18, 2: 30}


def test_deleted_episodes_leave_gaps() -> None:
    Dataset(Path("data"), "v2.1", numbers=(0, 7, 120), chunks_size=50).write()
    assert run()[0] == 0
    assert windows() == {0: 24, 7: 18, 120: 30}


def test_the_videos_decide_between_mixed_versions() -> None:
    Dataset(Path("data"), "v2.1").write()
    Dataset(Path("other"), "v3.0").write()
    shutil.copytree("other/meta/episodes", "data/meta/episodes")
    code, report = run()
    assert (code, windows()) == (0, {0: 24, 1: 18, 2: 30})
    assert report["counts"]["format"] == "v2.1"
    assert "has the files of v2 and v3.0; those of v2.1 are used" in notes(report)
    shutil.copytree("other/videos", "data/videos", dirs_exist_ok=True)
    code, report = run()
    assert (code, windows()) == (0, {0: 24, 1: 18, 2: 30})
    assert report["counts"]["format"] == "v3.0"


def test_rows_with_pictures_are_checked() -> None:
    dataset = Dataset(Path("data"), cameras={TOP: "image"})
    dataset.write()
    path = Path("data/data/chunk-000/file-000.parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 42), Path("data/data/chunk-000/file-001.parquet"))
    rows = table.to_pydict()
    rows[TOP][30] = {"bytes": b"no picture", "path": None}
    pq.write_table(pa.table(rows).slice(0, 42), path)
    code, report = run()
    assert code == 0
    assert windows() == {0: 24, 1: 8}
    assert "has no rows of it, although the metadata say so" in reasons(report)["episode_000002"]
    lost = reasons(report)["episode_000001_window_0_frame_0-9"]
    assert "row 30 cannot be read" in lost


@pytest.mark.parametrize(
    ("name", "reason"),
    [("../../secret.png", "leads out of the dataset's folder"), ("images/x.png", "no file")],
)
def test_a_path_to_a_picture_stays_inside(name: str, reason: str) -> None:
    Dataset(Path("data"), "v2.0", cameras={TOP: "image"}).write()
    path = Path("data/data/chunk-000/episode_000001.parquet")
    rows = pq.read_table(path).to_pydict()
    rows[TOP][3] = {"bytes": None, "path": name}
    pq.write_table(pa.table(rows), path)
    code, report = run()
    assert (code, windows()) == (0, {0: 24, 1: 8, 2: 30})
    assert reason in reasons(report)["episode_000001_window_0_frame_0-9"]


def hostile_zeros() -> None:
    """Write 4 MB as a small file."""
    tasks = [["x" * 4_000_000], ["a"], ["a"]]
    change_episodes(lambda rows: rows | {"tasks": tasks})


def hostile_footer() -> None:
    EPISODES.write_bytes(b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hostile_zeros, "bytes in one row group, at most"),
        (hostile_footer, "not a Parquet file, or truncated"),
        (lambda: EPISODES.write_text(POINTER), "a pointer of Git LFS"),
        (lambda: EPISODES.write_bytes(b""), "the file is empty"),
        (lambda: EPISODES.write_bytes(EPISODES.read_bytes()[:-20]), "truncated"),
        (
            lambda: EPISODES.write_bytes(
                EPISODES.read_bytes()[:-200] + b"\xff" * 150 + EPISODES.read_bytes()[-50:]
            ),
            "the Parquet file is damaged",
        ),
        (
            lambda: change_episodes(lambda rows: {"episode_index": rows["episode_index"]}),
            f"the column videos/{TOP}/chunk_index",
        ),
        (lambda: Path("data/meta/info.json").write_text("[1"), "is not valid JSON"),
        (lambda: Path("data/meta/info.json").write_text("[1]"), "not a JSON object"),
        (lambda: Path("data/meta/info.json").write_text(POINTER), "a pointer of Git LFS"),
        (lambda: shutil.rmtree("data/meta/episodes"), "the dataset lists no episodes"),
        (lambda: shutil.rmtree("data/videos"), "no episode of camera"),
        (lambda: shutil.rmtree("data/meta"), "there is no meta/info.json, so it is not a LeRobot"),
    ],
)
def test_an_unusable_dataset_is_refused(
    change: Callable[[], Any],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet_columns, "LARGEST_GROUP", 2_000_000)
    Dataset(Path("data")).write()
    change()
    code, _ = run()
    error = capsys.readouterr().err
    assert code == 2
    assert reason in error
    assert "Traceback" not in error


def test_one_damaged_file_of_episodes_costs_its_episodes() -> None:
    Dataset(Path("data")).write()
    EPISODES.with_name("file-001.parquet").write_bytes(b"PAR1" + bytes(20))
    code, report = run()
    assert (code, windows()) == (0, {0: 24, 1: 18, 2: 30})
    assert "not a Parquet file" in reasons(report)["file-001.parquet"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--episode_ids", "x"), "--episode_ids x: give episode numbers, or ranges"),
        (("--episode_ids", "3-1"), "give episode numbers, or ranges"),
        (("--episode_ids", "7"), "--episode_ids 7: not among the episodes, which are 0, 1, 2"),
        (("--val_episode_ids", "7-9"), "--val_episode_ids 7-9: not among the episodes"),
        (("--val_episode_ids", "0-2"), "no window is left to train on"),
        (("--caption", "File"), "--caption File: give the file as --caption_file"),
        (("--caption", "File", "--caption_file", "no"), "there is no such file"),
        (("--subfolder", "../x"), "give a folder inside the dataset's repository"),
        (("--subfolder", "x"), "give one as dataset.lerobot.subfolder (--subfolder): ."),
    ],
)
def test_invalid_flags(
    flags: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Dataset(Path("data")).write()
    assert run(*flags)[0] == 2
    assert reason in capsys.readouterr().err


def test_links_do_not_lead_out_of_the_volume(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset(Path("data"), "v2.0").write()
    outside = tmp_path_factory.mktemp("outside") / "x.mp4"
    video(1).rename(outside)
    video(1).symlink_to(outside)
    monkeypatch.setenv("V2W_STAGE", "dataset")
    code, report = run()
    assert (code, windows()) == (0, {0: 24, 2: 30})
    assert "a link leads out of the volume" in reasons(report)["episode_000001"]
