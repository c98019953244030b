"""Tests that a link on the volume gives a stage no access to files of its own pod."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from caption_server import caption_server
from video2world_common.exit_codes import UserError
from video2world_common.files import write_text
from video2world_common.paths import on_volume
from video2world_preprocess import agibot, captions, embeddings, latents, prepared, videos
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.requests import SampleRequest

SECRET = "hf_of_the_pod"  # pragma: allowlist secret


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage's working directory, next to files that only its pod may read."""
    made = tmp_path / "volume"
    made.mkdir()
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "environ.txt").write_text(f"HF_TOKEN={SECRET}")
    write_video(tmp_path / "pod" / "own.mp4", np.zeros((60, 32, 32, 3), np.uint8), 10)
    monkeypatch.chdir(made)
    monkeypatch.setenv("V2W_STAGE", "dataset")
    return made


def clip(path: Path, text: str | None = "What it shows.") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((60, 32, 32, 3), 90, np.uint8), 10)
    if text is not None:
        path.with_suffix(".txt").write_text(text)


def said(volume: Path) -> str:
    """All text on the volume."""
    return "".join(
        p.read_text(errors="replace")
        for p in volume.rglob("*")
        if p.is_file() and not p.is_symlink() and p.suffix != ".mp4"
    )


def test_captions_and_videos_linked_from_outside_are_dropped(volume: Path) -> None:
    clip(volume / "in" / "good.mp4")
    clip(volume / "in" / "spy.mp4", None)
    (volume / "in" / "spy.txt").symlink_to(volume.parent / "pod" / "environ.txt")
    (volume / "in" / "own.mp4").symlink_to(volume.parent / "pod" / "own.mp4")
    (volume / "in" / "own.txt").write_text("Not mine.")
    flags = ["--videos_dir", "in", "--dataset_dir", "out", "--min_frames", "30", "--workers", "1"]
    assert videos.main(flags) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert {p["item"] for p in report["dropped"]} == {"spy.mp4", "own.mp4"}
    assert all("a link leads out of the volume" in p["reason"] for p in report["dropped"])
    assert [p.stem for p in Path("out/train/videos").iterdir()] == ["good_window_0_frame_0-59"]
    assert SECRET not in said(volume)


def test_a_folder_linked_from_outside_is_a_user_error(
    volume: Path, capfd: pytest.CaptureFixture
) -> None:
    (volume / "in").symlink_to(volume.parent / "pod")
    assert videos.main(["--videos_dir", "in", "--dataset_dir", "out"]) == 2
    assert prepared.main(["--dataset_dir", "in"]) == 2
    assert agibot.main(["--data_dir", "in", "--local", "--prepare"]) == 2
    assert agibot.main(["--data_dir", ".", "--caption_file", "in/environ.txt", "--prepare"]) == 2
    reported = capfd.readouterr().err
    assert reported.count("a link leads out of the volume") == 4
    assert SECRET not in reported


def test_a_prepared_folder_s_links_are_not_encoded(volume: Path) -> None:
    for name in ("good", "spy"):
        clip(volume / "d/train/videos" / f"{name}.mp4", None)
        (volume / "d/train/metas").mkdir(exist_ok=True)
    (volume / "d/train/metas/good.txt").write_text("What it shows.")
    (volume / "d/train/metas/spy.txt").symlink_to(volume.parent / "pod" / "environ.txt")
    (volume / "d/train/videos/own.mp4").symlink_to(volume.parent / "pod" / "own.mp4")
    (volume / "d/train/metas/own.txt").write_text("Not mine.")
    assert prepared.main(["--dataset_dir", "d"]) == 0
    report = embeddings.Report("embeddings")
    assert embeddings._captions(Path("d/train"), report).keys() == {"good", "own"}
    assert "a link leads out" in report.dropped[0].reason
    flags = latents.parser().parse_args(["--dataset_path", "d/train", "--vae_path", "vae"])
    flags.num_frames, flags.video_size = 17, [(32, 32)]
    report = latents.Report("latents")
    found = [w.video.stem for w in latents._windows(Path("d/train"), flags, "vae", report)]
    assert found == ["good", "spy"]
    assert "a link leads out" in report.dropped[0].reason


def test_no_file_of_the_pod_is_sent_to_an_endpoint(volume: Path) -> None:
    for name in ("good", "spy"):
        clip(volume / "d/train/videos" / f"{name}.mp4", None)
    (volume / "d/train/metas").mkdir()
    (volume / "d/train/metas/spy.txt").symlink_to(volume.parent / "pod" / "environ.txt")
    (volume / "d/train/videos/own.mp4").symlink_to(volume.parent / "pod" / "own.mp4")
    with caption_server() as server:
        flags = ["--dataset_path", "d/train", "--endpoint", server.url, "--model", "vlm"]
        assert captions.main([*flags, "--max_failed_percent", "70"]) == 0
        (request,) = server.requests
        assert SECRET not in str(request.body)
    report = json.loads(Path("d/report-captions.json").read_text())
    assert {Path(p["item"]).stem for p in report["dropped"]} == {"own", "spy"}
    assert all("a link leads out of the volume" in p["reason"] for p in report["dropped"])
    assert SECRET in (volume.parent / "pod" / "environ.txt").read_text()


def test_a_sample_uses_no_caption_linked_from_outside(volume: Path) -> None:
    clip(volume / "in" / "a.mp4", None)
    (volume / "in" / "a.txt").symlink_to(volume.parent / "pod" / "environ.txt")
    assert SampleRequest(Path("in/a.mp4"), "", Path("a.mp4")).caption == ""


def test_a_link_in_place_of_a_result_is_replaced_not_followed(volume: Path) -> None:
    (volume / "result.txt").symlink_to(volume.parent / "pod" / "environ.txt")
    write_text(volume / "result.txt", "mine")
    assert not (volume / "result.txt").is_symlink()
    assert SECRET in (volume.parent / "pod" / "environ.txt").read_text()


def test_links_within_the_volume_and_in_commands_run_by_hand_are_followed(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume / "real").mkdir()
    (volume / "real" / "a.txt").write_text("x")
    (volume / "link").symlink_to("real")
    (volume / "loop").symlink_to("loop")
    assert on_volume(Path("link/a.txt")).read_text() == "x"
    assert on_volume(volume / "link" / "a.txt").read_text() == "x"
    assert on_volume(Path("missing/b.txt")) == Path("missing/b.txt")
    on_volume(Path("loop"))
    for out in ("/etc/passwd", "../pod/environ.txt", f"/proc/{os.getpid()}/environ"):
        with pytest.raises(UserError, match="out of the volume"):
            on_volume(Path(out))
    with pytest.raises(UserError):  # next to the volume, with the same prefix
        on_volume(volume.parent / "volume-2" / "a")
    monkeypatch.delenv("V2W_STAGE")
    assert on_volume(Path("/etc/passwd")) == Path("/etc/passwd")
