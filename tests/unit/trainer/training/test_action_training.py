"""Training with actions: data and clips line up, runs resume exactly, mistakes are refused."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tiny_actions import ACTIONS, add_actions, statistics, write_actions, write_statistics
from tiny_training import (
    JOB,
    SETTINGS,
    SHAPE,
    add_window,
    events,
    losses,
    read_until,
    run,
    start,
)
from video2world_common.exit_codes import UserError
from video2world_preprocess.latents import clip_starts
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.dcp import read_full_tensors
from video2world_trainer.checkpoint.folder import CheckpointFolder, read_latest
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.checkpoint.run_config import RunConfig, actions_of
from video2world_trainer.distributed.process_group import World
from video2world_trainer.evaluation.base_weights import initial_weights
from video2world_trainer.training.checkpointer import describe_run
from video2world_trainer.training.clip_losses import ClipLosses, evaluations
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.dataset import LatentDataset, VideoDataset, collate
from video2world_trainer.training.loss import NoiseDistribution, NoiseSample, training_loss
from video2world_trainer.training.network import build_network, initial_weights_path
from video2world_trainer.training.run_actions import actions_of_run

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["trainer.max_iter=6", "checkpoint.save_iter=3"]
PER_CLIP = ["model.action_conditioning=per_clip", "dataloader_train.dataset.num_frames=13"]
DIT = "model.config.model_manager_config.dit_path="


@pytest.fixture
def acted(volume):
    add_actions(volume)
    return volume


def checkpoint(volume, iteration, job="demo"):
    return CheckpointFolder(volume / JOB.replace("demo", job)).load("model", iteration)


# --------------------------------------------------------------------- clips and actions


def known_trajectory(volume, frames=20):
    """A window whose action row k is k, and whose clips' latents have their first frame."""
    starts = clip_starts("w", frames, 5, 4, seed=0)
    folder = volume / "datasets/d/train"
    (folder / "latents").mkdir(parents=True)
    latents = torch.tensor(starts).float().view(-1, 1, 1, 1, 1).expand(-1, *SHAPE).contiguous()
    save_file(
        {"latents": latents, "starts": torch.tensor(starts)},
        folder / "latents/w.safetensors",
        metadata={"geometry": "crop", "source_frames": str(frames), "num_frames": "5"},
    )
    write_actions(volume, "w", torch.arange(frames - 1.0).view(-1, 1))
    return folder


def open_dataset(folder, kind=LatentDataset, **settings):
    known = {"shape": SHAPE, "geometry": "crop", "text_length": 0}
    return kind(folder, **known | {"actions": statistics(["k"])} | settings)


def test_a_clip_has_the_rows_between_its_frames(tmp_path):
    dataset = open_dataset(known_trajectory(tmp_path))
    for clip in range(4):
        sample = dataset.read(0, clip)
        first = sample.latents[0, 0, 0, 0]
        raw = sample.actions / 0.5 + 0.5  # the statistics' scale and offset
        assert torch.equal(raw, first + torch.arange(4.0).view(4, 1))
    assert collate([dataset.read(0, 0), dataset.read(0, 1)]).actions.shape == (2, 4, 1)


def test_an_encoded_clip_has_the_rows_between_its_frames(tmp_path):
    folder = known_trajectory(tmp_path)
    frames = torch.arange(20, dtype=torch.uint8).mul(10).view(-1, 1, 1, 1)
    (folder / "videos").mkdir()
    write_video(folder / "videos/w.mp4", frames.expand(-1, 32, 32, 3).contiguous().numpy(), 10)
    dataset = open_dataset(folder, VideoDataset)
    assert dataset.clip_counts == [16]
    for clip in (0, 7, 15):
        sample = dataset.read(0, clip)
        shown = sample.latents.float().mean(dim=(0, 2, 3)) / 10  # the frames' numbers
        assert torch.allclose(shown, clip + torch.arange(5.0), atol=0.3)
        assert torch.equal(sample.actions / 0.5 + 0.5, clip + torch.arange(4.0).view(4, 1))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "w.safetensors is missing: the window has no actions"),
        (torch.zeros(18, 1), "has 18 rows, but the window has 20 frames and so 19 rows"),
        (torch.zeros(19, 2), "has 2 numbers per row, the actions are 1 (k)"),
        (torch.full((19, 1), torch.nan), "row 0"),
    ],
)
def test_a_window_with_unusable_actions_is_left_out_and_named(
    here, volume, tmp_path, rows, problem
):
    folder = known_trajectory(tmp_path)
    path = folder / "actions/w.safetensors"
    path.unlink()
    if rows is not None:
        write_actions(tmp_path, "w", rows)
    with pytest.raises(UserError, match="1 were left out") as error:
        open_dataset(folder)
    assert problem in str(error.value)


def test_the_log_counts_and_names_windows_without_actions(here, acted):
    (acted / "datasets/d/train/actions/w3.safetensors").unlink()
    code, out = here(acted, ACTIONS, "trainer.max_iter=1")
    assert code == 0, out
    assert "4 windows with 8 clips" in out
    assert "1 windows left out" in out
    assert "w3.safetensors is missing" in out


# --------------------------------------------------------------------- training


def test_training_starts_at_the_network_without_actions_and_then_uses_them(here, acted):
    _, without = here(acted, *SHORT, "job.name=without")
    code, out = here(acted, ACTIONS, *SHORT)
    assert code == 0, out
    assert losses(out)[1] == losses(without)[1]  # zero embedders, the same weights and noise
    assert losses(out)[6] != losses(without)[6]
    model = checkpoint(acted, 6)
    assert model["net.action_embedder_B_D.fc2.bias"].ne(0).any()
    assert "net_ema.action_embedder_B_3D.fc2.weight" in model
    record = json.loads((acted / JOB / "model/config.json").read_text())
    assert record["run"]["action_conditioning"] == "per_frame"
    assert record["action_conditioning"]["statistics"] == statistics().to_json()
    actions = RunConfig.read(acted / JOB / "model/config.json").actions
    assert (actions.kind, actions.statistics) == ("per_frame", statistics())
    trained_on = json.loads((acted / JOB / "trained_on.json").read_text())
    assert "w0.safetensors" in trained_on["datasets/d/train/actions"]


def test_a_resumed_run_is_exactly_the_uninterrupted_one(here, acted):
    code, whole = here(acted, ACTIONS, *SHORT, "job.name=whole")
    assert code == 0, whole
    here(acted, ACTIONS, *SHORT, "trainer.max_iter=3")
    code, second = here(acted, ACTIONS, *SHORT)
    assert code == 0, second
    assert "resuming from iteration 3" in second
    expected = checkpoint(acted, 6, "whole")
    assert all(torch.equal(one, expected[name]) for name, one in checkpoint(acted, 6).items())


@pytest.mark.slow
def test_two_ranks_resume_exactly_after_kill_9(acted):
    settings = [ACTIONS, "model.config.fsdp_shard_size=2", "trainer.max_iter=12"]
    settings += ["checkpoint.save_iter=4"]
    code, out = run(acted, *settings, "job.name=whole", ranks=2)
    assert code == 0, out
    process = start(acted, *settings, ranks=2)
    first = read_until(process, 6)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    subprocess.run(["kill", "-9", *children.stdout.split()], check=True)
    process.kill()
    process.communicate()
    assert read_latest(acted / JOB) == 4
    code, second = run(acted, *settings, ranks=2)
    assert code == 0, second
    assert losses(first) | losses(second) == losses(out)
    shards = [
        read_full_tensors(CheckpointFolder(acted / JOB.replace("demo", job)).shards(12))
        for job in ("demo", "whole")
    ]
    assert all(torch.equal(one, shards[1][name]) for name, one in shards[0].items())


def test_lora_trains_saves_and_exports_the_embedders(here, acted):
    lora = ["model.config.train_architecture=lora"]
    code, out = here(acted, ACTIONS, *SHORT, *lora)
    assert code == 0, out
    folder = CheckpointFolder(acted / JOB)
    merged = torch.load(folder.merged(6), weights_only=True)
    for model in (checkpoint(acted, 6), merged):
        assert model["net.action_embedder_B_3D.fc2.weight"].ne(0).any()
    start = f"{DIT}{JOB}/model/iter_000000006.pt"
    code, out = here(acted, ACTIONS, *SHORT, start, "job.name=next", "trainer.max_iter=1")
    assert code == 0, out
    assert "has no action embedders" not in out


def test_base_weights_are_a_start_and_the_fresh_tensors_are_said(here, acted):
    here(acted, *SHORT, "job.name=base")
    start = f"{DIT}{JOB.replace('demo', 'base')}/model/iter_000000006.pt"
    code, out = here(acted, ACTIONS, *SHORT, start, "trainer.max_iter=1")
    assert code == 0, out
    assert "iter_000000006.pt has no action embedders (exactly their 8 tensors are missing)" in out
    _, plain = here(acted, *SHORT, start, "trainer.max_iter=1", "job.name=plain")
    assert losses(plain)[1] == losses(out)[1]


def test_sparse_attention_trains_with_actions(here, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(2):
        add_window(tmp_path, f"w{number}", torch.randn((2, 16, 2, 12, 16), generator=generator))
    add_actions(tmp_path)
    sparse = ["model.attention_pattern=sparse", "dataloader_train.dataset.video_size=[96,128]"]
    code, out = here(tmp_path, ACTIONS, *sparse, "trainer.max_iter=2")
    assert code == 0, out
    assert checkpoint(tmp_path, 2)["net.action_embedder_B_D.fc2.bias"].ne(0).any()


# --------------------------------------------------------------------- what must be equal


def test_resuming_keeps_the_statistics_of_the_checkpoint(here, acted):
    _, whole = here(acted, ACTIONS, *SHORT, "job.name=whole")
    here(acted, ACTIONS, *SHORT, "trainer.max_iter=3")
    write_statistics(acted, statistics(offset=(9.0,) * 3, scale=(3.0,) * 3))
    code, out = here(acted, ACTIONS, *SHORT)
    assert code == 0, out
    assert "note: actions are normalised as" in out
    assert losses(out)[6] == losses(whole)[6]
    start = f"{DIT}{JOB}/model/iter_000000006.pt"
    code, out = here(acted, ACTIONS, *SHORT, start, "job.name=next")
    assert code == 0, out
    assert "note: actions are normalised as" in out
    record = RunConfig.read(acted / JOB.replace("demo", "next") / "model/config.json")
    assert record.actions.statistics == statistics()


@pytest.fixture
def trained(acted, monkeypatch):
    """The record of a run that was trained with actions, and nothing else of it."""
    monkeypatch.chdir(acted)
    model = acted / JOB / "model"
    model.mkdir(parents=True)
    config = read_config([*SETTINGS, ACTIONS])
    description = describe_run(config, RecordedActions("per_frame", statistics()))
    (model / "config.json").write_text(json.dumps(description))
    (model / "iter_000000001.pt").touch()
    return acted


@pytest.mark.parametrize("starts_from", [False, True], ids=["resume", "start"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            statistics(["left", "right"]),
            "2 numbers per action (left, right), but JOB was trained with 3 (left, right, grip)",
        ),
        (statistics(["right", "left", "grip"]), "actions are right, left, grip, but JOB was"),
        (
            statistics(representation="relative_pose"),
            "actions are RelativePose, but JOB was trained with Absolute",
        ),
        (None, "was trained with actions; set model.action_conditioning=per_frame"),
        ("per_clip", "JOB was trained with per_frame; set model.action_conditioning=per_frame"),
    ],
)
def test_other_actions_than_the_checkpoints_are_refused(trained, changed, message, starts_from):
    source = f"{JOB}/model/{'iter_000000001.pt' if starts_from else 'config.json'}"
    settings = [*SETTINGS, *([f"{DIT}{source}", "job.name=next"] if starts_from else [])]
    if changed == "per_clip":
        settings += PER_CLIP
    elif changed is not None:
        write_statistics(trained, changed)
        settings.append(ACTIONS)
    with pytest.raises(UserError, match=re.escape(message.replace("JOB", source))):
        actions_of_run(read_config(settings), World())


@pytest.mark.parametrize(("folder", "refused"), [("d", False), ("e", True)])
def test_held_out_windows_have_the_same_actions(here, acted, folder, refused):
    add_window(acted, "v0", torch.randn((2, *SHAPE)), "val")
    add_actions(acted, split="val")
    if refused:
        shutil.copytree(acted / "datasets/d", acted / "datasets/e")
        made = statistics(["right", "left", "grip"]).to_json()
        (acted / "datasets/e/actions.json").write_text(json.dumps(made))
    val = f"dataloader_val.dataset.dataset_dir=datasets/{folder}/val"
    code, out = here(acted, ACTIONS, "trainer.run_validation=true", val, "trainer.max_iter=1")
    assert code == (2 if refused else 0), out
    assert len(events(out, "validation")) == (0 if refused else 2)
    assert ("its actions are right, left, grip" in out) == refused
    assert "Traceback" not in out


def test_a_data_set_without_actions_is_refused(here, volume):
    code, out = here(volume, ACTIONS, *SHORT)
    assert code == 2, out
    assert "datasets/d/actions.json" in out
    assert "spec.dataset.actions" in out


# --------------------------------------------------------------------- the published network


@pytest.fixture
def published_clips(tmp_path):
    """Windows of 13 frames with 7 numbers per action, and no embedding of a caption."""
    generator = torch.Generator().manual_seed(0)
    for number in range(2):
        add_window(tmp_path, f"w{number}", torch.randn((2, 16, 4, 4, 4), generator=generator))
    for path in (tmp_path / "datasets/d/train/t5_xxl").iterdir():
        path.unlink()
    names = [*"xyz", "roll", "pitch", "yaw", "gripper"]
    add_actions(tmp_path, statistics(names, representation="relative_pose"), rows=13)
    return tmp_path


def test_per_clip_trains_without_captions_and_resumes_exactly(here, published_clips):
    code, out = here(published_clips, *PER_CLIP, *SHORT, "job.name=whole")
    assert code == 0, out
    here(published_clips, *PER_CLIP, *SHORT, "trainer.max_iter=3")
    code, out = here(published_clips, *PER_CLIP, *SHORT)
    assert code == 0, out
    whole = checkpoint(published_clips, 6, "whole")
    assert all(
        torch.equal(one, whole[name]) for name, one in checkpoint(published_clips, 6).items()
    )
    model, start = checkpoint(published_clips, 6), checkpoint(published_clips, 3)
    assert model["net.action_embedder_B_D.fc1.weight"].shape == (512, 84)
    unused = "net.blocks.0.cross_attn.k_proj.weight"
    assert torch.equal(model[unused], start[unused])  # no gradient, and no weight decay either
    trained = "net.blocks.0.self_attn.k_proj.weight"
    assert not torch.equal(model[trained], start[trained])
    record = json.loads((published_clips / JOB / "model/config.json").read_text())
    assert (record["fps"], record["action_conditioning"]["kind"]) == (4, "per_clip")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dataloader_train.dataset.num_frames=17"], "num_frames=17: .*clips of 13 frames"),
        (["model.size=14B"], "published for 2B only"),
        (
            ["model.size=2B", "dataloader_train.dataset.video_size=[432,768]"],
            r"video_size=\[432, 768\].*\[480, 640\]",
        ),
    ],
)
def test_per_clip_has_the_published_clips_only(settings, message):
    with pytest.raises(UserError, match=message):
        read_config(["model.action_conditioning=per_clip", "job.name=a", *settings])


def test_per_clip_has_the_published_settings_by_default():
    config = read_config(["model.action_conditioning=per_clip", "job.name=a"])
    assert (config.num_frames, config.video_size, config.fps) == (13, (480, 640), 4)
    path = initial_weights_path(config)
    assert path == Path(
        "checkpoints/nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned/model-480p-4fps.pt"
    )
    actions = actions_of(path, RunConfig())
    assert actions.conditioning.inputs == 84
    assert actions.statistics.scale == (20.0,) * 6 + (1.0,)
    assert actions_of(Path("model-480p-16fps.pt"), RunConfig()) is None


def test_adapters_of_a_network_without_captions_are_not_in_cross_attention():
    made = statistics([*"abcdefg"])
    config = read_config([*SETTINGS, *PER_CLIP, "model.config.train_architecture=lora"])
    net = build_network(config, World(), RecordedActions("per_clip", made))
    trained = [name for name, one in net.named_parameters() if one.requires_grad]
    assert any(".self_attn.q_proj.lora_A" in name for name in trained)
    assert any("action_embedder_B_D.fc1.bias" in name for name in trained)
    assert not any("cross_attn" in name for name in trained)


def test_the_weights_that_tiny_starts_from_have_its_embedders(trained):
    path = initial_weights(trained / JOB)
    config = read_config([*SETTINGS, ACTIONS])
    net = build_network(config, World(), RecordedActions("per_frame", statistics()))
    state = torch.load(path, weights_only=True)
    assert all(
        torch.equal(one.bfloat16(), state[f"net.{name}"]) for name, one in net.named_parameters()
    )


def test_the_original_experiment_has_a_remedy():
    name = "predict2_video2world_2b_action_conditioned_training"
    with pytest.raises(UserError, match=r"model\.action_conditioning=per_clip instead"):
        read_config([f"experiment={name}"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "per_clip"])
def test_ranks_that_share_a_clip_train_like_one(here, published_clips, kind):
    """Two ranks with frozen weights in FSDP's units, which no gradient reaches."""
    settings = [*PER_CLIP, "trainer.max_iter=3"]
    if kind == "lora":
        settings += [ACTIONS, "model.config.train_architecture=lora"]
        for path in (published_clips / "datasets/d/train/latents").iterdir():
            embedding = published_clips / f"datasets/d/train/t5_xxl/{path.stem}.pickle"
            write_embedding(embedding, np.ones((2, 1024), np.float16))
    _, alone = here(published_clips, *settings, "job.name=alone")
    two = ["model_parallel.context_parallel_size=2", "model.config.fsdp_shard_size=2"]
    code, out = run(published_clips, *settings, *two, ranks=2)
    assert code == 0, out
    assert list(losses(out).values()) == pytest.approx(list(losses(alone).values()), rel=2e-3)


# --------------------------------------------------------------------- losses


def test_actions_stay_when_the_caption_is_dropped():
    seen = []

    def net(x, times, text, mask, *, actions):
        seen.append((text, actions))
        return x

    actions = torch.randn(2, 4, 3)
    noise = NoiseSample(
        sigma=torch.ones(2),
        noise=torch.randn(2, *SHAPE),
        conditional=torch.ones(2, dtype=torch.int64),
        keep_text=torch.tensor([True, False]),
    )
    training_loss(net, torch.randn(2, *SHAPE), torch.ones(2, 4, 8), noise, actions=actions)
    assert torch.equal(seen[0][1], actions)
    assert seen[0][0].mean(dim=(1, 2)).tolist() == [1, 0]


def test_losses_compare_actions_at_equal_noise(acted):
    dataset = LatentDataset(
        acted / "datasets/d/train",
        shape=SHAPE,
        geometry="crop",
        text_length=4,
        actions=statistics(),
    )
    seen = []

    def net(x, times, text, mask, *, actions):
        seen.append((x, times, actions))
        return x * actions.mean()

    losses_of = ClipLosses(dataset, SHAPE, NoiseDistribution(), training_loss, torch.device("cpu"))
    one = evaluations([(0, 1)], 4)[2]
    own = losses_of(net, one)
    assert torch.equal(losses_of(net, one), own)
    zeroed = losses_of(net, one, change_actions=lambda sample: torch.zeros_like(sample.actions))
    other = losses_of(net, one, change_actions=lambda _: dataset.read(1, 1).actions)
    assert len({float(loss) for loss in (own, zeroed, other)}) == 3
    assert all(torch.equal(seen[0][0], x) and torch.equal(seen[0][1], t) for x, t, _ in seen)
    assert [bool(one[2].any()) for one in seen] == [True, True, False, True]
