"""Tests that after any edits and runs, the dataset equals that of a fresh run on the same inputs.

The three stages that create a dataset run in this process as in their pods: in one folder, skipped
according to their records, with random edits and interruptions; and in a new folder for each state
of the inputs, for comparison.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from video2world_common import files
from video2world_preprocess import embeddings, latents, videos
from video2world_preprocess.text.embedding_files import read_embedding
from video2world_preprocess.tiny_weights import write_tiny_t5
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.writer import write_video

torch.set_num_threads(1)

STAGES = {"dataset": videos, "embeddings": embeddings, "latents": latents}
SETTINGS = {
    "held": ["", "a", "b"],  # the video for validation
    "seconds": [2.0, 3.0, 90.0],  # the last leaves no window: the run fails
    "clips": [1, 2],
    "seed": [0, 1],
    "length": [512, 4],
}
CAPTIONS = ["the arm picks a cup", "the arm places a cup"]
LENGTHS = [20, 43, 64]


@functools.cache
def stock() -> Path:
    """Create videos of several lengths, and weights."""
    folder = Path(tempfile.mkdtemp())
    y, x = np.mgrid[0:32, 0:32]
    for frames in LENGTHS:
        pixels = np.stack([np.stack([x * 4 + t, y * 5, x + y], -1) for t in range(frames)])
        write_video(folder / f"{frames}.mp4", (pixels % 256).astype(np.uint8), 10)
    write_tiny_t5(folder / "t5")
    TransformVAE().save_pretrained(folder / "vae")
    return folder


def argv(stage: str, chosen: dict) -> list[str]:
    folders = ["--dataset_path", "data/train", "data/val"]
    return {
        "dataset": [
            "--videos_dir",
            "in",
            "--dataset_dir",
            "data",
            "--min_frames",
            "10",
            "--workers",
            "1",
            "--window-size",
            str(chosen["seconds"]),
            "--min-last-window",
            "3",
            *(["--val_names", chosen["held"]] if chosen["held"] else []),
        ],
        "embeddings": [
            *folders,
            "--cache_dir",
            str(stock() / "t5"),
            "--device",
            "cpu",
            "--max_length",
            str(chosen["length"]),
        ],
        "latents": [
            *folders,
            "--vae_path",
            "vae",
            "--num_frames",
            "9",
            "--device",
            "cpu",
            "--video_size",
            "16",
            "16",
            "--seed",
            str(chosen["seed"]),
            "--clips_per_window",
            str(chosen["clips"]),
        ],
    }[stage]


@contextlib.contextmanager
def at(folder: Path, **env: str) -> Iterator[None]:
    before, variables = Path.cwd(), {f"V2W_{name}": value for name, value in env.items()}
    os.chdir(folder)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.chdir(before)
        for name in variables:
            del os.environ[name]


def run(folder: Path, chosen: dict, stages: dict = STAGES) -> int:
    """Run the stages as an engine does, with hashes of their settings as in the plan."""
    needs = ""
    for stage, command in stages.items():
        flags = argv(stage, chosen)
        digest = hashlib.sha256(json.dumps([flags, needs]).encode()).hexdigest()[:16]
        needs = needs or digest
        with at(folder, STAGE=stage, RESOURCE="run", INPUTS_HASH=digest):
            if code := command.main(flags):
                return int(code)
    return 0


def content(folder: Path) -> dict[str, object]:
    """Return all that others read of a dataset; embeddings are rounded."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("data/*/*/[!.]*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pickle":
            embedding = read_embedding(path).astype(np.float32)
            found[name] = (embedding.shape, round(float(np.abs(embedding).mean()), 2))
        elif path.suffix == ".safetensors":  # its metadata are unordered
            with safe_open(path, "pt") as file:
                tensors = [file.get_tensor(key).numpy().tobytes() for key in ("latents", "starts")]
                found[name] = (file.metadata(), hashlib.sha256(b"".join(tensors)).hexdigest())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@functools.cache
def fresh(inputs: str, chosen: str) -> tuple[int, dict[str, object]]:
    """Return exit code and content of a first run on these inputs with these settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(stock() / "vae", folder / "vae")
        put(folder, json.loads(inputs))
        return run(folder, json.loads(chosen)), content(folder)


def put(folder: Path, inputs: dict[str, list]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for stem, (frames, caption) in inputs.items():
        shutil.copy(stock() / f"{frames}.mp4", folder / f"in/{stem}.mp4")
        (folder / f"in/{stem}.txt").write_text(caption)


STEMS, KNOBS = st.sampled_from("abc"), [(name, v) for name, vs in SETTINGS.items() for v in vs]
WRITES = st.integers(0, 25)  # files that are written before a run is interrupted
EDITS = st.one_of(
    st.tuples(st.just("video"), STEMS, st.sampled_from(LENGTHS)),
    st.tuples(st.just("remove"), STEMS),
    st.tuples(st.just("caption"), STEMS, st.sampled_from(CAPTIONS)),
    st.tuples(st.just("setting"), st.sampled_from(KNOBS)),
    st.tuples(st.just("delete"), st.integers(0, 1000)),
    st.tuples(st.just("break_off"), WRITES),
    st.tuples(st.just("try_and_break_off"), st.sampled_from(KNOBS), WRITES),
)


class Edited:
    """A folder that is edited and processed in any order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: dict[str, list] = {"a": [43, CAPTIONS[0]], "b": [64, CAPTIONS[1]]}
        self.chosen: dict = {name: values[0] for name, values in SETTINGS.items()}
        shutil.copytree(stock() / "vae", folder / "vae")
        put(folder, self.inputs)

    def video(self, stem: str, frames: int) -> None:
        self.inputs[stem] = [frames, self.inputs.get(stem, [0, CAPTIONS[0]])[1]]
        put(self.folder, {stem: self.inputs[stem]})

    def remove(self, stem: str) -> None:
        if self.inputs.pop(stem, None):
            for suffix in ("mp4", "txt"):
                (self.folder / f"in/{stem}.{suffix}").unlink()

    def caption(self, stem: str, caption: str) -> None:
        if stem in self.inputs:
            self.inputs[stem][1] = caption
            (self.folder / f"in/{stem}.txt").write_text(caption)

    def setting(self, knob: tuple) -> None:
        self.chosen |= dict([knob])

    def delete(self, number: int) -> None:
        made = sorted(self.folder.glob("data/*/*/[!.]*"))
        if made:
            made[number % len(made)].unlink()

    def try_and_break_off(self, knob: tuple, writes: int) -> None:
        self.break_off(writes, self.chosen | dict([knob]))

    def break_off(self, writes: int, chosen: dict | None = None) -> None:
        """End a run as SIGTERM does, after so many files have been written."""
        real, left = files.sync_folder, iter(range(writes))

        def sync(folder: Path) -> None:
            real(folder)
            if next(left, None) is None:
                raise SystemExit(143)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(files, "sync_folder", sync)
            run(self.folder, chosen or self.chosen)

    def check(self) -> None:
        code, wanted = fresh(json.dumps(self.inputs), json.dumps(self.chosen))
        assert run(self.folder, self.chosen) == code
        if code == 0:
            assert content(self.folder) == wanted


@pytest.mark.slow
@settings(
    max_examples=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(rounds=st.lists(st.lists(EDITS, min_size=1, max_size=3), min_size=3, max_size=8))
@example(rounds=[[("setting", ("held", held))] for held in ("a", "b", "a")])
@example(rounds=[[("setting", ("seconds", seconds))] for seconds in (3.0, 2.0, 90.0, 2.0)])
@example(rounds=[[("video", "c", 43), ("break_off", 3), ("remove", "c")]])
@example(rounds=[[("setting", ("seed", seed))] for seed in (1, 0)])
@example(rounds=[[("try_and_break_off", ("held", "a"), 5)]])
def test_a_run_after_any_edits_equals_a_fresh_one(rounds: list[list[tuple]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        edited = Edited(Path(name))
        edited.check()
        for edits in rounds:
            for what, *values in edits:
                getattr(edited, what)(*values)
            edited.check()
