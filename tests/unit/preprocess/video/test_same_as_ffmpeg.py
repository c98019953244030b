"""Tests that videos and pictures are read and cut as ffmpeg shows them, frame by frame."""

from __future__ import annotations

import itertools
import math
import struct
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from video2world_preprocess.video.cut import cut
from video2world_preprocess.video.frame_survey import survey
from video2world_preprocess.video.reader import probe, read_frames
from video2world_trainer.generation.conditioning import read_conditioning

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
WIDTH, HEIGHT, COUNT = 64, 48, 8


def ffmpeg(*arguments: object) -> bytes:
    command = [FFMPEG, "-y", "-v", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def shown(path: Path, height: int, width: int) -> np.ndarray:
    """Return all frames as ffmpeg shows them by default."""
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw four colors, which differ in all orientations, and the number as a gray level."""
    pixels = np.zeros((height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    pixels[:middle, :centre], pixels[:middle, centre:] = (220, 30, 30), (30, 200, 30)
    pixels[middle:, :centre], pixels[middle:, centre:] = (40, 40, 220), (230, 230, 230)
    pixels[height // 4 : middle, width // 8 : width // 4] = 20 * number
    return pixels


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store the pictures losslessly, to be encoded by ffmpeg."""
    path = tmp_path_factory.mktemp("source") / "source.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def differences(path: Path) -> list[str]:
    """Return how reading or cutting a file differs from ffmpeg."""
    found, frames = [], read_frames(path)
    height, width = frames.shape[1:3]
    expected = shown(path, height, width)
    known = survey(path)
    if known.faults:
        found.append(f"faults {known.faults}")
    if not len(expected) == known.info.frames == probe(path).frames:
        found.append(f"{len(expected)} frames, {known.info.frames} and {probe(path).frames} here")
    if frames.shape != expected.shape or np.abs(frames.astype(int) - expected).mean() > 0.2:
        found.append("read otherwise")
    target = path.with_name(f"{path.name}-cut.mp4")
    list(cut(path, [(0, known.info.frames, target)], crf=1, known=known))
    window = read_frames(target)
    height, width = window.shape[1:3]
    even = ["-vf", f"scale={width}:{height}"] if frames.shape[1:] != window.shape[1:] else []
    coded = path.with_name(f"{path.name}.mkv")
    ffmpeg(
        "-i",
        path,
        "-an",
        "-fps_mode",
        "passthrough",
        *even,
        "-pix_fmt",
        "yuv420p",
        "-c:v",
        "libx264",
        "-qp",
        0,
        coded,
    )
    expected = shown(coded, height, width)
    if window.shape != expected.shape or np.abs(window.astype(int) - expected).mean() > 0.5:
        found.append("cut otherwise")
    if not np.array_equal(window, shown(target, height, width)):
        found.append("the window is shown otherwise")
    return found


def check(paths: list[Path]) -> None:
    found = {path.name: problems for path in paths if (problems := differences(path))}
    assert not found


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
TURNS = list(itertools.product((1, -1), repeat=2))
MATRICES = {
    **{f"straight{a:+}{d:+}": (a, 0, 0, d) for a, d in TURNS},
    **{f"transposed{b:+}{c:+}": (0, b, c, 0) for b, c in TURNS},
    **{
        f"{angle} degrees": (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn))
        for angle in (1, 5, 45, 359)
        for turn in [math.radians(angle)]
    },
}


def with_matrix(path: Path, name: str, matrix: tuple[float, ...]) -> Path:
    """Copy an MP4 or MOV file with another display matrix."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target = path.with_name(name)
    target.write_bytes(data)
    return target


KINDS = {
    "h264.mp4": [*H264, "-vf", "setsar=4/3"],
    "full range.mov": ["-c:v", "libx264", "-pix_fmt", "yuvj420p", "-colorspace", "bt709"],
    "10 bit.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv422p10le", "-x265-params", "log-level=0"],
    "odd.mov": ["-c:v", "png", "-vf", "crop=63:47"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_orientations(tmp_path: Path, source: Path, kind: str) -> None:
    plain = tmp_path / kind
    ffmpeg("-i", source, *KINDS[kind], plain)
    check([with_matrix(plain, f"{name} {kind}", m) for name, m in MATRICES.items()])
    upright = with_matrix(plain, f"plain {kind}", (1, 0, 0, 1))
    mirrored = with_matrix(plain, f"mirrored {kind}", (-1, 0, 0, 1))
    np.testing.assert_array_equal(read_frames(mirrored), read_frames(upright)[:, :, ::-1])


def test_rotated_videos_are_encoded_with_their_pixel_aspect_ratio(
    tmp_path: Path, source: Path
) -> None:
    plain, target = tmp_path / "plain.mp4", tmp_path / "cut.mp4"
    ffmpeg("-i", source, *KINDS["h264.mp4"], plain)
    for matrix, copied, shape in (
        ((1, 0, 0, 1), True, "4/3"),
        ((1, 0, 0, -1), False, "4/3"),
        ((0, 1, -1, 0), False, "3/4"),
    ):
        turned = with_matrix(plain, "turned.mp4", matrix)
        assert list(cut(turned, [(0, COUNT, target)])) == [(target, copied)]
        with av.open(str(target)) as container:
            assert str(container.streams.video[0].sample_aspect_ratio) == shape


COLOURS = {
    f"{pixels} {space} {span}": [
        "-vf",
        f"scale=out_color_matrix={matrix}:out_range={span},format={pixels}",
        "-c:v",
        "libx264",
        "-colorspace",
        space,
        "-color_range",
        span,
    ]
    for pixels in ("yuv420p", "yuv422p10le", "yuv444p", "gray")
    for space, matrix in (("bt709", "bt709"), ("smpte170m", "bt601"), ("bt2020nc", "bt2020"))
    for span in ("tv", "pc")
}
GROUPS = {
    "colours": {f"{name}.mp4": arguments for name, arguments in COLOURS.items()},
    "pixel formats": {
        "rgb.mp4": ["-c:v", "libx264rgb"],
        "nv12.mp4": ["-c:v", "libx264", "-pix_fmt", "nv12", "-color_range", "pc"],
        "alpha.mov": ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"],
        "alpha.webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"],
        "alpha rgb.mov": ["-c:v", "png", "-pix_fmt", "rgba"],
        "deep.mov": ["-c:v", "png", "-pix_fmt", "rgb48be"],
        "grey and alpha.mov": ["-c:v", "png", "-pix_fmt", "ya8"],
        "black and white.mov": ["-c:v", "png", "-pix_fmt", "monob"],
        "grey.mov": ["-c:v", "qtrle", "-pix_fmt", "gray"],
        "deep grey.mkv": ["-c:v", "ffv1", "-pix_fmt", "gray16le"],
        "bgr.avi": ["-c:v", "rawvideo", "-pix_fmt", "bgr24"],
        "palette.avi": ["-c:v", "rawvideo", "-pix_fmt", "pal8"],
        "full range.avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj422p"],
        "odd.mkv": ["-c:v", "ffv1", "-pix_fmt", "yuv420p", "-vf", "crop=63:47:exact=1"],
        "odd.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv444p", "-vf", "crop=63:47:exact=1"],
    },
    "containers": {
        "h264.mp4": [*H264, "-bf", "2"],
        "h264.mov": H264,
        "h264.mkv": [*H264, "-bf", "2"],
        "h264.avi": H264,
        "h264.m4v": H264,
        "h264.ts": H264,
        "fragments.mp4": [*H264, "-g", "3", "-movflags", "frag_keyframe+empty_moov"],
        "h265.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=0"],
        "mpeg4.mp4": ["-c:v", "mpeg4", "-bf", "2"],
        "mpeg4.avi": ["-c:v", "mpeg4", "-bf", "2"],
        "mpeg2.mkv": ["-c:v", "mpeg2video", "-r", "25", "-bf", "2"],
        "vp8.webm": ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "4"],
        "vp9.webm": ["-c:v", "libvpx-vp9"],
        "av1.webm": ["-c:v", "libsvtav1"],
        "av1.mp4": ["-c:v", "libsvtav1"],
        "prores.mov": ["-c:v", "prores_ks"],
        "huffyuv.mkv": ["-c:v", "huffyuv"],
        "interlaced.mp4": [*H264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"],
        "interlaced.ts": ["-c:v", "mpeg2video", "-r", "25", "-flags", "+ildct+ilme"],
    },
    "times": {
        "varying.mp4": [*H264, "-vf", "setpts='(N+0.4*mod(N,3))/10/TB'", "-fps_mode", "vfr"],
        "varying.webm": [
            "-c:v",
            "libvpx-vp9",
            "-vf",
            "setpts='(N+0.4*mod(N,3))/10/TB'",
            "-fps_mode",
            "vfr",
        ],
        "ntsc.mp4": [*H264, "-r", "30000/1001"],
    },
}


@pytest.mark.parametrize("group", GROUPS)
def test_kinds_of_files(tmp_path: Path, source: Path, group: str) -> None:
    for name, arguments in GROUPS[group].items():
        ffmpeg("-i", source, *arguments, tmp_path / name)
    check([tmp_path / name for name in GROUPS[group]])


def test_several_streams(tmp_path: Path, source: Path) -> None:
    cover, sine = tmp_path / "cover.png", ["-f", "lavfi", "-i", "sine=d=1"]
    ffmpeg("-i", source, "-frames:v", 1, cover)
    both = ["-map", "1:a", "-map", "0:v", *H264, "-shortest"]
    ffmpeg("-i", source, *sine, *both, tmp_path / "sound first.mp4")
    ffmpeg("-itsoffset", 0.5, "-i", source, *sine, *both, tmp_path / "picture later.mp4")
    two = ["-i", source, "-i", source, "-map", "0:v", "-map", "1:v", "-filter:v:0", "scale=32:24"]
    for index, name in enumerate(("larger second.mkv", "default first.mkv")):
        ffmpeg(
            *two,
            "-disposition:v:0",
            ("0", "default")[index],
            "-disposition:v:1",
            0,
            *H264,
            tmp_path / name,
        )
    ffmpeg(
        "-i",
        source,
        "-i",
        cover,
        "-map",
        1,
        "-map",
        0,
        "-c:v:0",
        "png",
        "-disposition:v:0",
        "attached_pic",
        "-c:v:1",
        "libx264",
        "-pix_fmt:v:1",
        "yuv420p",
        tmp_path / "cover first.mp4",
    )
    check(sorted(path for path in tmp_path.iterdir() if path.suffix in (".mp4", ".mkv")))


def test_edit_lists(tmp_path: Path, source: Path) -> None:
    whole = tmp_path / "whole.mp4"
    ffmpeg("-i", source, *H264, "-g", 4, "-bf", 2, whole)
    trims = [
        ("-ss", 0.2, "-i", whole),
        ("-ss", 0.5, "-i", whole),
        ("-ss", 0.2, "-i", whole, "-t", 0.3),
        ("-i", whole, "-t", 0.5),
        ("-ss", 0.5, "-i", whole, "-avoid_negative_ts", "make_zero"),
    ]
    paths = [
        tmp_path / f"{number}.{suffix}"
        for number in range(len(trims))
        for suffix in ("mp4", "mov", "mkv")
    ]
    for path in paths:
        ffmpeg(*trims[int(path.stem)], "-c", "copy", path)
    check(paths)
    with av.open(str(paths[0])) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert hidden  # otherwise nothing is tested
    assert survey(paths[3]).info.fps == 10  # the header says otherwise


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_start_that_depends_on_frames_before_it(tmp_path: Path, source: Path, codec: str) -> None:
    whole, options = tmp_path / "whole.mp4", "open-gop=1:keyint=4:bframes=1:b-adapt=0:scenecut=0"
    ffmpeg(
        "-i",
        source,
        "-pix_fmt",
        "yuv420p",
        "-c:v",
        codec,
        f"-{codec[3:]}-params",
        f"log-level=0:{options}",
        whole,
    )
    paths = [tmp_path / f"cut.{suffix}" for suffix in ("mp4", "mov", "mkv")]
    for path in paths:
        editless = [] if path.suffix == ".mkv" else ["-use_editlist", 0]
        ffmpeg("-ss", 0.4, "-i", whole, "-c", "copy", *editless, path)
    check(paths)
    with av.open(str(paths[0])) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert probe(paths[0]).frames < packets  # otherwise nothing is tested


def test_a_size_that_changes(tmp_path: Path, source: Path) -> None:
    """As in ffmpeg, all frames have the size of the first."""
    parts = [tmp_path / "a.ts", tmp_path / "b.ts"]
    for path, size in zip(parts, ("64:48", "96:60"), strict=True):
        ffmpeg("-i", source, "-vf", f"scale={size}", *H264, "-bf", 0, path)
    for name, order in (("grows.mp4", parts), ("shrinks.ts", parts[::-1])):
        path = tmp_path / name
        path.write_bytes(b"".join(part.read_bytes() for part in order))
        assert differences(path) == []
        assert any("picture size changes" in remark for remark in survey(path).remarks)


def stills() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """Return pictures of all modes by file name, each with its options for saving."""
    plain = Image.fromarray(picture(3))
    clear = plain.convert("RGBA")
    ramp = np.tile(np.arange(WIDTH, dtype=np.uint16) * 4, (HEIGHT, 1))
    clear.putalpha(Image.fromarray(ramp.astype(np.uint8)))
    found: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain.png": (plain, {}),
        "alpha.png": (clear, {}),
        "palette.png": (plain.quantize(16), {}),
        "transparent.png": (plain.quantize(16), {"transparency": 0}),
        "grey.png": (plain.convert("L"), {}),
        "grey and alpha.png": (clear.convert("LA"), {}),
        "black and white.png": (plain.convert("1"), {}),
        "deep grey.png": (Image.fromarray(ramp * 257), {}),
        "grey.jpg": (plain.convert("L"), {}),
        "cmyk.jpg": (plain.convert("CMYK"), {"quality": 95}),
        "lossless.webp": (clear, {"lossless": True}),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"{orientation}.jpg"] = (plain, {"exif": exif, "subsampling": 0})
        found[f"{orientation}.png"] = (plain, {"exif": exif})
        found[f"{orientation}.webp"] = (plain, {"exif": exif, "lossless": True})
    return found


def still(path: Path) -> np.ndarray:
    height, width = (WIDTH, HEIGHT) if path.stem in "5678" else (HEIGHT, WIDTH)
    condition = read_conditioning(
        path, count=1, clip_frames=1, size=(height, width), geometry="stretch"
    )
    return condition.frames


def test_still_pictures(tmp_path: Path, source: Path) -> None:
    paths = []
    for name, (image, options) in stills().items():
        paths.append(tmp_path / name)
        image.save(paths[-1], **options)
    for form in ("rgb48be", "rgba64be", "ya16be"):
        paths.append(tmp_path / f"{form}.png")
        ffmpeg("-i", tmp_path / "alpha.png", "-pix_fmt", form, paths[-1])
    found = {}
    for path in paths:
        got = still(path)
        error = np.abs(got.astype(int) - shown(path, *got.shape[1:3]))
        if error.mean() > 1:
            found[path.name] = error.mean()
    assert not found
