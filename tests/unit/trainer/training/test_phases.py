"""Training at several frame sizes: what is refused, exact resume in every phase, the records."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tiny_training import JOB, SHAPE, events, losses, read_until, run, start
from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.dcp import read_full_tensors
from video2world_trainer.checkpoint.folder import CheckpointFolder, read_latest
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.generation.clip_format import choose_clip_format
from video2world_trainer.inference import parser
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.checkpointer import describe_run
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.phases import phase_at, phases_of

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, BOUNDARY = 7, 4
PHASES = f"trainer.phases=[[16,32,{BOUNDARY}],[32,32]]"
RUN = [PHASES, f"trainer.max_iter={LENGTH}"]
SAVED = [*RUN, "checkpoint.save_iter=1", "checkpoint.keep=0"]
BASE = ["model.size=2B", "job.name=a"]
WIDE, FULL = "dataloader_train.dataset.video_size=[432,768]", "[704,1280]"


@pytest.fixture
def volume(volume):
    """Latents of both sizes: 32x32 in latents/, 16x32 in latents_16x32/."""
    train = volume / "datasets/d/train"
    generator = torch.Generator().manual_seed(1)
    (train / "latents_16x32").mkdir()
    for path in sorted((train / "latents").iterdir()):
        clips = torch.randn((2, *SHAPE[:2], 2, 4), generator=generator)
        save_file(
            {"latents": clips, "starts": torch.arange(2)},
            train / "latents_16x32" / path.name,
            metadata={"geometry": "crop"},
        )
    return volume


def everything(volume, iteration=LENGTH):
    folder = CheckpointFolder(volume / JOB)
    return read_full_tensors(folder.shards(iteration)) | folder.load("model", iteration)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], [(0, 100_000, (704, 1280), "latents")]),
        (
            ["trainer.phases=[[432,768,700],[704,1280,300]]"],
            [(0, 700, (432, 768), "latents_432x768"), (700, 1000, (704, 1280), "latents")],
        ),
        (
            ["trainer.phases=[[432,768,700],[704,1280]]", "trainer.max_iter=1000"],
            [(0, 700, (432, 768), "latents_432x768"), (700, 1000, (704, 1280), "latents")],
        ),
        (
            ["trainer.phases=[[704,1280,10],[432,768,20],[704,1280,30]]", "trainer.max_iter=60"],
            [
                (0, 10, (704, 1280), "latents"),
                (10, 30, (432, 768), "latents_432x768"),
                (30, 60, (704, 1280), "latents"),
            ],
        ),
        (["trainer.phases=[[432,768,7]]"], [(0, 7, (432, 768), "latents")]),
    ],
)
def test_phases(settings, expected):
    config = read_config([*BASE, *settings])
    phases = phases_of(config)
    assert [(p.start, p.end, p.video_size, p.latents) for p in phases] == expected
    assert (config.max_iter, config.video_size) == (expected[-1][1], expected[-1][2])
    for phase in phases:
        assert phase.tokens_per_clip == math.prod(phase.latent_shape[1:]) // 4
        assert phase_at(phases, phase.start) == phase_at(phases, phase.end - 1) == phase
    assert phase_at(phases, config.max_iter) == phases[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.phases=432x768"], "this must be [[height,width,iterations],...]"),
        (["trainer.phases=[[432,768],[704,1280,3]]"], "this must be [[height,width"),
        (["trainer.phases=[[432,768.5,1],[704,1280,3]]"], "this must be [[height,width"),
        (["trainer.phases=[[432,768,0],[704,1280,3]]"], "phase 1, [432, 768, 0]: every number"),
        (["trainer.phases=[[432,760,1],[704,1280,3]]"], "phase 1, [432, 760, 1]: height and width"),
        (["trainer.phases=[[432,768,1],[432,768,3]]"], "phases 1 and 2 have the same size"),
        (
            ["trainer.phases=[[432,768,700],[704,1280,300]]", "trainer.max_iter=900"],
            "trainer.max_iter=900: the iterations of trainer.phases add up to 1000",
        ),
        (
            ["trainer.phases=[[432,768,700],[704,1280]]", "trainer.max_iter=700"],
            "none is left for the last; raise it above 700",
        ),
        (
            ["trainer.phases=[[432,768,7],[704,1280,3]]", WIDE],
            f"contradicts trainer.phases, which ends at {FULL.replace(',', ', ')}: leave it out",
        ),
    ],
)
def test_invalid_phases_are_refused(settings, message):
    with pytest.raises(UserError) as caught:
        read_config([*BASE, *settings])
    assert message in str(caught.value)


def test_sparse_attention_needs_a_pattern_at_every_size(here, volume):
    code, out = here(
        volume,
        "model.size=2B",
        "model.attention_pattern=sparse",
        "dataloader_train.dataset.video_size=[704,1280]",
        "dataloader_train.dataset.num_frames=93",
        "trainer.phases=[[432,768,2],[704,1280,2]]",
        "trainer.max_iter=4",
    )
    assert code == 2, out
    assert "sparse attention exists for frames of 704x1280 only" in out


def test_latents_of_one_size_only_are_refused_before_the_first_step(here, volume):
    shutil.rmtree(volume / "datasets/d/train/latents_16x32")
    code, out = here(volume, *RUN)
    assert code == 2, out
    assert "no window to train on in latents_16x32" in out
    assert "also with --video_size 16 32" in out
    assert not losses(out)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("architecture", "points"),
    [
        ("base", (LENGTH - 1, BOUNDARY + 1, BOUNDARY, BOUNDARY - 1, 1)),
        ("lora", (BOUNDARY + 1, BOUNDARY, BOUNDARY - 1)),
    ],
)
def test_a_run_resumes_exactly_in_every_phase(here, volume, architecture, points):
    setting = f"model.config.train_architecture={architecture}"
    code, out = here(volume, *SAVED, setting)
    assert code == 0, out
    whole, expected = losses(out), everything(volume)
    shown = {one["iteration"]: one["phase"] for one in events(out, "progress")}
    assert shown[BOUNDARY] == "1/2 at 16x32"
    assert shown[BOUNDARY + 1] == "2/2 at 32x32"
    for reached in points:
        CheckpointFolder(volume / JOB).delete_after(reached)
        code, again = here(volume, *RUN, setting)
        assert code == 0, again
        assert f"resuming from iteration {reached}" in again
        assert losses(again) == {k: v for k, v in whole.items() if k > reached}
        assert equal(everything(volume), expected)


@pytest.mark.slow
@pytest.mark.parametrize("at", [BOUNDARY - 2, BOUNDARY])
def test_a_killed_run_resumes_exactly(here, volume, at):
    _, out = here(volume, *RUN, "job.name=whole")
    process = start(volume, *SAVED)
    first = read_until(process, at)
    process.kill()
    process.communicate()
    code, second = run(volume, *RUN)
    assert code == 0, second
    assert losses(first) | losses(second) == losses(out)


@pytest.mark.slow
def test_ranks_that_share_clips_train_alike(here, volume):
    _, alone = here(volume, *RUN, "job.name=alone")
    two = ["model_parallel.context_parallel_size=2", "model.config.fsdp_shard_size=2"]
    code, out = run(volume, *RUN, *two, ranks=2)
    assert code == 0, out
    assert list(losses(out).values()) == pytest.approx(list(losses(alone).values()), rel=2e-3)


def test_a_phase_trains_as_a_run_at_its_size_does(here, volume):
    """The data position is kept: the second phase continues the first one's epoch."""
    _, out = here(volume, *RUN)
    small = [
        "dataloader_train.dataset.video_size=[16,32]",
        "dataloader_train.dataset.dataset_dir=datasets/small/train",
        f"trainer.max_iter={BOUNDARY}",
        "job.name=small",
    ]
    other = volume / "datasets/small/train"
    other.mkdir(parents=True)
    (other / "latents").symlink_to(volume / "datasets/d/train/latents_16x32")
    (other / "t5_xxl").symlink_to(volume / "datasets/d/train/t5_xxl")
    _, alone = here(volume, *small)
    assert losses(alone) == {k: v for k, v in losses(out).items() if k <= BOUNDARY}


def test_the_moving_average_restarts_with_each_phase(here, volume):
    here(volume, *SAVED)
    for iteration in range(1, LENGTH + 1):
        folder = CheckpointFolder(volume / JOB)
        weights = folder.load("model", iteration)
        average, own = (
            {name.removeprefix(part): one for name, one in weights.items() if part in name}
            for part in ("net_ema.", "net.")
        )
        names = own.keys() & average.keys()
        assert names
        restarted = iteration in (1, BOUNDARY + 1)
        same = all(torch.equal(average[name].bfloat16(), own[name]) for name in names)
        assert same is restarted


def test_checkpoints_record_the_phases_and_a_run_can_be_made_longer(here, volume):
    here(volume, *RUN)
    record = json.loads((volume / JOB / "model/config.json").read_text())
    phases = [{"video_size": [16, 32], "until": BOUNDARY}, {"video_size": [32, 32]}]
    assert record["phases"] == record["run"]["phases"] == phases
    assert record["video_size"] == [32, 32]
    for other in ([], ["trainer.phases=[[16,32,3],[32,32]]"], ["trainer.phases=[[32,32]]"]):
        code, out = here(volume, f"trainer.max_iter={LENGTH}", *other)
        assert code == 2, out
        assert "phases is" in out
        assert "Choose another job.name" in out
    longer = f"trainer.phases=[[16,32,{BOUNDARY}],[32,32,{LENGTH}]]"
    code, out = here(volume, longer, f"trainer.max_iter={BOUNDARY + LENGTH}")
    assert code == 0, out
    assert f"resuming from iteration {LENGTH}" in out
    assert read_latest(volume / JOB) == BOUNDARY + LENGTH


def test_videos_are_encoded_at_each_phases_size(here, volume):
    """Without precomputed latents, the same videos are read at both sizes."""
    train = volume / "datasets/d/train"
    TransformVAE().save_pretrained(volume / "vae")
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (6, 40, 48, 3), np.uint8)
        write_video(train / "videos" / f"w{number}.mp4", frames, 16)
    shutil.rmtree(train / "latents")
    shutil.rmtree(train / "latents_16x32")
    encode = ["dataloader_train.dataset.encode=true", "model.config.vae_path=vae"]
    code, out = here(volume, *SAVED, *encode)
    assert code == 0, out
    assert list(losses(out)) == list(range(1, LENGTH + 1))
    CheckpointFolder(volume / JOB).delete_after(BOUNDARY - 1)
    code, again = here(volume, *RUN, *encode)
    assert code == 0, again
    assert losses(again) == {k: v for k, v in losses(out).items() if k >= BOUNDARY}


@pytest.mark.parametrize(
    ("flags", "size", "noted"),
    [
        ([], (704, 1280), False),
        (["--resolution", "720"], (704, 1280), False),
        (["--resolution", "480"], (432, 768), False),  # of the first phase
        (["--resolution", "480", "--aspect_ratio", "1:1"], (704, 1280), True),
    ],
)
def test_inference_uses_the_final_size_unless_asked_for_another_phases(
    tmp_path, capsys, flags, size, noted
):
    config = read_config([*BASE, "trainer.phases=[[432,768,700],[704,1280,300]]"])
    (tmp_path / "config.json").write_text(json.dumps(describe_run(config)))
    run = RunConfig.read(tmp_path / "config.json")
    args = parser().parse_args(["--model_size", "2B", *flags])
    assert choose_clip_format(args, PRESETS["2B"], run, tmp_path, 1).size == size
    assert ("the checkpoint decides the size" in capsys.readouterr().out) == noted
