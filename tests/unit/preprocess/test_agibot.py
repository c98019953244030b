"""Tests for the agibot command: the guide's folders and names, and reports of bad input.

The videos are 10 frames/s and tiny, so a window of 5 s has 50 frames.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from video2world_preprocess import agibot
from video2world_preprocess.dataset.held_out import is_held_out
from video2world_preprocess.video.reader import probe, read_frames
from video2world_preprocess.video.writer import write_video

CAMERA = "head_center_fisheye_color"
DATA = Path("datasets/agibot")
OUT = Path(f"datasets/agibot_{CAMERA}")
LOCAL = ("--prepare", "--local", "--min_frames", "30", "--workers", "1")


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty volume the working directory, as for a worker."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@cache
def clip_bytes(frames: int) -> bytes:
    """Return an mp4 whose frame number i has the gray level i."""
    path = Path(f"clip-{frames}.mp4")
    levels = np.arange(frames).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (frames, 32, 32, 3))
    write_video(path, pixels, 10)
    data = path.read_bytes()
    path.unlink()
    return data


def tar(
    name: str,
    episodes: dict[int, bytes],
    extra: tuple[tarfile.TarInfo, ...] = (),
    *,
    task: int = 327,
    other_camera: bytes = b"x",
) -> Path:
    path = DATA / "observations" / str(task) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for info in extra:
            archive.addfile(info)
        for episode, video in episodes.items():
            members = {
                "depth/0.png": b"png",
                f"videos/{CAMERA}.mp4": video,
                "videos/head_color.mp4": other_camera,
            }
            for member, data in members.items():
                info = tarfile.TarInfo(f"{episode}/{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def task_info(*episodes: int, task: int = 327) -> None:
    action = {"start_frame": 0, "end_frame": 150, "action_text": "Pick it up.", "skill": "Pick"}
    entries = [
        {
            "episode_id": e,
            "task_id": task,
            "init_scene_text": "A shelf.",
            "label_info": {"action_config": [action]},
        }
        for e in episodes
    ]
    path = DATA / "task_info" / f"task_{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))


def run(*flags: str) -> int:
    return agibot.main(list(flags))


def report() -> dict:
    return json.loads((OUT / "report.json").read_text())


def stems(split: str, kind: str = "videos") -> list[str]:
    return sorted(p.stem.replace("task_327_episode_", "") for p in (OUT / split / kind).iterdir())


def dropped() -> list[tuple[str, str]]:
    return [(p["kind"], p["item"].rsplit("/", 1)[-1]) for p in report()["dropped"]]


TWO = ["101_window_0_frame_0-49", "101_window_1_frame_50-119"]
VAL = ["102_window_0_frame_0-49", "102_window_1_frame_50-99"]


def prepare_two() -> None:
    tar("101-102.tar", {101: clip_bytes(120), 102: clip_bytes(100)})
    task_info(101, 102)
    assert run(*LOCAL, "--val_episode_ids", "102") == 0


def test_prepare_makes_the_guides_folders_with_captions_for_val_too() -> None:
    prepare_two()
    assert stems("train") == stems("train", "metas") == TWO
    assert stems("val") == stems("val", "metas") == VAL
    prefix = f"{OUT}/train/metas/task_327_episode_"
    assert Path(f"{prefix}{TWO[0]}.txt").read_text() == "A shelf. Pick it up."
    assert Path(f"{prefix}{TWO[1]}.txt").read_text() == "A shelf."
    window = OUT / "train" / "videos" / f"task_327_episode_{TWO[1]}.mp4"
    assert (probe(window).frames, probe(window).fps) == (70, 10)
    levels = read_frames(window).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, np.arange(50, 120), atol=2)
    counts = report()["counts"]
    assert counts["episodes"] == 2
    assert (counts["windows"], counts["train_windows"], counts["val_windows"]) == (4, 2, 2)
    assert (counts["frames"], counts["seconds"]) == (220, 22.0)
    assert report()["dropped"] == []
    left = sorted(str(p) for p in DATA.rglob("*.*") if p.is_file() and not p.name.startswith("."))
    assert left == [
        f"{DATA}/observations/327/101-102.tar",  # the user's: not deleted
        f"{DATA}/task_info/task_327.json",
    ]


def written() -> dict[Path, int]:
    files = (
        p for p in OUT.rglob("*.*") if not p.relative_to(OUT).parts[0].startswith((".", "rep"))
    )
    return {p: p.stat().st_mtime_ns for p in files}


def test_a_second_run_restores_only_what_is_missing() -> None:
    prepare_two()
    before = written()
    victim = OUT / "val" / "videos" / f"task_327_episode_{VAL[0]}.mp4"
    content = victim.read_bytes()
    victim.write_bytes(content[:100])  # damaged by another program
    assert run(*LOCAL, "--val_episode_ids", "102") == 0
    after = written()
    assert {p for p in before if before[p] != after[p]} == {victim}
    assert victim.read_bytes() == content
    assert report()["counts"]["new_windows"] == 1


@pytest.mark.parametrize("listed", [True, False])
def test_a_share_of_the_episodes_is_held_out_by_their_numbers(listed: bool) -> None:
    numbers = range(101, 200)
    chosen = [number for number in numbers if is_held_out(str(number), 40)][:2]
    episodes = chosen + [number for number in numbers if not is_held_out(str(number), 40)][:2]
    tar("1.tar", {episode: clip_bytes(60) for episode in episodes})
    if listed:
        task_info(*episodes)
        flags = []
    else:
        lines = [
            {
                "video_clip": f"task_327_episode_{episode}_window_0_frame_0-59",
                "task_id": 327,
                "episode_id": episode,
                "start_frame": 0,
                "end_frame": 59,
                "caption": "x",
            }
            for episode in episodes
        ]
        Path("captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        flags = ["--caption_file", "captions.jsonl"]
    assert run(*LOCAL, *flags, "--val_percent", "40") == 0
    held_out = {stem.partition("_")[0] for stem in stems("val")}
    trained = {stem.partition("_")[0] for stem in stems("train")}
    assert held_out == set(map(str, chosen))
    assert trained == set(map(str, episodes)) - held_out


def test_changed_windowing_removes_the_stale_windows_but_no_foreign_file() -> None:
    prepare_two()
    foreign = OUT / "train" / "videos" / "mine.mp4"
    foreign.write_bytes(b"mine")
    stale = OUT / "train" / "t5_xxl" / f"task_327_episode_{TWO[0]}.pickle"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    flags = ("--window-size", "4", "--min-last-window", "4.5", "--val_episode_ids", "101")
    assert run(*LOCAL, *flags) == 0
    assert (
        stems("val")
        == stems("val", "metas")
        == [
            "101_window_0_frame_0-39",
            "101_window_1_frame_40-79",
            "101_window_2_frame_80-119",
        ]
    )
    assert stems("train") == [
        "102_window_0_frame_0-39",
        "102_window_1_frame_40-99",
        "mine",
    ]
    assert foreign.read_bytes() == b"mine"
    assert not stale.exists()
    assert report()["counts"]["removed_windows"] == 4
    assert report()["notes"][0]["reason"].startswith("frames 80-99 (20 of at least 30) merged")


def test_changed_caption_invalidates_its_embedding_only() -> None:
    prepare_two()
    pickles = [OUT / "train" / "t5_xxl" / f"task_327_episode_{s}.pickle" for s in TWO]
    pickles[0].parent.mkdir()
    for path in pickles:
        path.write_bytes(b"x")
    info = DATA / "task_info" / "task_327.json"
    info.write_text(info.read_text().replace("Pick it up", "Put it down"))
    assert run(*LOCAL, "--val_episode_ids", "102") == 0
    assert [p.exists() for p in pickles] == [False, True]
    assert report()["counts"]["new_windows"] == 0


def content() -> dict[str, bytes]:
    files = (p for split in ("train", "val") for p in (OUT / split).glob("*/[!.]*"))
    return {str(p.relative_to(OUT)): p.read_bytes() for p in files}


def stage(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """Run as a stage: once for equal flags, until an input changes."""
    monkeypatch.setenv("V2W_STAGE", "dataset")
    monkeypatch.setenv("V2W_RESOURCE", "run")
    monkeypatch.setenv("V2W_INPUTS_HASH", str(zlib.crc32(repr(flags).encode())))
    return run(*LOCAL, "--dataset_dir", str(OUT), *flags)


@pytest.mark.parametrize(
    "other",
    [
        ("--val_episode_ids", "101"),
        ("--window-size", "4"),
        ("--camera", "head_color"),
        ("--task_ids", "327", "400"),
        ("--caption_file", "words.jsonl"),
        ("--data_dir", "more"),
    ],
    ids=lambda flags: flags[0],
)
def test_changing_settings_and_back_restores_the_first_result(
    other: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    for data, task in ((DATA, 327), (DATA, 400), (Path("more"), 327)):
        monkeypatch.setitem(globals(), "DATA", data)
        videos = {101: clip_bytes(110 if data == Path("more") else 120), 102: clip_bytes(100)}
        tar("1.tar", videos, task=task, other_camera=clip_bytes(90))
        task_info(101, 102, task=task)
    line = {
        "video_clip": "x",
        "task_id": 327,
        "episode_id": 101,
        "start_frame": 0,
        "end_frame": 120,
        "caption": "words",
    }
    Path("words.jsonl").write_text(json.dumps(line))
    assert stage(monkeypatch) == 0
    first = content()
    assert stage(monkeypatch) == 0
    assert "dataset: nothing to do" in capfd.readouterr().out
    assert stage(monkeypatch, *other) == 0
    changed = content()
    assert changed != first
    assert stage(monkeypatch) == 0
    said = capfd.readouterr().out
    assert f"dataset: run again: {OUT} was made with other settings since" in said
    assert content() == first
    assert stage(monkeypatch, *other) == 0
    assert content() == changed


def test_added_archives_and_corrected_captions_are_seen(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    tar("1.tar", {101: clip_bytes(120)})
    task_info(101)
    assert stage(monkeypatch) == 0
    tar("2.tar", {102: clip_bytes(100)})
    task_info(101, 102)
    assert stage(monkeypatch) == 0
    said = capfd.readouterr().out
    assert "run again: 1 new archive: 2.tar; 1 changed file: task_327.json" in said
    assert {stem[:3] for stem in stems("train")} == {"101", "102"}
    (DATA / "observations/327/2.tar").unlink()
    assert stage(monkeypatch) == 0
    assert {stem[:3] for stem in stems("train")} == {"101"}


def test_caption_file_is_preferred_and_windows_without_a_line_are_named() -> None:
    tar("a.tar", {101: clip_bytes(120)})
    line = {
        "video_clip": f"task_327_episode_{TWO[0]}",
        "task_id": 327,
        "episode_id": 101,
        "start_frame": 0,
        "end_frame": 49,
        "caption": "From the file.",
    }
    Path(f"datasets/agibot_{CAMERA}.jsonl").write_text(json.dumps(line) + "\nbroken\n")
    assert run(*LOCAL) == 0
    assert stems("train") == TWO[:1]
    assert next((OUT / "train" / "metas").iterdir()).read_text() == "From the file."
    assert dropped() == [
        ("caption", f"agibot_{CAMERA}.jsonl:2"),
        ("window", f"task_327_episode_{TWO[1]}"),
    ]


def test_every_bad_episode_is_named_and_the_good_ones_kept(capfd: pytest.CaptureFixture) -> None:
    link = tarfile.TarInfo(f"110/videos/{CAMERA}.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    escape = tarfile.TarInfo(f"../111/videos/{CAMERA}.mp4")
    good = clip_bytes(120)
    tar(
        "a.tar",
        {101: good, 102: b"", 103: good[:-700], 104: clip_bytes(20), 105: good},
        (link, escape),
    )
    corrupt = tar("b.tar", {106: good, 107: good})
    corrupt.write_bytes(corrupt.read_bytes()[: len(good) + 8 * 512])
    task_info(101, 102, 103, 104, 106, 107)
    assert run(*LOCAL) == 0
    assert sorted({s.split("_")[0] for s in stems("train")}) == ["101", "106"]
    reasons = [(p["kind"], p["item"].rsplit("/", 1)[-1], p["reason"]) for p in report()["dropped"]]
    expected = [
        ("archive member", f"{CAMERA}.mp4", "a link"),
        ("archive member", f"{CAMERA}.mp4", ".."),
        ("archive", "b.tar", "truncated"),
        ("episode", "task_327_episode_105", "task_327.json does not have it"),
        ("episode", "task_327_episode_102", "empty"),
        ("episode", "task_327_episode_103", "truncated"),
        ("episode", "task_327_episode_104", "shorter than one window"),
    ]
    for (kind, item, reason), (kind_, item_, words) in zip(reasons, expected, strict=True):
        assert (kind, item) == (kind_, item_)
        assert words in reason
    assert report()["dropped_by_kind"] == {"archive": 1, "archive member": 2, "episode": 4}
    log = capfd.readouterr().out
    assert all(f"task_327_episode_{e}" in log for e in (102, 103, 104, 105))


def test_an_episode_without_the_camera_is_named(capfd: pytest.CaptureFixture) -> None:
    other = tarfile.TarInfo("103/videos/hand_left_color.mp4")
    tar("a.tar", {101: clip_bytes(120), 102: clip_bytes(100)}, (other,))
    task_info(101, 102, 103)
    assert run(*LOCAL) == 0
    assert dropped() == [("episode", "task_327_episode_103")]
    assert f"no video of camera {CAMERA} in observations/327/a.tar" in str(report()["dropped"])
    assert run(*LOCAL, "--val_episode_ids", "103") == 2
    error = capfd.readouterr().err
    assert "--val_episode_ids 103: not among the episodes, which are 101, 102; 103: no vid" in error
    assert run(*LOCAL, "--camera", "nose") == 2
    error = capfd.readouterr().err
    assert f"check --camera (there are hand_left_color, {CAMERA}, head_color)" in error


def test_a_null_in_task_info_affects_only_its_action() -> None:
    tar("a.tar", {101: clip_bytes(120)})
    task_info(101)
    info = DATA / "task_info" / "task_327.json"
    info.write_text(info.read_text().replace('"start_frame": 0', '"start_frame": null'))
    assert run(*LOCAL) == 0
    assert stems("train") == TWO
    assert {p.read_text() for p in (OUT / "train/metas").iterdir()} == {"A shelf."}
    assert dropped() == [("caption part", "task_327.json[0]")]
    assert "start_frame is null" in str(report()["dropped"])


def test_a_truncated_video_keeps_its_complete_windows() -> None:
    # moov first, and the last frames are cut off, as in an interrupted copy
    import av

    Path("slow.mp4").write_bytes(clip_bytes(200))
    with (
        av.open("slow.mp4") as source,
        av.open("fast.mp4", "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = Path("fast.mp4").read_bytes()
    body = data.index(b"mdat")
    tar("a.tar", {101: clip_bytes(120), 102: data[: body + (len(data) - body) * 6 // 10]})
    task_info(101, 102)
    assert run(*LOCAL) == 0
    kept = [s for s in stems("train") if s.startswith("102")]
    lost = [item for kind, item in dropped() if kind == "window"]
    # how far decoding gets depends on the codec; kept and lost windows add up to all
    assert kept[0] == "102_window_0_frame_0-49"
    assert lost[-1] == "task_327_episode_102_window_3_frame_150-199"
    assert len(kept) + len(lost) == 4
    assert stems("train", "metas") == stems("train")


def test_nothing_good_is_exit_2(capfd: pytest.CaptureFixture) -> None:
    tar("a.tar", {101: b"", 102: clip_bytes(20)})
    task_info(101, 102)
    assert run(*LOCAL) == 2
    assert "no window is left to train on (2 items dropped" in capfd.readouterr().err
    assert report()["counts"]["windows"] == 0


def test_empty_train_set_and_unknown_val_episode(capfd: pytest.CaptureFixture) -> None:
    tar("a.tar", {101: clip_bytes(120), 102: clip_bytes(100)})
    task_info(101, 102)
    assert run(*LOCAL, "--val_episode_ids", "101", "999") == 2
    assert "--val_episode_ids 999: not among the episodes, which are 101, 102" in (
        capfd.readouterr().err
    )
    assert run(*LOCAL, "--val_episode_ids", "101", "102") == 2
    assert "no window is left to train on" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--camera", "nose"), "check --camera"),
        (("--camera", "../x"), "--camera ../x"),
        (("--task_ids", "5"), "--task_ids 5"),
        (("--window-size", "0"), "--window-size"),
        (("--min_frames", "0"), "--min_frames"),
        (("--caption_file", "none.jsonl"), "none.jsonl"),
    ],
)
def test_flags_that_cannot_work(
    flags: tuple[str, ...], words: str, capfd: pytest.CaptureFixture
) -> None:
    tar("a.tar", {101: clip_bytes(120)})
    task_info(101)
    assert run("--prepare", "--local", *flags) == 2
    assert words in capfd.readouterr().err


def test_missing_task_info(capfd: pytest.CaptureFixture) -> None:
    tar("a.tar", {101: clip_bytes(120)})
    assert run(*LOCAL) == 2
    assert "task_327.json is missing" in capfd.readouterr().err


def test_delete_only_removes_what_the_camera_does_not_need() -> None:
    outside = Path("outside")
    outside.mkdir()
    (outside / "precious").touch()
    episode = DATA / "observations" / "327" / "101"
    for name in (
        f"videos/{CAMERA}.mp4",
        "videos/head_color.mp4",
        "videos/notes.txt",
        "depth/0.png",
        "readme",
    ):
        (episode / name).parent.mkdir(parents=True, exist_ok=True)
        (episode / name).touch()
    (episode / "linked").symlink_to(outside.resolve())
    assert run("--delete-only") == 0
    left = sorted(str(p.relative_to(episode)) for p in episode.rglob("*") if p.is_file())
    assert left == ["readme", f"videos/{CAMERA}.mp4", "videos/notes.txt"]
    assert not (episode / "linked").exists()
    assert (outside / "precious").exists()


def test_a_full_volume_keeps_finished_windows_and_the_next_run_resumes(volume: Path) -> None:
    """A write fails in the kernel because of a file size limit."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (120, 96, 96, 3), dtype=np.uint8)
    write_video("noise.mp4", noise, 10)
    tar("a.tar", {101: clip_bytes(120), 102: Path("noise.mp4").read_bytes()})
    task_info(101, 102)
    assert run("--local", "--keep_tar") == 0
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from video2world_preprocess import agibot; sys.exit(agibot.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "--split-only", "--min_frames", "30"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "102_window_0" in result.stderr
    assert "Traceback" not in result.stderr
    assert stems("train") == TWO
    assert run("--split-only", "--min_frames", "30") == 0
    assert report()["counts"]["windows"] == 4
    assert report()["counts"]["new_windows"] == 2


def test_full_disk_says_so(
    volume: Path, small_disk: Callable[[int], Path], capfd: pytest.CaptureFixture
) -> None:
    disk = small_disk(300)
    noise = np.random.default_rng(0).integers(0, 255, (120, 96, 96, 3), dtype=np.uint8)
    write_video("noise.mp4", noise, 10)
    tar("a.tar", {101: clip_bytes(120), 102: Path("noise.mp4").read_bytes()})
    task_info(101, 102)
    assert run(*LOCAL, "--dataset_dir", str(disk / "set")) == 1
    error = capfd.readouterr().err
    assert "the volume is full while writing" in error
    assert "task_327_episode_102" in error
    kept = sorted(p.name for p in (disk / "set" / "train" / "videos").iterdir())
    assert kept == [f"task_327_episode_{s}.mp4" for s in TWO]
