"""Tests that videos are written, read and cut exactly, and that broken ones are refused."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from video2world_common.exit_codes import UserError
from video2world_preprocess.video import cut, reader, resize, writer
from video2world_preprocess.video.frame_survey import survey


def ramp(frames: int = 40, height: int = 48, width: int = 64) -> np.ndarray:
    """Return frames that are recognizable: number i has the gray level 6 i."""
    levels = (6 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def test_round_trip_and_same_bytes_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer.write_video(path, ramp(), 30)
    first = path.read_bytes()
    writer.write_video(path, ramp(), 30)
    assert path.read_bytes() == first
    assert reader.probe(path) == reader.VideoInfo(40, Fraction(30), 64, 48)
    assert reader.probe(path).seconds == pytest.approx(40 / 30)
    back = reader.read_frames(path)
    assert back.shape == (40, 48, 64, 3)
    assert np.abs(back.astype(int) - ramp()).max() <= 4
    np.testing.assert_array_equal(reader.read_frames(path, 10, 5), back[10:15])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_ordinary_players_open_it(tmp_path: Path) -> None:
    writer.write_video(tmp_path / "a.mp4", ramp(), Fraction(30000, 1001))
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_odd_size_loses_less_than_a_pixel(tmp_path: Path) -> None:
    writer.write_video(tmp_path / "a.mp4", ramp()[:, :47, :63], 30)
    info = reader.probe(tmp_path / "a.mp4")
    assert (info.width, info.height) == (62, 46)


def test_cut_is_exact_to_the_frame(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    writer.write_video(source, ramp(), 30)
    parts = [(3, 17, tmp_path / "b.mp4"), (17, 40, tmp_path / "c.mp4")]
    assert [made for made, _ in cut.cut(source, parts)] == [part[2] for part in parts]
    for start, stop, path in parts:
        assert reader.probe(path) == reader.VideoInfo(stop - start, Fraction(30), 64, 48)
        levels = reader.read_frames(path).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, 6 * np.arange(start, stop), atol=2.5)


def test_cut_keeps_the_parts_before_the_end_and_names_the_file(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    writer.write_video(source, ramp(), 30)
    made = cut.cut(source, [(0, 20, tmp_path / "b.mp4"), (20, 60, tmp_path / "c.mp4")])
    assert next(made)[0] == tmp_path / "b.mp4"
    with pytest.raises(UserError, match=r"a\.mp4.*ends after 40"):
        next(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_overlapping_parts_are_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlap"):
        list(cut.cut(tmp_path / "a.mp4", [(0, 9, tmp_path / "b"), (8, 12, tmp_path / "c")]))


def test_broken_files_are_user_errors_that_name_them(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    writer.write_video(whole, ramp(), 30)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "truncated.mp4").write_bytes(whole.read_bytes()[:-800])
    (tmp_path / "text.mp4").write_text("no video")
    for name, words in {
        "missing": "no such",
        "empty": "empty",
        "truncated": "truncated",
        "text": "truncated",
    }.items():
        for use in (reader.probe, reader.read_frames):
            with pytest.raises(UserError, match=rf"{name}\.mp4.*{words}"):
                use(tmp_path / f"{name}.mp4")
    with pytest.raises(UserError, match="50 frames from frame 0 on requested, but it has 40"):
        reader.read_frames(whole, 0, 50)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4), (2, 4, 4, 1)])
def test_arrays_of_another_shape_or_type_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="uint8"):
        writer.write_video(tmp_path / "a.mp4", np.zeros(shape, np.uint8), 30)


FULL_DISK = """
import sys, resource, signal, numpy as np
from video2world_preprocess.video.writer import write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), dtype=np.uint8)
try:
    write_video(sys.argv[1], noise, 30)
except OSError as error:
    print(error.errno, error.filename)
"""


def test_write_limit_leaves_nothing_and_is_an_os_error(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    output = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == [str(errno.EFBIG), str(target)]
    assert list(tmp_path.iterdir()) == []


def test_fit_crop_keeps_shapes_and_stretch_does_not() -> None:
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 200  # a bright square in the center
    crop = resize.fit(frames, (20, 20), "crop")
    assert crop.shape == (2, 20, 20, 3)
    assert crop[:, :, 2:-2].min() >= 195
    stretch = resize.fit(frames, (20, 20), "stretch")
    np.testing.assert_allclose(stretch[0, 10, [1, 10, 18], 0], [0, 200, 0], atol=5)
    np.testing.assert_array_equal(resize.fit(frames, (40, 80), "crop"), frames)
    np.testing.assert_array_equal(resize.fit(frames, (40, 40), "crop"), frames[:, :, 20:60])
    with pytest.raises(UserError, match="geometry"):
        resize.fit(frames, (20, 20), "squeeze")  # type: ignore[arg-type]


def test_fit_antialiases() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = resize.fit(stripes, (16, 16), "stretch")[0, :, 2:-2]
    assert 110 < small.min() <= small.max() < 145


def test_umask_applies_to_outputs(tmp_path: Path) -> None:
    writer.write_video(tmp_path / "a.mp4", ramp(4), 30)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o666 & ~umask


def encode(path: Path, frames: np.ndarray, pts: list[int] | None = None, **options: str) -> None:
    """Write a video as other encoders do: with x264's ``options``, shown at ``pts`` (1/600 s)."""
    rotate = options.pop("rotate", None)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        if rotate:
            stream.set_display_rotation(float(rotate))
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = pts[number] if pts else 60 * number
            frame.time_base = Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def texture(count: int) -> np.ndarray:
    base = (
        np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    )
    return np.stack([np.roll(base, t, 1) for t in range(count)])


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ({"g": "20", "sc_threshold": "0"}, [True, True, True]),
        ({"g": "20", "sc_threshold": "0", "bf": "0"}, [True, True, True]),
        ({"g": "40", "sc_threshold": "0", "bf": "0"}, [True, False, True]),
        ({"g": "15", "sc_threshold": "0", "bf": "0"}, [True, False, False]),
        ({"g": "20", "sc_threshold": "0", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}, None),
    ],
)
def test_windows_are_copied_where_that_is_exact(
    tmp_path: Path, options: dict[str, str], copied: list[bool] | None
) -> None:
    source = tmp_path / "a.mp4"
    encode(source, texture(55), **options)
    whole = reader.read_frames(source).astype(int)
    parts = [(s, e, tmp_path / f"{s}.mp4") for s, e in ((0, 20), (20, 40), (40, 55))]
    made = dict(cut.cut(source, parts))
    if copied is not None:
        assert [made[part[2]] for part in parts] == copied
    for start, stop, path in parts:
        info, frames = reader.probe(path), reader.read_frames(path).astype(int)
        assert (info.frames, info.fps) == (stop - start, 10)
        error = np.abs(frames - whole[start:stop])
        assert error.max() == 0 if made[path] else error.mean() < 6


def test_a_damaged_part_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    encode(source, texture(60), g="20", sc_threshold="0", bf="0")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = [p for p in container.demux(video=0) if p.size][30]
    data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    source.write_bytes(data)
    parts = [(s, s + 20, tmp_path / f"{s}.mp4") for s in (0, 20, 40)]
    made = {}
    with contextlib.suppress(UserError):  # depending on the codec, it may still decode
        for path, copied in cut.cut(source, parts):
            made[path.stem] = copied
    assert made.get("0") is True
    assert made.get("20") is not True


def test_a_rotated_video_comes_out_upright(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    frames = np.zeros((12, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 255  # the upper left quarter
    encode(source, frames, rotate="90")
    assert dict(cut.cut(source, [(0, 12, target)])) == {target: False}
    info, shown_cut = reader.probe(target), reader.read_frames(target)
    assert (info.height, info.width) == (64, 32)
    shown = reader.read_frames(source)
    assert shown.shape == shown_cut.shape
    assert np.abs(shown.astype(int) - shown_cut).mean() < 8
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_a_varying_frame_rate_is_noted_and_all_frames_are_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    times = [60 * n + (40 if n % 3 else 0) for n in range(30)]
    encode(source, texture(30), pts=times, g="10")
    (remark,) = survey(source).remarks
    assert "frame rate varies" in remark
    assert dict(cut.cut(source, [(0, 30, target)])) == {target: False}
    assert reader.probe(target).frames == 30
    assert not survey(target).remarks


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"song\.mp4: the file has no video stream"):
        reader.probe(path)


def test_writing_in_parts_gives_the_same_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    writer.write_video(tmp_path / "whole.mp4", frames, 16)
    writer.write_video(tmp_path / "parts.mp4", iter([frames[:1], frames[1:6], frames[6:]]), 16)
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(ValueError, match="frames must be uint8"):
        writer.write_video(tmp_path / "bad.mp4", iter([frames, frames[:0]]), 16)
    with pytest.raises(ValueError, match="frames must be uint8"):
        writer.write_video(tmp_path / "bad.mp4", iter([]), 16)
    assert not (tmp_path / "bad.mp4").exists()


def test_pictures_that_are_too_large_to_encode_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.mp4: pictures of 16500x16 cannot be encoded"):
        writer.write_video(tmp_path / "a.mp4", np.zeros((1, 16, 16500, 3), np.uint8), 16)
    assert not (tmp_path / "a.mp4").exists()
