"""Train a tiny model on five windows: fixtures and processes for tests of the train command."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from video2world_preprocess.text.embedding_files import write_embedding
from video2world_trainer import train

SHAPE = (16, 2, 4, 4)  # 5 frames of 32x32
JOB = "checkpoints/posttraining/video2world/demo/checkpoints"
SETTINGS = [
    "model.size=Tiny",
    "job.name=demo",
    "dataloader_train.dataset.num_frames=5",
    "dataloader_train.dataset.video_size=[32,32]",
    "dataloader_train.dataset.text_length=4",
    "dataloader_train.dataset.dataset_dir=datasets/d/train",
    "trainer.logging_iter=1",
    "scheduler.warm_up_steps=5",
    "trainer.max_iter=40",
    "checkpoint.save_iter=20",
]


def add_window(volume, stem, latents, split="train"):
    folder = volume / "datasets/d" / split
    (folder / "latents").mkdir(parents=True, exist_ok=True)
    save_file(
        {"latents": latents, "starts": torch.arange(len(latents))},
        folder / "latents" / f"{stem}.safetensors",
        metadata={"geometry": "crop"},
    )
    write_embedding(folder / "t5_xxl" / f"{stem}.pickle", np.ones((2, 1024), np.float16))


@pytest.fixture
def volume(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        add_window(tmp_path / "v", f"w{number}", torch.randn((2, *SHAPE), generator=generator))
    return tmp_path / "v"


@pytest.fixture
def one_thread():
    """Compute with one thread, as the processes started by :func:`start` do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(monkeypatch, capfd):
    """The command within this process: the same, without the seconds that importing takes."""

    def call(volume, *overrides):
        monkeypatch.chdir(volume)
        capfd.readouterr()
        code = train.main(["--", *SETTINGS, *overrides])
        out, err = capfd.readouterr()
        return code, out + err

    return call


def start(volume, *overrides, ranks=1, module="torch.distributed.run"):
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += [module, "--standalone", f"--nproc_per_node={ranks}", "-m"]
    command += ["video2world_trainer.train", "--", *SETTINGS, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        cwd=volume,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def run(volume, *overrides, **settings):
    return finish(start(volume, *overrides, **settings))


def read_until(process, iteration):
    """Output of ``process`` up to its report of ``iteration``."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if any(one["iteration"] >= iteration for one in events(line, "progress")):
            return "".join(lines)
    raise AssertionError("".join(lines))


def events(out, name):
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"event"')]
    return [one for one in found if one["event"] == name]


def losses(out):
    return {one["iteration"]: one["loss"] for one in events(out, "progress")}
