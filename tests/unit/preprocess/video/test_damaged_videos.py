"""Tests that of damaged videos all frames that ffmpeg shows keep their numbers."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from peak_memory import PEAK_KIB
from video2world_common.exit_codes import UserError
from video2world_preprocess import videos
from video2world_preprocess.stage_report import Report, write_report
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.video.cut import cut
from video2world_preprocess.video.frame_survey import Survey, survey
from video2world_preprocess.video.reader import read_fitted, read_frames
from video2world_preprocess.video.resize import fit
from video2world_preprocess.video.writer import write_video
from video2world_trainer.training.dataset import VideoDataset

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
COUNT, KEYS = 40, 10  # frames, and frames from one key frame to the next
QUIET = ["-x265-params", f"log-level=0:keyint={KEYS}:min-keyint={KEYS}:bframes=2:open-gop=0"]
KINDS = {
    "h264.mp4": ["-c:v", "libx264", "-g", KEYS, "-bf", 2, "-sc_threshold", 0],
    "h264.mkv": ["-c:v", "libx264", "-g", KEYS, "-bf", 2, "-sc_threshold", 0],
    "h264.avi": ["-c:v", "libx264", "-g", KEYS, "-bf", 0, "-sc_threshold", 0],
    "h265.mp4": ["-c:v", "libx265", *QUIET],
    "mpeg4.mp4": ["-c:v", "mpeg4", "-g", KEYS, "-bf", 2],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", KEYS, "-bf", 0],
    "vp9.mp4": ["-c:v", "libvpx-vp9", "-g", KEYS, "-lag-in-frames", 0],
    "av1.mp4": ["-c:v", "libsvtav1", "-g", KEYS],
    "mjpeg.avi": ["-c:v", "mjpeg"],
    "prores.mov": ["-c:v", "prores_ks"],
    "png.mov": ["-c:v", "png", "-pix_fmt", "rgb24"],
    "ffv1.mkv": ["-c:v", "ffv1", "-g", KEYS, "-level", 3, "-slices", 4, "-slicecrc", 1],
}


def ffmpeg(*arguments: object) -> bytes:
    command = [FFMPEG, "-y", "-v", "quiet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def texture(count: int = COUNT) -> np.ndarray:
    """Draw a moving picture, so that all frames differ."""
    base = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    large = base.repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(large, 2 * number, 1) for number in range(count)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for pixels in texture():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def encode(source: Path, target: Path, *more: object) -> Path:
    arguments = KINDS[target.name]
    pixels = [] if "-pix_fmt" in arguments else ["-pix_fmt", "yuv420p"]
    pixels = ["-pix_fmt", "yuv422p10le"] if target.name == "prores.mov" else pixels
    ffmpeg("-i", source, *pixels, *arguments, *more, target)
    return target


def damage(path: Path, number: int, change: Callable[[bytes], bytes]) -> tuple[Path, int, range]:
    """A copy whose packet ``number``, counted as they are stored, is changed.

    Returns with it the number of the packet's frame, and those of its group of pictures.
    """
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content, data = bytes(packets[number]), path.read_bytes()
    place = data.index(content, packets[number].pos)
    target = path.with_name(f"{number}-{path.name}")
    target.write_bytes(data[:place] + change(content) + data[place + len(content) :])
    times = [packet.pts if packet.pts is not None else packet.dts for packet in packets]
    order = sorted(times)
    keys = [n for n, packet in enumerate(packets) if packet.is_keyframe]
    first = max(key for key in keys if key <= number)
    after = min((key for key in keys if key > number), default=COUNT)
    begin = min(order.index(time) for time in times[first:after])
    # what is decoded after the next key frame, but shown before it, depends on both
    end = order.index(times[after]) if after < COUNT else COUNT
    return target, order.index(times[number]), range(begin, end)


def clean_runs(known: Survey) -> list[tuple[int, int]]:
    """Return the longest runs of usable frames, as first frame and frame after the last."""
    good = [number for number in range(known.info.frames) if number not in known.faults]
    runs = itertools.groupby(enumerate(good), key=lambda item: item[1] - item[0])
    spans = [[number for _, number in run] for _, run in runs]
    return [(span[0], span[-1] + 1) for span in spans]


def shown_by_ffmpeg(path: Path) -> int:
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-")
    return len(raw) // (64 * 48)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "ffv1" not in kind])
def test_an_unreadable_packet_affects_only_dependent_frames(
    tmp_path: Path, source: Path, kind: str
) -> None:
    whole = encode(source, tmp_path / kind)
    original = read_frames(whole)
    assert len(original) == COUNT
    for packet in (KEYS, KEYS + 3, 2 * KEYS + 4):  # a key frame and two others
        damaged, lost, group = damage(whole, packet, lambda content: bytes(len(content)))
        known = survey(damaged)
        assert known.info.frames == COUNT
        if kind != "av1.mp4":  # of which ffmpeg's threads lose more frames
            assert len(known.numbers) == shown_by_ffmpeg(damaged)
        assert lost in known.faults
        assert set(known.faults) <= set(group)
        for start, stop in clean_runs(known):
            np.testing.assert_array_equal(
                read_frames(damaged, start, stop - start), original[start:stop]
            )
        with pytest.raises(
            UserError, match=rf"{re.escape(str(damaged))}.*frame {min(known.faults)}"
        ):
            read_frames(damaged)


def test_windows_next_to_a_gap_are_cut_exactly(tmp_path: Path, source: Path) -> None:
    whole = encode(source, tmp_path / "h264.mp4")
    original = read_frames(whole).astype(int)
    for packet in (13, 14, 17):
        damaged, lost, _ = damage(whole, packet, lambda content: bytes(len(content)))
        # one that begins at a key frame and is copied, and one that is encoded
        parts = [(s, e, tmp_path / f"{s}.mp4") for s, e in ((0, 10), (10, 20), (20, 30), (33, 40))]
        made: dict[str, bool] = {}
        cutting = cut(damaged, parts)
        made.update((path.stem, copied) for path, copied in itertools.islice(cutting, 3))
        with pytest.raises(UserError, match=rf"frame {lost} |frame 1\d .*more up to frame 1\d"):
            next(cutting)
        assert made == {"0": True, "20": True, "33": False}
        for start, stop, path in parts:
            if path.stem in made:
                assert np.abs(read_frames(path) - original[start:stop]).mean() < 6


def flip(content: bytes) -> bytes:
    changed = bytearray(content)
    for place in range(20, len(changed), 37):
        changed[place] ^= 255
    return bytes(changed)


@pytest.mark.parametrize("kind", ["h264.mp4", "h265.mp4", "mpeg4.avi", "vp9.mp4", "ffv1.mkv"])
def test_changed_bytes_affect_only_one_group_of_pictures(
    tmp_path: Path, source: Path, kind: str
) -> None:
    """Whether or not the decoder notices, the frames around are correct and kept."""
    whole = encode(source, tmp_path / kind)
    original = read_frames(whole)
    for packet in (12, 15, 20):
        damaged, _, group = damage(whole, packet, flip)
        known = survey(damaged)
        assert set(known.faults) <= set(group)
        for start, stop in ((0, group.start), (group.stop, COUNT)):
            np.testing.assert_array_equal(
                read_frames(damaged, start, stop - start), original[start:stop]
            )


def test_frames_that_the_decoder_marks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "noisy.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (COUNT, 48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": "10", "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    damaged, lost, _ = damage(path, 24, lambda content: content[:-400] + bytes(400))
    known = survey(damaged)
    assert "is marked as damaged by the decoder" in known.faults[lost]
    assert {known.faults[number] for number in range(lost + 1, 30)} == {
        "is predicted from a damaged frame"
    }
    assert set(known.faults) == set(range(lost, 30))


@pytest.mark.parametrize("kind", ["h264.mp4", "h264.mkv", "mjpeg.avi", "mpeg4.avi"])
def test_a_truncated_file(tmp_path: Path, source: Path, kind: str) -> None:
    more = ["-movflags", "faststart"] if kind.endswith("mp4") else []
    path = encode(source, tmp_path / kind, *more)
    original = read_frames(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    known = survey(path)
    assert 10 < len(known.numbers) == shown_by_ffmpeg(path) < COUNT
    (start, stop), *_ = clean_runs(known)
    assert start == 0
    np.testing.assert_array_equal(read_frames(path, 0, stop), original[:stop])
    if kind.endswith("mp4"):  # its index shows what is missing
        assert known.info.frames == COUNT
        assert known.faults[COUNT - 1] == "is beyond the end of the file"
        with pytest.raises(UserError, match=r"is beyond the end|cannot be decoded"):
            read_frames(path, 30, 10)


def clip(folder: Path, name: str, frames: np.ndarray, *options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"{name}.mp4", frames, 10)
    (folder / f"{name}.txt").write_text(f"Caption of {name}")
    return folder / f"{name}.mp4"


def test_the_windows_around_damage_are_kept(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    whole = encode(source, tmp_path / "h264.mp4")
    damaged, *_ = damage(whole, 13, lambda content: bytes(len(content)))
    damaged.rename(tmp_path / "in" / "take.mp4")
    (tmp_path / "in" / "take.txt").write_text("It moves.")
    flags = ["--min_frames", "5", "--window-size", "1", "--min-last-window", "1.5"]
    assert (
        videos.main(
            [
                "--videos_dir",
                str(tmp_path / "in"),
                "--dataset_dir",
                str(tmp_path / "out"),
                "--workers",
                "1",
                *flags,
            ]
        )
        == 0
    )
    names = {path.stem for path in (tmp_path / "out" / "train" / "videos").iterdir()}
    assert names == {f"take_window_{k}_frame_{10 * k}-{10 * k + 9}" for k in (0, 2, 3)}
    assert re.search(
        r"dropped window take_window_1_frame_10-19: .*take\.mp4: .* frame 1\d (cannot be decoded|"
        r"is predicted from a damaged frame)",
        capsys.readouterr().out,
    )


def test_training_on_videos_replaces_a_damaged_window_by_the_next(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train"
    (folder / "videos").mkdir(parents=True)
    whole = encode(source, tmp_path / "h264.mp4")
    shutil.copy(whole, folder / "videos" / "good.mp4")
    damage(whole, 0, lambda content: bytes(len(content)))[0].rename(folder / "videos" / "bad.mp4")
    for stem in ("good", "bad"):
        write_embedding(folder / "t5_xxl" / f"{stem}.pickle", np.zeros((2, 1024), np.float16))
    dataset = VideoDataset(folder, shape=(16, 10, 4, 4), geometry="crop")
    assert sorted(dataset.stems) == ["bad", "good"]
    names = {dataset.sample(position, 0).name.partition(",")[0] for position in range(6)}
    assert names == {"good"}
    assert re.search(
        r"left out, the next window is taken instead: .*bad\.mp4: .* frame \d cannot be decoded",
        capsys.readouterr().out,
    )
    (folder / "videos" / "good.mp4").unlink()
    with pytest.raises(UserError, match=r"bad\.mp4: .* frame \d cannot be decoded"):
        VideoDataset(folder, shape=(16, 10, 4, 4), geometry="crop").sample(0, 0)


@pytest.mark.parametrize("count", [1, 3, 7, 8, 20])
def test_the_report_shows_all_windows_or_eight_of_them(tmp_path: Path, count: int) -> None:
    paths = [clip(tmp_path, f"w{n:02}", texture(3)) for n in range(count)]
    write_report(tmp_path, Report("dataset"), paths)
    page = (tmp_path / "report.html").read_text()
    shown = [int(number) for number in re.findall(r"<code>w(\d\d)</code>", page)]
    assert len(shown) == min(count, 8)
    assert np.diff([*shown, count]).max() <= -(-count // 8)  # evenly


def test_a_video_without_a_picture_is_named_in_the_report(tmp_path: Path) -> None:
    good, bad = clip(tmp_path, "good", texture(3)), clip(tmp_path, "bad", texture(3))
    bad.write_bytes(b"no video")
    write_report(tmp_path, Report("dataset"), [bad, good])
    page = (tmp_path / "report.html").read_text()
    assert "<code>good</code>" in page
    assert re.search(r"<p>bad: .*bad\.mp4: the video is truncated", page)


MEMORY = (
    PEAK_KIB
    + """
import sys
from video2world_preprocess import videos
code = videos.main(["--videos_dir", "in", "--dataset_dir", "out", "--workers", "1"])
print(code, peak_kib() // 1024)
"""
)


def test_clips_are_made_small_frame_by_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", np.zeros((40, 480, 640, 3), np.uint8), 10)
    expected = fit(read_frames(tmp_path / "v.mp4", 5, 30), (64, 64), "crop")
    tracemalloc.start()
    try:
        clip = read_fitted(tmp_path / "v.mp4", (64, 64), "crop", 5, 30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(clip, expected)
    assert peak < 5 * 480 * 640 * 3


def test_only_one_picture_is_kept_in_memory(tmp_path: Path) -> None:
    """A window of 120 frames of 1080p takes 750 MB in RGB."""
    (tmp_path / "in").mkdir()
    red = ["-f", "lavfi", "-i", "color=red:size=1920x1080:rate=30", "-frames:v", 120]
    ffmpeg(*red, *KINDS["h264.mp4"], "-preset", "ultrafast", tmp_path / "in" / "hd.mp4")
    (tmp_path / "in" / "hd.txt").write_text("Red.")
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    code, mib = map(int, done.stdout.split("\n")[-2].split())
    assert code == 0
    assert mib < 400
    assert "<figure>" in (tmp_path / "out" / "report.html").read_text()
