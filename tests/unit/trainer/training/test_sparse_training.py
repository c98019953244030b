"""Training with sparse attention: exact resume, every layout of ranks, and what inference obeys."""

import json

import pytest
import torch

from tiny_training import JOB, add_window, losses, run
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.run_config import RunConfig, attention_pattern

SPARSE = "model.attention_pattern=sparse"
CLIP = ["dataloader_train.dataset.video_size=[96,128]", "dataloader_train.dataset.num_frames=5"]


@pytest.fixture
def volume(tmp_path):
    """Latents large enough that windows do not cover the frame: 2 x 6 x 8 tokens."""
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        add_window(tmp_path, f"w{number}", torch.randn((2, 16, 2, 12, 16), generator=generator))
    return tmp_path


def weights(volume, iteration, job="demo"):
    return CheckpointFolder(volume / JOB.replace("demo", job)).load("model", iteration)


def test_a_resumed_run_is_exactly_the_uninterrupted_one(here, volume):
    code, out = here(volume, SPARSE, *CLIP, "trainer.max_iter=6", "job.name=whole")
    assert code == 0, out
    assert "sparse attention masked" in out
    here(volume, SPARSE, *CLIP, "trainer.max_iter=3")
    code, second = here(volume, SPARSE, *CLIP, "trainer.max_iter=6")
    assert code == 0, second
    assert "resuming from iteration 3" in second
    expected = weights(volume, 6, "whole")
    assert all(torch.equal(one, expected[name]) for name, one in weights(volume, 6).items())
    _, dense = here(volume, *CLIP, "trainer.max_iter=6", "job.name=dense")
    assert losses(dense)[1] != losses(out)[1]


def test_the_pattern_belongs_to_the_run(here, volume):
    here(volume, SPARSE, *CLIP, "trainer.max_iter=1")
    record = json.loads((volume / JOB / "model/config.json").read_text())
    assert record["attention_pattern"] == "sparse"
    code, out = here(volume, *CLIP, "trainer.max_iter=2")
    assert code == 2, out
    assert "attention_pattern" in out
    start = f"model.config.model_manager_config.dit_path={JOB}/model/iter_000000001.pt"
    code, out = here(volume, *CLIP, start, "job.name=next", "trainer.max_iter=1")
    assert code == 2, out
    assert "was trained with sparse attention; set model.attention_pattern=sparse" in out
    code, out = here(volume, SPARSE, *CLIP, start, "job.name=next", "trainer.max_iter=1")
    assert code == 0, out


def test_adapters_are_trained_with_it(here, volume):
    lora = ["model.config.train_architecture=lora", "trainer.max_iter=2", "job.name=lora"]
    code, out = here(volume, SPARSE, *CLIP, *lora)
    assert code == 0, out
    record = json.loads((volume / JOB.replace("demo", "lora") / "model/config.json").read_text())
    assert (record["architecture"], record["attention_pattern"]) == ("lora", "sparse")


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_ranks_that_share_clips_or_shards_train_alike(here, volume, context):
    one = [] if context == 2 else ["dataloader_train.batch_size=2"]  # the same clips a step
    _, alone = here(volume, SPARSE, *CLIP, "trainer.max_iter=3", "job.name=alone", *one)
    two = [f"model_parallel.context_parallel_size={context}", "model.config.fsdp_shard_size=2"]
    code, out = run(volume, SPARSE, *CLIP, "trainer.max_iter=3", *two, ranks=2)
    assert code == 0, out
    assert list(losses(out).values()) == pytest.approx(list(losses(alone).values()), rel=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.size=2B", "dataloader_train.dataset.video_size=[432,768]"],
            "for frames of 704x1280 only",
        ),
        (
            [
                "model.size=2B",
                "dataloader_train.dataset.video_size=[704,1280]",
                "dataloader_train.dataset.num_frames=9",
            ],
            "its 3 latent frames do not divide",
        ),
        (
            ["model.config.pipe_config.net.atten_backend=torch"],
            "this kernel has no sparse attention",
        ),
        (["model.attention_pattern=sometimes"], "model.attention_pattern"),
    ],
)
def test_what_cannot_be_sparse_is_refused(here, volume, settings, message):
    code, out = here(volume, SPARSE, *settings)
    assert code == 2, out
    assert message in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("name", "recorded", "expected"),
    [
        ("model-720p-16fps.pt", None, "dense"),
        ("model-720p-16fps-natten.pt", None, "sparse"),
        ("somebodys.pt", None, None),
        ("iter_000000010.pt", "sparse", "sparse"),
        ("model-720p-16fps-natten.pt", "dense", "dense"),  # a run's record counts
    ],
)
def test_how_weights_were_trained(tmp_path, name, recorded, expected):
    assert attention_pattern(tmp_path / name, RunConfig(attention_pattern=recorded)) == expected
