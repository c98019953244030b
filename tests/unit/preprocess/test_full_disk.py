"""Tests for a disk that fills up in the middle of a write, for every kind of file on the volume.

The disk is really full: a small file system, or a file size limit that the kernel enforces.
"""

import errno
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from video2world_common.files import write_text
from video2world_common.sharding import Shard
from video2world_preprocess import latents
from video2world_preprocess.actions.layout import ActionLayout, Column, Track
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.archives.archive import local_archive
from video2world_preprocess.archives.extract import Extraction
from video2world_preprocess.dataset.records import Clip, Record, read_record, write_record
from video2world_preprocess.dataset.source import OneCaption, Source
from video2world_preprocess.dataset.window_actions import write_actions
from video2world_preprocess.stage_report import Report
from video2world_preprocess.text.embedding_files import read_embedding, write_embedding
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.reader import read_frames
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.folder import PARTS, CheckpointFolder, read_latest
from video2world_trainer.generation.contact_sheet import write_contact_sheet

NOISE = np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3), dtype=np.uint8)


def extract(folder, episode):
    data = np.random.default_rng(1).bytes(400_000)
    archive = folder.parent / "a.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(f"{episode}/videos/head.mp4")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    Extraction(
        [local_archive(archive, "a.tar")],
        folder.parent / "state",
        "head",
        lambda member: folder / f"{member.episode}.mp4",
        lambda *_: True,
        Shard(),
    ).run("dataset")


class WideActions:
    """Actions of 100 numbers, too large for the disk."""

    description = "drawn"
    layout = ActionLayout.of(
        ActionSelection(("action",)), [Column.of("action", [f"joint_{n}" for n in range(100)])]
    )

    def batches(self, sources):
        return [[source] for source in sources]

    def tracks(self, sources):
        for source in sources:
            yield source, Track(np.ones((1000, 100)), None, "rows")


WRITERS = {
    "text": lambda folder: write_text(folder / "a.txt", "x" * 400_000),
    "archive": lambda folder: extract(folder, "1"),
    "video": lambda folder: write_video(folder / "a.mp4", NOISE, 10),
    "embedding": lambda folder: write_embedding(folder / "a.pickle", np.ones((400, 1024))),
    "contact sheet": lambda folder: write_contact_sheet(folder / "a.png", {"n": NOISE}, 10),
    "checkpoint": lambda folder: CheckpointFolder(folder).save(
        7, {part: {"t": torch.randn(15_000)} for part in PARTS}
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_not_left_behind(small_disk, kind):
    disk = small_disk(100)
    write = WRITERS[kind]
    (disk / "before").write_text("kept")
    with pytest.raises(OSError, match="No space left") as caught:
        write(disk)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.startswith(str(disk))
    assert not list(disk.rglob(".partial-*"))
    whole = [path.name for path in disk.rglob("*") if path.is_file()]
    assert sorted(whole) == sorted(["before"] + (["iter_000000007.pt"] if len(whole) > 1 else []))
    assert read_latest(disk) is None
    small_disk(4000)
    write(disk)
    assert len([path for path in disk.rglob("*") if path.is_file()]) > 1


def test_actions_that_do_not_fit_end_the_stage_and_are_written_later(small_disk):
    disk = small_disk(100)
    clips = [Clip("window", 0, 1000, 1, False)]
    write_record(disk, "episode", Record("c", "t", fps=10.0, frames=1000, clips=clips))
    source = Source("episode", "episode", disk, "train", OneCaption("c"), "o", actions="d")
    with pytest.raises(OSError, match="No space left") as caught:
        write_actions(disk, [source], WideActions(), 2, Report("dataset"))
    assert caught.value.filename.endswith("train/actions/window.safetensors")
    assert read_record(disk, "episode").names == ["window"]  # it is no fault of the episode
    small_disk(4000)
    assert write_actions(disk, [source], WideActions(), 2, Report("dataset")) == 0
    assert read_record(disk, "episode").moments["rows"] == 999


def test_latents_stage(small_disk, capfd, monkeypatch):
    disk = small_disk(300)
    monkeypatch.chdir(disk.parent)
    monkeypatch.delenv("V2W_INPUTS_HASH", raising=False)
    TransformVAE().save_pretrained("vae")
    for number in range(3):
        write_video(f"D/train/videos/w{number}.mp4", NOISE, 16)
    (disk / "fill").write_bytes(b"x" * 150_000)
    (disk.parent / "D/train/latents").symlink_to(disk)
    # the stage's own check of free space is not sufficient if something else writes
    monkeypatch.setattr(latents, "_check_space", lambda *_: None)
    command = [
        "--dataset_path",
        "D/train",
        "--vae_path",
        "vae",
        "--num_frames",
        "9",
        "--video_size",
        "64",
        "64",
        "--clips_per_window",
        "8",
    ]
    assert latents.main(command) == 1
    error = capfd.readouterr().err
    assert "the volume is full while writing D/train/latents/w" in error
    assert "raise spec.storage.size" in error
    made = [path.name for path in disk.glob("*.safetensors")]
    assert "w0.safetensors" in made
    assert len(made) < 3
    small_disk(4000)
    assert latents.main(command) == 0
    out = capfd.readouterr().out
    assert f'"kept": {len(made)}' in out
    assert len(list(disk.glob("*.safetensors"))) == 3


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from video2world_trainer.checkpoint.folder import PARTS, CheckpointFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = CheckpointFolder(Path(sys.argv[1]))
small = {part: {"t": torch.zeros(1000)} for part in PARTS}
folder.save(1, small)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    folder.save(2, small | {"optim": {"t": torch.zeros(100_000)}})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_checkpoint_at_the_file_size_limit(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == [str(errno.EFBIG), str(tmp_path / "optim/iter_000000002.pt")]
    folder = CheckpointFolder(tmp_path)
    assert folder.latest_complete() == 1
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.slow
def test_training_keeps_its_last_checkpoint_and_resumes_with_enough_space(small_disk):
    disk = small_disk(100_000)
    volume = disk.parent
    (volume / "checkpoints").symlink_to(disk)
    folder = volume / "datasets/d/train"
    (folder / "latents").mkdir(parents=True)
    for number in range(2):
        write_embedding(folder / f"t5_xxl/w{number}.pickle", np.ones((2, 1024), np.float16))
        content = {"latents": torch.randn(1, 16, 2, 4, 4), "starts": torch.zeros(1).long()}
        save_file(content, folder / f"latents/w{number}.safetensors", metadata={"geometry": "crop"})
    command = [
        sys.executable,
        "-m",
        "video2world_trainer.train",
        "--",
        "model.size=Tiny",
        "job.name=full",
        "dataloader_train.dataset.dataset_dir=datasets/d/train",
        "dataloader_train.dataset.num_frames=5",
        "dataloader_train.dataset.video_size=[32,32]",
        "dataloader_train.dataset.text_length=4",
        "trainer.logging_iter=1",
        "trainer.max_iter=4",
        "checkpoint.save_iter=1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def train():
        return subprocess.run(
            command, cwd=volume, env=environment, capture_output=True, text=True, check=False
        )

    first = train()
    assert first.returncode == 1, first.stdout + first.stderr
    assert "the volume is full while writing checkpoints/" in first.stderr
    assert "Traceback" not in first.stderr
    failed = json.loads(first.stdout.splitlines()[-1])
    assert (failed["event"], failed["reason"]) == ("failed", "IOError")
    run = CheckpointFolder(next(disk.glob("*/*/full/checkpoints")))
    saved = run.latest_complete()
    assert 1 <= saved < 4
    assert read_latest(run.folder) == saved
    small_disk(400_000)
    second = train()
    assert second.returncode == 0, second.stderr
    assert f"resuming from iteration {saved} to 4" in second.stdout
    assert run.latest_complete() == 4


def test_frames_survive_a_round_trip(tmp_path):
    """The writers above succeed with enough space, so that their failure is due to the disk."""
    for write in WRITERS.values():
        write(tmp_path)
    assert read_frames(tmp_path / "a.mp4").shape == NOISE.shape
    assert read_embedding(tmp_path / "a.pickle").shape == (400, 1024)
    assert CheckpointFolder(tmp_path).latest_complete() == 7


@pytest.mark.slow
def test_the_local_engine_reports_it_as_worth_another_attempt(small_disk):
    disk = small_disk(400)
    file = disk.parent / "full.yaml"
    file.write_text(
        "apiVersion: video2world.dev/v1alpha1\nkind: Video2WorldPostTrain\n"
        "metadata: {name: full}\nspec: {model: {size: Tiny}, training: {iterations: 1}, "
        "dataset: {videos: {path: my-videos}}}\n"
    )
    engine = [sys.executable, "-m", "video2world_operator.cli", "run", "-f", file]

    def run():
        return subprocess.run(
            [*engine, "--volume", disk], capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 1, first.stdout + first.stderr
    assert "error: the volume is full while writing" in first.stdout
    assert "download-1-0.log" in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    small_disk(100_000)
    second = run()
    assert "download    done" in second.stdout
    assert second.returncode == 2  # the next stage runs, and finds no videos
    assert "my-videos" in second.stdout
