"""Tests for the latents stage: which clips it encodes, keeps, removes, skips and refuses."""

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from video2world_preprocess import latents
from video2world_preprocess.latents import clip_starts
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.vae.vae import load_vae
from video2world_preprocess.video.reader import read_frames
from video2world_preprocess.video.resize import fit
from video2world_preprocess.video.writer import write_video

torch.set_num_threads(1)


def scene(frames, seed=0, height=32, width=48):
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 4, y * 5, (x + y) * 2], -1)
    moves = [np.roll(base, seed + t, axis=1) for t in range(frames)]
    return np.stack(moves).clip(0, 255).astype(np.uint8)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("V2W_INPUTS_HASH", raising=False)
    TransformVAE().save_pretrained(tmp_path / "vae")
    for index in range(2):
        write_video(tmp_path / f"D/train/videos/w{index}.mp4", scene(20, index), 16)
    write_video(tmp_path / "D/val/videos/v.mp4", scene(40, 5), 16)
    return tmp_path / "D"


def run(dataset, *extra, num_frames=9):
    return latents.main(
        [
            "--dataset_path",
            str(dataset / "train"),
            str(dataset / "val"),
            "--vae_path",
            "vae",
            "--num_frames",
            str(num_frames),
            "--video_size",
            "32",
            "32",
            "--clips_per_window",
            "3",
            "--device",
            "cpu",
            *extra,
        ]
    )


def test_starts_are_different_in_range_and_depend_on_the_name_only():
    starts = clip_starts("a", 150, 93, 4, 0)
    assert starts == clip_starts("a", 150, 93, 4, 0)
    assert starts != clip_starts("b", 150, 93, 4, 0)
    assert starts != clip_starts("a", 150, 93, 4, 1)
    assert len(set(starts)) == 4
    assert all(0 <= start <= 57 for start in starts)
    assert clip_starts("a", 93, 93, 4, 0) == [0]
    assert clip_starts("a", 95, 93, 4, 0) == [0, 1, 2]


@pytest.mark.parametrize("geometry", ["crop", "stretch"])
def test_each_clip_is_the_encoded_cut(dataset, capsys, geometry):
    assert run(dataset, "--geometry", geometry) == 0
    assert "9 clips of 3 windows" in capsys.readouterr().out
    vae = load_vae("vae")
    for video in (dataset / "train/videos/w1.mp4", dataset / "val/videos/v.mp4"):
        path = video.parents[1] / "latents" / f"{video.stem}.safetensors"
        tensors = load_file(path)
        assert tensors["latents"].shape == (3, 16, 3, 4, 4)
        frames = read_frames(video)
        starts = tensors["starts"].tolist()
        assert starts == clip_starts(video.stem, len(frames), 9, 3, 0)
        for clip, start in zip(tensors["latents"], starts, strict=True):
            pixels = fit(frames[start : start + 9], (32, 32), geometry)
            expected = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1
            torch.testing.assert_close(clip, vae.encode_latents(expected)[0])
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert (
            metadata.items()
            >= {
                "num_frames": "9",
                "height": "32",
                "width": "32",
                "geometry": geometry,
                "vae": "TransformVAE",
                "seed": "0",
            }.items()
        )


def times(dataset):
    return {path.name: path.stat().st_mtime_ns for path in dataset.rglob("*.safetensors")}


def test_latents_with_other_metadata_or_damage_are_encoded_again(dataset):
    assert run(dataset) == 0
    first = times(dataset)
    assert run(dataset) == 0
    assert times(dataset) == first
    (dataset / "train/latents/w0.safetensors").write_bytes(b"torn")
    write_video(dataset / "train/videos/w1.mp4", scene(30, 3), 16)
    assert run(dataset) == 0
    second = times(dataset)
    assert {name for name in first if first[name] != second[name]} == {
        "w0.safetensors",
        "w1.safetensors",
    }
    assert run(dataset, "--seed", "1") == 0
    assert not set(times(dataset).values()) & set(second.values())


def test_a_window_replaced_by_one_of_the_same_size_is_encoded_again(dataset):
    first, second = dataset / "train/videos/w0.mp4", dataset / "other.mp4"
    write_video(second, scene(20, 7), 16)
    for path in (first, second):
        data = path.read_bytes()
        rest = 100_000 - len(data)
        path.write_bytes(data + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
    assert run(dataset) == 0
    before = times(dataset)
    first.touch()  # newer, but unchanged
    assert run(dataset) == 0
    assert times(dataset) == before
    second.replace(first)
    first.touch()
    assert run(dataset) == 0
    assert {name for name in before if times(dataset)[name] != before[name]} == {"w0.safetensors"}


def test_short_and_broken_windows_are_named_counted_and_left_out(dataset, capsys):
    assert run(dataset) == 0
    write_video(dataset / "train/videos/short.mp4", scene(5), 16)
    (dataset / "train/videos/broken.mp4").write_bytes(b"no video")
    (dataset / "train/videos/empty.mp4").write_bytes(b"")
    (dataset / "train/videos/w0.mp4").unlink()
    (dataset / "train/latents/.partial-x.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert run(dataset) == 0
    out = capsys.readouterr().out
    assert "short.mp4: has 5 frames, but a clip has 9" in out
    assert "broken.mp4" in out
    assert "empty.mp4" in out
    assert '"dropped": {"window": 3}' in out
    left = [p.name for p in (dataset / "train/latents").iterdir()]
    assert sorted(left) == [".lock", ".made-for.json", "w1.safetensors"]


def test_a_second_size_is_encoded_beside_the_first(dataset, capsys):
    """The same clips at both sizes; the files of the first stay as they are."""
    assert run(dataset) == 0
    first = {p: p.stat().st_mtime_ns for p in dataset.glob("*/latents/*.safetensors")}
    capsys.readouterr()
    assert run(dataset, "--video_size", "16", "24") == 0
    assert "9 clips of 3 windows, 0." in capsys.readouterr().out  # of the new size only
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(first) == 3
    vae = load_vae("vae", "cpu", torch.float32)
    for path in first:
        at_32 = load_file(path)
        at_16 = load_file(path.parents[1] / "latents_16x24" / path.name)
        assert at_16["latents"].shape == (3, 16, 3, 2, 3)
        assert torch.equal(at_16["starts"], at_32["starts"])
        start = int(at_16["starts"][1])
        frames = read_frames(path.parents[1] / "videos" / f"{path.stem}.mp4")[start : start + 9]
        video = torch.from_numpy(fit(frames, (16, 24), "crop")).permute(3, 0, 1, 2)[None]
        expected = vae.encode_latents(video.float() / 127.5 - 1)[0]
        torch.testing.assert_close(at_16["latents"][1], expected)
    assert run(dataset, "--video_size", "16", "24") == 0
    assert '"made": 0, "kept": 6' in capsys.readouterr().out
    (dataset / "train/videos/w0.mp4").unlink()
    assert run(dataset, "--video_size", "16", "24") == 0
    for folder in ("latents", "latents_16x24"):
        assert [p.stem for p in (dataset / "train" / folder).glob("[!.]*")] == ["w1"]


def test_a_window_that_fails_is_left_out_at_every_size(dataset, capsys):
    assert run(dataset, "--video_size", "16", "24") == 0
    video = dataset / "train/videos/w0.mp4"
    whole = video.read_bytes()
    at, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    video.write_bytes(whole[:at] + bytes(max(end - at, 0)) + whole[max(end, at) :])
    assert run(dataset, "--video_size", "16", "24") == 0
    for folder in ("latents", "latents_16x24"):
        assert [p.stem for p in (dataset / "train" / folder).glob("[!.]*")] == ["w1"]
    assert '"dropped": {"window": 1}' in capsys.readouterr().out


def test_a_truncated_video_affects_no_other(dataset, capsys):
    video = dataset / "train/videos/w0.mp4"
    write_video(video, scene(20, 0, 128, 128), 16)
    whole = video.read_bytes()
    # the index, first or last, stays intact; the pictures at the end are destroyed
    at = whole.index(b"mdat") + 4
    end = whole.index(b"moov") - 4 if whole.index(b"moov") > at else len(whole)
    middle = (at + end) // 2
    video.write_bytes(whole[:middle] + bytes(end - middle) + whole[end:])
    code = run(dataset)
    out = capsys.readouterr().out
    assert code == 0
    assert (dataset / "train/latents/w1.safetensors").is_file()
    if "w0.mp4" in out:
        assert not (dataset / "train/latents/w0.safetensors").exists()


def test_a_window_whose_picture_size_changes_is_encoded_and_shown(dataset, capsys):
    parts = []
    for number, size in enumerate(((32, 48), (64, 96))):
        path = dataset / f"{number}.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for pixels in scene(10, number, *size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    (dataset / "train/videos/w1.mp4").write_bytes(b"".join(parts))
    assert run(dataset) == 0
    assert '"dropped": {}' in capsys.readouterr().out
    assert load_file(dataset / "train/latents/w1.safetensors")["latents"].shape[0] == 3
    page = (dataset / "report-latents.html").read_text()
    assert page.count("<figure>") == 3


def test_nothing_usable_is_the_users_error(dataset, capsys):
    assert run(dataset, num_frames=21) == 2
    captured = capsys.readouterr()
    assert "none of its windows can be used" in captured.err
    assert "w0.mp4: has 20 frames" in captured.out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num_frames", "10"], "--num_frames 10"),
        (["--video_size", "30", "32"], "--video_size 30 32"),
        (["--clips_per_window", "0"], "--clips_per_window 0"),
        (["--vae_path", "nowhere"], "nowhere has no VAE"),
        (["--dataset_path", "nowhere"], "nowhere: the folder videos/ is missing"),
    ],
)
def test_wrong_flags_are_explained(dataset, capsys, extra, message):
    assert run(dataset, *extra) == 2
    assert message in capsys.readouterr().err


def test_two_processes_write_what_one_writes(dataset):
    assert run(dataset) == 0
    one = {path: load_file(path) for path in dataset.rglob("*.safetensors")}
    for path in one:
        path.unlink()
    assert run(dataset, "--processes", "2") == 0
    assert set(dataset.rglob("*.safetensors")) == set(one)
    for path, tensors in one.items():
        torch.testing.assert_close(load_file(path), tensors, atol=0, rtol=0)
    assert (dataset / "report-latents.json").is_file()


def test_another_resource_with_other_settings_is_refused(dataset, monkeypatch, capsys):
    monkeypatch.setenv("V2W_RESOURCE", "a")
    assert run(dataset) == 0
    first = times(dataset)
    monkeypatch.setenv("V2W_RESOURCE", "b")
    assert run(dataset) == 0
    assert run(dataset, "--seed", "1") == 2
    assert "was made for resource a with other settings (seed 0, here 1)" in capsys.readouterr().err
    assert times(dataset) == first
    monkeypatch.setenv("V2W_RESOURCE", "a")
    assert run(dataset, "--seed", "1") == 0  # the owner may change them
