"""The action gate on trained models: an honest one follows, a sabotaged one does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from tiny_training import JOB, SHAPE, add_window, events
from video2world_common.action_statistics import ActionStatistics
from video2world_trainer import action_losses
from video2world_trainer.evaluation.action_gate import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")

CHECKPOINT = Path(JOB, "model", "iter_000000120.pt")
TRAINING = ["trainer.max_iter=120", "checkpoint.save_iter=120", "trainer.logging_iter=60"]
TRAINING += ["dataloader_train.batch_size=4", "optimizer.lr=0.003", "scheduler.warm_up_steps=10"]
INFERENCE = ["--", "--model_size", "Tiny", "--device", "cpu"]


def add_actions(volume, stem, rows, split):
    folder = volume / "datasets/d" / split / "actions"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"actions": rows.astype(np.float32)}, folder / f"{stem}.safetensors")


def write_dataset(volume, sabotaged):
    """Windows of one clip, in which the action alone says how the second latent frame looks."""
    random = np.random.default_rng(0)
    pattern = random.normal(size=(2, 16, 1, 4, 4))
    for split, count in (("train", 24), ("val", 8)):
        actions = random.normal(size=(count, 1, 2)).repeat(4, axis=1)
        first = random.normal(size=(count, 16, 1, 4, 4))
        second = np.einsum("nd,dcthw->ncthw", actions[:, 0], pattern)
        latents = torch.tensor(np.concatenate([first, second], axis=2), dtype=torch.float32)
        assert latents.shape[1:] == SHAPE
        lent = np.roll(actions, 7, axis=0) if sabotaged and split == "train" else actions
        for number in range(count):
            stem = f"episode_{number}_window_0"
            add_window(volume, stem, latents[number : number + 1], split)
            add_actions(volume, stem, lent[number], split)
    ones, zeros = (1.0, 1.0), (0.0, 0.0)
    statistics = ActionStatistics(
        names=("shoulder", "elbow"),
        representation="absolute",
        source="test",
        fps=10.0,
        rows=96,
        mean=zeros,
        std=ones,
        min=(-4.0, -4.0),
        max=(4.0, 4.0),
        offset=zeros,
        scale=ones,
    )
    (volume / "datasets/d/actions.json").write_text(json.dumps(statistics.to_json()))


def measure(capfd, *flags):
    capfd.readouterr()
    argv = ["--dit_path", str(CHECKPOINT), "--dataset_dir", "datasets/d"]
    code = action_losses.main([*argv, "--output", "actions.json", *flags, *INFERENCE])
    out, err = capfd.readouterr()
    return code, out + err


@pytest.mark.parametrize("sabotaged", [False, True])
def test_the_gate_tells_an_honest_model_from_one_trained_with_other_clips_actions(
    tmp_path, here, capfd, sabotaged
):
    volume = tmp_path / "v"
    write_dataset(volume, sabotaged)
    code, out = here(volume, "model.action_conditioning=per_frame", *TRAINING)
    assert code == 0, out

    code, out = measure(capfd)
    assert code == 0, out
    found = json.loads(Path("actions.json").read_text())
    assert found["followed"] is not sabotaged
    assert found["clips"] == len(found["names"]) == 8
    assert found["text"] in out
    assert {name: len(one) for name, one in found["losses"].items()} == dict.fromkeys(VARIANTS, 8)
    motion = found["motion"]
    assert motion["sequences"] == 3
    assert motion["ratio"] == pytest.approx(motion["by_actions"] / motion["by_seed"])
    if sabotaged:
        assert found["lift"] < 0.01
        assert motion["ratio"] < 0.3
        return
    assert found["low"] > 0.1
    assert found["variants"]["zeroed"]["low"] > 0.05
    assert motion["ratio"] > 0.3

    # two clips have no interval, and a model without actions is refused
    progress = events(measure(capfd, "--clips", "2")[1], "progress")
    assert progress[-1]["done"] == progress[-1]["total"]
    few = json.loads(Path("actions.json").read_text())
    assert (few["followed"], few["low"], few["clips"]) == (None, None, 2)

    config = Path(JOB, "model", "config.json")
    recorded = json.loads(config.read_text())
    del recorded["action_conditioning"]
    config.write_text(json.dumps(recorded))
    code, out = measure(capfd)
    assert code == 2
    assert "it was trained without actions, so there is nothing to follow" in out
    assert "Traceback" not in out


def test_clips_of_another_number_are_refused(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tensors({"x": torch.zeros(1)}, "x.safetensors")
    argv = ["--dit_path", "x.safetensors", "--dataset_dir", "d", "--output", "o.json"]
    assert action_losses.main([*argv, "--clips", "0"]) == 2
    assert "--clips 0: at least 1" in capfd.readouterr().err
