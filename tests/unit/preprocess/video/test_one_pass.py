"""Tests for cutting while a video is decoded once: exact frames, seeking, damage, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lerobot_datasets import CODECS, HEIGHT, WIDTH, picture, shown
from peak_memory import PEAK_KIB
from video2world_preprocess.video.decode import opened
from video2world_preprocess.video.one_pass import Damaged, VideoFrames, cut_once, timeline
from video2world_preprocess.video.reader import probe, read_frames

FRAMES = 300


def write(path: Path, codec: str, times: Callable[[int], int] = lambda number: number) -> None:
    """Write a video whose frame ``number`` is shown at ``times(number)`` tenths of a second."""
    name, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(0, number, 0), format="rgb24")
            frame.pts, frame.time_base = times(number), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module", params=list(CODECS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 300 frames in each codec."""
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    write(path, request.param)
    return path


SPANS = st.lists(st.integers(0, FRAMES), min_size=2, max_size=8, unique=True).map(sorted)


@given(SPANS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_spans_are_read_exactly(video: Path, edges: list[int]) -> None:
    """Skipped spans are long enough to be seeked over, or short enough to be decoded."""
    known = timeline(video)
    with opened(video) as (container, stream):
        source = VideoFrames(known, container, stream)
        for start, stop in zip(edges[::2], edges[1::2], strict=False):
            frames = source.frames(start, stop)
            found = [shown(frame.to_ndarray(format="rgb24"))[1] for frame in frames]
            assert found == list(range(start, stop))


def test_the_index_says_what_decoding_says(video: Path) -> None:
    known = timeline(video)
    assert known.info == probe(video)
    assert not known.times


def test_uneven_times(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write(path, "h264", lambda number: number + number // 100 * 7)
    known = timeline(path)
    assert (known.info.frames, len(known.times)) == (FRAMES, FRAMES)
    parts = [(95, 105, tmp_path / "a.mp4"), (290, 300, tmp_path / "b.mp4")]
    with opened(path) as (container, stream):
        assert list(cut_once(VideoFrames(known, container, stream), parts)) == [
            target for *_, target in parts
        ]
    for start, stop, target in parts:
        assert [shown(p)[1] for p in read_frames(target)] == list(range(start, stop))


def test_damage_ends_the_cut_and_finished_parts_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write(path, "h264")
    with opened(path) as (_, stream):
        entry = stream.index_entries[50]
    data = bytearray(path.read_bytes())
    data[entry.pos + 4 : entry.pos + entry.size] = b"\xff" * (entry.size - 4)
    path.write_bytes(data)
    parts = [(k, k + 20, tmp_path / f"{k}.mp4") for k in range(0, 100, 20)]
    finished = []
    with opened(path) as (container, stream), pytest.raises(Damaged):  # noqa: PT012
        for target in cut_once(VideoFrames(timeline(path), container, stream), parts):
            finished.append(target.name)
    assert finished == ["0.mp4", "20.mp4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.mp4", "20.mp4", "x.mp4"]


CUT = (
    PEAK_KIB
    + """
import sys
from pathlib import Path
from video2world_preprocess.video.decode import opened
from video2world_preprocess.video.one_pass import VideoFrames, cut_once, timeline
path = Path(sys.argv[1])
known = timeline(path)
parts = [(k, k + 50, path.with_name(f"{k}.mp4")) for k in range(0, known.info.frames, 50)]
with opened(path) as (container, stream):
    assert len(list(cut_once(VideoFrames(known, container, stream), parts))) == len(parts)
print(peak_kib() // 1024)
"""
)


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    peaks = []
    for frames in (50, 500):
        path = tmp_path / f"{frames}" / "x.mp4"
        path.parent.mkdir()
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            for number in range(frames):
                pixels = np.full((480, 640, 3), number % 250, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        command = [sys.executable, "-c", CUT, str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(out))
    assert peaks[1] - peaks[0] < 40  # 450 more frames of 460 kB would be 207 MB
