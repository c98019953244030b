"""Whatever is edited between runs, the data set is that of a fresh run on the same inputs.

The three stages that make a data set run in this process, as in their pods: skipped by their
records, in one folder through random edits, broken off now and then; and once for each state of
the inputs in a folder of its own.
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
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from safetensors import safe_open

from video2world_preprocess import embeddings, files, latents, videos
from video2world_preprocess.pickles import read_embedding
from video2world_preprocess.tiny_weights import write_tiny_t5
from video2world_preprocess.transform_vae import TransformVAE
from video2world_preprocess.video import write_video

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
    """Videos of several lengths, and weights."""
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
            "--videos_dir", "in", "--dataset_dir", "data", "--min_frames", "10", "--workers", "1",
            "--window-size", str(chosen["seconds"]), "--min-last-window", "3",
            *(["--val_names", chosen["held"]] if chosen["held"] else []),
        ],
        "embeddings": [
            *folders, "--cache_dir", str(stock() / "t5"), "--device", "cpu",
            "--max_length", str(chosen["length"]),
        ],
        "latents": [
            *folders, "--vae_path", str(stock() / "vae"), "--num_frames", "9", "--device", "cpu",
            "--video_size", "16", "16", "--seed", str(chosen["seed"]),
            "--clips_per_window", str(chosen["clips"]),
        ],
    }[stage]  # fmt: skip


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
    """Run the stages as an engine does, with hashes as the plan makes them."""
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
    """Everything that others read of a data set; embeddings up to rounding."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("data/*/*/[!.]*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pickle":
            embedding = read_embedding(path).astype(np.float32)
            found[name] = (embedding.shape, round(float(np.abs(embedding).mean()), 2))
        elif path.suffix == ".safetensors":  # whose metadata are in no order
            with safe_open(path, "pt") as file:
                tensors = [file.get_tensor(key).numpy().tobytes() for key in ("latents", "starts")]
                found[name] = (file.metadata(), hashlib.sha256(b"".join(tensors)).hexdigest())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@functools.cache
def fresh(inputs: str, chosen: str) -> tuple[int, dict[str, object]]:
    """Exit code and content of a first run on these inputs with these settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(folder, json.loads(inputs))
        return run(folder, json.loads(chosen)), content(folder)


def put(folder: Path, inputs: dict[str, list]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for stem, (frames, caption) in inputs.items():
        shutil.copy(stock() / f"{frames}.mp4", folder / f"in/{stem}.mp4")
        (folder / f"in/{stem}.txt").write_text(caption)


class Edits(RuleBasedStateMachine):
    """One folder through edits and runs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.inputs: dict[str, list] = {"a": [43, CAPTIONS[0]], "b": [64, CAPTIONS[1]]}
        self.chosen: dict = {name: values[0] for name, values in SETTINGS.items()}
        put(self.folder, self.inputs)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def first(self) -> None:
        self.run()

    @rule(stem=st.sampled_from("abc"), frames=st.sampled_from(LENGTHS))
    def add_or_replace_a_video(self, stem: str, frames: int) -> None:
        caption = self.inputs.get(stem, [0, CAPTIONS[0]])[1]
        self.inputs[stem] = [frames, caption]
        put(self.folder, {stem: self.inputs[stem]})

    @rule(stem=st.sampled_from("bc"))
    def remove_a_video(self, stem: str) -> None:
        if stem in self.inputs and self.chosen["held"] != stem:
            del self.inputs[stem]
            for suffix in ("mp4", "txt"):
                (self.folder / f"in/{stem}.{suffix}").unlink()

    @rule(stem=st.sampled_from("abc"), caption=st.sampled_from(CAPTIONS))
    def correct_a_caption(self, stem: str, caption: str) -> None:
        if stem in self.inputs:
            self.inputs[stem][1] = caption
            (self.folder / f"in/{stem}.txt").write_text(caption)

    @rule(change=st.sampled_from([(name, v) for name, vs in SETTINGS.items() for v in vs]))
    def change_a_setting(self, change: tuple) -> None:
        if change != ("held", "b") or "b" in self.inputs:
            self.chosen[change[0]] = change[1]

    @rule(number=st.integers(0, 200))
    def delete_an_output(self, number: int) -> None:
        made = sorted(self.folder.glob("data/*/*/[!.]*"))
        if made:
            made[number % len(made)].unlink()

    @rule(change=st.sampled_from([("held", "b"), ("seconds", 3.0), ("seconds", 90.0), ("clips", 2),
                                  ("length", 4)]), writes=st.integers(0, 25))  # fmt: skip
    def try_another_setting_and_break_off(self, change: tuple, writes: int) -> None:
        if change[1] != "b" or "b" in self.inputs:
            self.broken_off(self.chosen | dict([change]), writes)

    @rule(writes=st.integers(0, 12))
    def break_off(self, writes: int) -> None:
        self.broken_off(self.chosen, writes)

    def broken_off(self, chosen: dict, writes: int) -> None:
        """End as by SIGTERM, once so many files have appeared."""
        real, left = files.sync_folder, iter(range(writes))

        def sync(folder: Path) -> None:
            real(folder)
            if next(left, None) is None:
                raise SystemExit(143)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(files, "sync_folder", sync)
            run(self.folder, chosen)

    @rule()
    def run(self) -> None:
        code, wanted = fresh(json.dumps(self.inputs), json.dumps(self.chosen))
        assert run(self.folder, self.chosen) == code
        if code == 0:
            assert content(self.folder) == wanted


@pytest.mark.slow
def test_a_run_after_any_edits_is_as_a_fresh_one() -> None:
    run_state_machine_as_test(
        Edits,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=12, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck), print_blob=False,
        ),
    )  # fmt: skip


EXAMPLES = int(os.environ.get("V2W_EDIT_EXAMPLES", "12"))
