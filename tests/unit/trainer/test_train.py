"""Test the train command as users run it: processes, signals, files."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tiny_training import (
    JOB,
    SETTINGS,
    SHAPE,
    add_window,
    events,
    finish,
    losses,
    read_until,
    run,
    start,
)
from video2world_common.markers import Marker
from video2world_preprocess import latents
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.dcp import read_full_tensors
from video2world_trainer.checkpoint.folder import CheckpointFolder, read_latest

pytestmark = pytest.mark.usefixtures("one_thread")


def final(volume):
    folder = CheckpointFolder(volume / JOB)
    files = {part: folder.load(part, 40) for part in ("model", "optim", "trainer")}
    return files | {"state": read_full_tensors(folder.shards(40))}


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


def copy_of(volume, name):
    other = volume.parent / name
    other.mkdir()
    (other / "datasets").symlink_to(volume / "datasets")
    return other


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_40_iterations_equal_20_kill_9_and_resume(volume, ranks):
    code, out = run(volume, ranks=ranks)
    assert code == 0, out
    whole = losses(out)
    assert list(whole) == list(range(1, 41))

    other = copy_of(volume, "other")
    process = start(other, ranks=ranks)
    first = read_until(process, 25)  # past the checkpoint at 20: five iterations are lost
    if ranks > 1:  # the agent dies with its workers, as on a lost node
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        for child in children.stdout.split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.communicate()
    assert read_latest(other / JOB) == 20
    code, second = run(other, ranks=ranks)
    assert code == 0, second
    assert "resuming from iteration 20" in second
    assert [one["iteration"] for one in events(second, "resumed")] == [20]
    assert losses(first) | losses(second) == whole
    assert list(losses(second)) == list(range(21, 41))
    assert same(final(volume), final(other))


@pytest.mark.slow
def test_two_ranks_see_the_batches_that_one_rank_sees(here, volume):
    """Noise and order depend on the data position; only the rounding of sums differs."""
    _, alone = here(volume, "dataloader_train.batch_size=2", "trainer.max_iter=6")
    code, two = run(copy_of(volume, "other"), "trainer.max_iter=6", ranks=2)
    assert code == 0, two
    assert list(losses(two).values()) == pytest.approx(list(losses(alone).values()), rel=1e-4)


def test_checkpoint_has_the_guides_files_and_contents(here, volume, monkeypatch):
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    code, out = here(volume, "trainer.max_iter=3")
    assert code == 0, out
    job = volume / JOB
    assert (job / "latest_checkpoint.txt").read_text() == "iter_000000003.pt\n"
    model = torch.load(job / "model/iter_000000003.pt", weights_only=True)
    weight = "blocks.0.self_attn.q_proj.weight"
    assert model[f"net.{weight}"].dtype == torch.bfloat16
    assert model[f"net_ema.{weight}"].dtype == torch.float32
    assert int(model["net.accum_iteration"]) == 3
    assert "net.pos_embedder.dim_spatial_range" in model
    optim = torch.load(job / "optim/iter_000000003.pt", weights_only=True)
    assert weight in optim["param_groups"][0]["params"]
    state = read_full_tensors(job / "optim/iter_000000003")
    assert torch.equal(state[f"master.{weight}"].bfloat16(), model[f"net.{weight}"])
    assert torch.equal(state[f"ema.{weight}"], model[f"net_ema.{weight}"])
    trainer = torch.load(job / "trainer/iter_000000003.pt", weights_only=True)
    assert trainer["iteration"] == 3
    described = json.loads((job / "model/config.json").read_text())
    assert (described["size"], described["num_frames"], described["rope_ratio_h"]) == (
        "Tiny",
        5,
        1.0,
    )
    assert events(out, "checkpoint") == [
        {
            "event": "checkpoint",
            "stage": "train",
            "iteration": 3,
            "path": f"{JOB}/model/iter_000000003.pt",
        }
    ]
    marker = json.loads((volume / ".video2world/stages/train-abc.json").read_text())
    size, _ = marker["outputs"][f"{JOB}/model"]["iter_000000003.pt"].split()
    assert int(size) == (job / "model/iter_000000003.pt").stat().st_size
    assert marker["outputs"][JOB] == {"latest_checkpoint.txt": ""}

    code, out = here(volume, "trainer.max_iter=3")
    assert code == 0
    assert "nothing to do" in out
    assert not events(out, "progress")
    code, out = here(volume, "trainer.max_iter=5")  # raised: it goes on
    assert code == 0
    assert list(losses(out)) == [4, 5]


def test_a_finished_run_is_not_repeated_for_changed_data_but_reports_them(
    here, volume, monkeypatch
):
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    assert here(volume, "trainer.max_iter=2")[0] == 0
    mark = Marker("train", "abc")
    assert (mark.judge().done, mark.judge().note) == (True, "")
    add_window(volume, "more", torch.randn((2, *SHAPE)))
    changed = "1 new latents file: more.safetensors; 1 new embedding: more.pickle"
    assert mark.judge().note == f"its data changed since: {changed}"
    code, out = here(volume, "trainer.max_iter=2")
    assert code == 0
    assert f"WARNING: trained already, on other data: {changed}; to train on these raise" in out
    assert mark.judge().note  # still: nothing was trained on the new window
    code, out = here(volume, "trainer.max_iter=3")
    assert code == 0
    assert f"the data changed since iteration 2 was trained: {changed}" in out
    assert (mark.judge().done, mark.judge().note) == (True, "")
    later = volume / JOB / "model/iter_000000003.pt"
    later.write_bytes(later.read_bytes())  # as another run's of the same size
    assert mark.judge().why == "1 changed file: iter_000000003.pt"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_saves_and_the_resumed_run_is_exact(here, volume, number):
    _, out = here(volume)
    whole = losses(out)
    other = copy_of(volume, "other")
    process = start(other)
    first = read_until(process, 7)
    process.send_signal(number)
    code, rest = finish(process)
    assert code == 143, rest
    stopped = events(rest, "preempted")[0]["iteration"]
    assert read_latest(other / JOB) == stopped
    assert 7 <= stopped < 40
    code, second = here(other)
    assert code == 0
    assert losses(first) | losses(rest) | losses(second) == whole
    assert same(final(volume), final(other))


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_all_at_the_same_iteration(volume):
    process = start(volume, "trainer.max_iter=4000", ranks=2)
    read_until(process, 3)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGTERM)
    code, out = finish(process)
    assert code != 0
    stopped = events(out, "preempted")
    assert len(stopped) == 1
    assert read_latest(volume / JOB) == stopped[0]["iteration"]


@pytest.mark.slow
def test_a_truncated_newest_checkpoint_resumes_from_the_previous_one(here, volume):
    _, out = here(volume, "checkpoint.save_iter=15")
    whole, before = losses(out), final(volume)
    path = volume / JOB / "optim/iter_000000040.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    code, out = here(volume, "checkpoint.save_iter=15")
    assert code == 0, out
    assert "iter_000000040.pt has" in out
    assert losses(out) == {i: whole[i] for i in range(31, 41)}
    assert same(final(volume), before)


def test_overrides_of_optimizer_and_loss_reach_the_step(here, volume):
    short = ["trainer.max_iter=4", "scheduler.warm_up_steps=0"]
    code, out = here(volume, *short)
    assert code == 0, out
    plain = losses(out)
    changed = {
        "optimizer.betas=[0.8,0.95]": False,
        "optimizer.eps=1e-3": False,
        "model.config.loss_weight=edm": True,
        "model.config.loss_scale=5": True,
        "model.config.pipe_config.max_num_conditional_frames=1": None,
        "model.config.pipe_config.min_num_conditional_frames=0": False,
        "model.config.pipe_config.conditioner.text.dropout_rate=1": True,
        "model.config.adjust_video_noise=false": True,
        "model.config.high_sigma_ratio=1": True,
    }
    for number, (override, at_once) in enumerate(changed.items()):
        code, out = here(volume, *short, f"job.name=j{number}", override)
        assert code == 0, out
        found = losses(out)
        assert (found == plain) == (at_once is None), override
        assert (found[1] != plain[1]) == bool(at_once), override
    folder = volume / JOB.replace("demo", "j0")
    assert CheckpointFolder(folder).load("optim", 4)["param_groups"][0]["betas"] == [0.8, 0.95]
    _, out = here(volume, "trainer.max_iter=1", "job.name=note", "model.config.lora_rank=2")
    assert "note: model.config.lora_rank has no effect: model.config.train_arch" in out


def test_the_folder_of_another_run_is_rejected(here, volume):
    here(volume, "trainer.max_iter=1")
    code, out = here(volume, "trainer.max_iter=2", "model.geometry=crop", "trainer.seed=9")
    assert code == 2
    assert "seed is 0 there and 9 here" in out
    assert "Traceback" not in out
    job = volume / JOB
    described = json.loads((job / "model/config.json").read_text())
    described["run"]["size"] = "2B"
    (job / "model/config.json").write_text(json.dumps(described))
    code, out = here(volume, "trainer.max_iter=2")
    assert code == 2
    assert "size is '2B' there and 'Tiny' here" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataloader_train.dataset.dataset_dir=datasets/none"], "no window to train on"),
        (["model_parallel.context_parallel_size=2"], "context_parallel_size=2"),
        (["model.config.pipe_config.net.atten_backend=fa9"], "atten_backend=fa9"),
        (["model.config.pipe_config.net.atten_backend=flash_attention_4"], "needs an NVIDIA GPU"),
        (
            ["model.config.train_architecture=lora", "model.config.lora_target_modules=qkv"],
            "lora_target_modules: qkv names no linear layer",
        ),
        (["model.config.keep_activations=some"], "must be one of auto, all, products, square"),
        (["trainer.max_itr=2"], "did you mean trainer.max_iter?"),
        (["model.config.model_manager_config.dit_path=checkpoints/none.pt"], "does not exist"),
        (["dataloader_train.dataset.num_frames=17"], "num_frames"),
    ],
)
def test_user_errors_exit_with_2_and_no_traceback(here, volume, overrides, message):
    code, out = here(volume, *overrides)
    assert code == 2, out
    assert message in out
    assert "Traceback" not in out
    assert events(out, "failed")[0]["reason"] == "UserError"


def test_missing_base_weights_name_the_file_and_the_download(here, volume):
    for path in (volume / "datasets/d/train/latents").iterdir():
        save_file(
            {"latents": torch.zeros(1, 16, 1, 2, 2), "starts": torch.zeros(1)},
            path,
            metadata={"geometry": "crop"},
        )
    code, out = here(
        volume,
        "model.size=2B",
        "dataloader_train.dataset.num_frames=1",
        "dataloader_train.dataset.video_size=[16,16]",
    )
    assert code == 2, out
    assert "nvidia/Cosmos-Predict2-2B-Video2World/model-480p-16fps.pt does not exist" in out
    assert "video2world_preprocess.download" in out


def test_fewer_windows_than_ranks_are_rejected(volume):
    for path in list((volume / "datasets/d/train/latents").iterdir())[1:]:
        path.unlink()
    code, out = run(volume, ranks=2)
    assert code != 0
    assert "1 windows are fewer than the 2 ranks" in out


def test_nan_latents_skip_the_step_and_then_stop_with_the_batch_named(here, volume):
    here(volume, "trainer.max_iter=2", "checkpoint.save_iter=1")
    kept = read_full_tensors(CheckpointFolder(volume / JOB).shards(2))
    add_window(volume, "w3", torch.full((2, *SHAPE), float("nan")))
    code, out = here(volume)
    assert code == 1, out
    assert "w3, clip" in out
    assert "latents are not finite" in out
    assert len(events(out, "skipped_step")) == 3
    assert events(out, "failed")[0]["reason"] == "NonFinite"
    assert "Traceback" not in out
    latest = read_latest(volume / JOB)
    saved = read_full_tensors(CheckpointFolder(volume / JOB).shards(latest))
    assert saved.keys() == kept.keys()
    assert all(one.isfinite().all() for one in saved.values())


def test_one_bad_window_among_many_is_skipped_and_training_continues(here, volume):
    add_window(volume, "w3", torch.full((2, *SHAPE), float("inf")))
    code, out = here(volume, "trainer.max_iter=6")
    assert code == 0, out
    assert 1 <= len(events(out, "skipped_step")) <= 2
    state = read_full_tensors(CheckpointFolder(volume / JOB).shards(6))
    assert all(one.isfinite().all() for one in state.values())


def test_dryrun_prints_the_settings_without_training(tmp_path):
    command = [sys.executable, "-m", "video2world_trainer.train", "--config=x.py", "--dryrun"]
    out = subprocess.run(
        [*command, "--", *SETTINGS], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out)["trainer.max_iter"] == 40
    assert not list(tmp_path.iterdir())


def test_the_loss_falls(here, volume):
    """A still, uniform image is learned quickly."""
    for number in range(5):
        add_window(volume, f"w{number}", torch.full((2, *SHAPE), 1.5))
    code, out = here(volume, "trainer.max_iter=60", "trainer.logging_iter=20")
    assert code == 0, out
    first, *_, last = losses(out).values()
    assert last < 0.7 * first


@pytest.mark.slow
def test_the_launcher_returns_the_workers_exit_code(volume):
    """torchrun itself exits with 1 whatever its workers' exit codes are."""
    code, out = run(volume, "trainer.max_itr=2", ranks=2, module="video2world_trainer.launch")
    assert code == 2, out
    process = start(volume, "trainer.max_iter=4000", ranks=2, module="video2world_trainer.launch")
    read_until(process, 3)
    process.terminate()
    code, out = finish(process)
    assert code == 143, out
    stopped = events(out, "preempted")[0]["iteration"]
    assert read_latest(volume / JOB) == stopped
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_two_ranks_resume_what_one_rank_saved_and_vice_versa(here, volume, context):
    """State is saved in shards and restored by any number of ranks, with or without FSDP."""
    two = [
        f"model_parallel.context_parallel_size={context}",
        "model.config.fsdp_shard_size=2",
        "checkpoint.asynchronous=true",
    ]
    one = [] if context == 2 else ["dataloader_train.batch_size=2"]  # the same clips a step
    _, out = here(volume, "trainer.max_iter=9", *one)
    whole = losses(out)
    other = copy_of(volume, "other")
    code, first = run(other, "trainer.max_iter=3", *two, ranks=2)
    assert code == 0, first
    assert f"context parallel {context}, FSDP over 2" in first
    files = [path.name for path in (other / JOB / "optim/iter_000000003").iterdir()]
    assert len(files) >= 2
    _, second = here(other, "trainer.max_iter=6", *one)
    assert "resuming from iteration 3" in second
    code, third = run(other, "trainer.max_iter=9", *two, ranks=2)
    assert code == 0, third
    found = losses(first) | losses(second) | losses(third)
    assert list(found) == list(range(1, 10))
    assert list(found.values()) == pytest.approx(list(whole.values()), rel=2e-3)
    folder = CheckpointFolder(other / JOB)
    model = folder.load("model", 9)
    expected = CheckpointFolder(volume / JOB).load("model", 9)
    assert model.keys() == expected.keys()
    for name, tensor in model.items():
        torch.testing.assert_close(
            tensor.float(), expected[name].float(), atol=2e-2, rtol=2e-2, msg=name
        )


def test_lora_trains_adapters_only_and_saves_peft_names_and_a_merged_file(here, volume):
    here(volume, "job.name=base", "trainer.max_iter=3")
    base = volume / "checkpoints/posttraining/video2world/base/checkpoints/model/iter_000000003.pt"
    lora = [
        "model.config.train_architecture=lora",
        "model.config.lora_rank=4",
        "model.config.lora_alpha=8",
        f"model.config.model_manager_config.dit_path={base}",
    ]
    code, out = here(volume, "trainer.max_iter=4", "checkpoint.save_iter=2", *lora)
    assert code == 0, out
    four = losses(out)
    model = torch.load(volume / JOB / "model/iter_000000004.pt", weights_only=True)
    before = torch.load(base, weights_only=True)
    layer = "blocks.1.self_attn.q_proj"
    assert torch.equal(model[f"net.{layer}.base_layer.weight"], before[f"net.{layer}.weight"])
    down, up = (model[f"net.{layer}.lora_{one}.default.weight"].float() for one in "AB")
    assert up.abs().sum() > 0
    assert f"net_ema.{layer}.lora_B.default.weight" in model
    merged = torch.load(volume / JOB / "model/iter_000000004_merged.pt", weights_only=True)
    assert set(merged) == {key for key in before if key.startswith("net.")}
    expected = (before[f"net.{layer}.weight"].float() + 2.0 * up @ down).bfloat16()
    assert torch.equal(merged[f"net.{layer}.weight"], expected)

    folder = CheckpointFolder(volume / JOB)
    for path in (folder.path("trainer", 4), folder.folder / "latest_checkpoint.txt"):
        path.unlink()  # as if killed while saving iteration 4
    code, out = here(volume, "trainer.max_iter=4", "checkpoint.save_iter=2", *lora)
    assert code == 0, out
    assert "resuming from iteration 2" in out
    assert losses(out) == {n: four[n] for n in (3, 4)}
    again = torch.load(volume / JOB / "model/iter_000000004.pt", weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in model.items())
    code, out = here(volume, "trainer.max_iter=4", *lora, "model.config.lora_rank=2")
    assert code == 2
    assert "lora_rank is 4 there and 2 here" in out


def test_clipping_and_the_fields_of_a_report(here, volume):
    _, free = here(volume, "job.name=free", "trainer.max_iter=2")
    code, out = here(volume, "trainer.max_iter=2", "optimizer.clip_norm=0.001")
    assert code == 0, out
    first, second = events(out, "progress")
    assert first["gradient_norm"] == events(free, "progress")[0]["gradient_norm"] > 0.001
    assert first["tokens_per_second"] > 0
    assert second["learning_rate"] > first["learning_rate"] > 0
    assert "attention torch (the best available; flash_attention_4: it needs" in out


@pytest.mark.slow
def test_a_hanging_rank_ends_all_ranks_within_the_timeout_with_stacks(volume):
    process = start(
        volume,
        "trainer.max_iter=100000",
        "checkpoint.save_iter=100000",
        "trainer.timeout_seconds=6",
        ranks=2,
    )
    read_until(process, 3)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    stuck = int(children.stdout.split()[-1])
    os.kill(stuck, signal.SIGSTOP)
    try:
        for line in process.stdout:
            if events(line, "failed"):
                break
        message = events(line, "failed")[0]
        assert message["reason"] == "Hang"
        assert "made no progress for" in message["message"]
        assert "trainer.timeout_seconds=6" in message["message"]
    finally:
        os.kill(stuck, signal.SIGCONT)
    code, _ = finish(process)
    assert code == 1


def test_missing_tensorboard_is_named(here, volume, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, out = here(volume, "trainer.tensorboard=true")
    assert code == 2
    assert "pip install tensorboard" in out


def test_out_of_gpu_memory_names_the_settings_to_change(here, volume, monkeypatch):
    """Raise torch's own error where a GPU would raise it."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("video2world_trainer.training.trainer.Trainer.step", full)
    code, out = here(volume)
    assert code == 1
    assert "model.config.keep_activations=attention" in out
    assert events(out, "failed")[0]["reason"] == "OutOfMemory"


def test_weights_of_another_size_are_rejected(here, volume, tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"net.x_embedder.proj.1.weight": torch.zeros(2048, 72)}, path)
    code, out = here(volume, f"model.config.model_manager_config.dit_path={path}")
    assert code == 2
    assert "x_embedder.proj.1.weight is [2048, 72], the model has [128, 72]" in out


def test_a_damaged_embedding_is_named_even_if_prefetched(here, volume):
    (volume / "datasets/d/train/t5_xxl/w2.pickle").write_bytes(b"short")
    code, out = here(volume)
    assert code == 2, out
    assert "w2.pickle" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_is_kept(volume):
    process = start(
        volume,
        "trainer.max_iter=100000",
        "checkpoint.save_iter=2",
        "model.config.fsdp_shard_size=2",
        "checkpoint.asynchronous=true",
        ranks=2,
        module="video2world_trainer.launch",
    )
    read_until(process, 6)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    code, out = finish(process)
    assert code == 1, out
    assert "Traceback" not in out
    assert "rank 1 ended with -9" in out
    folder = CheckpointFolder(volume / JOB)
    latest = read_latest(volume / JOB)
    assert latest >= 2
    assert folder.find_damage(latest) is None
    alone = (volume, f"trainer.max_iter={latest + 1}")  # by one rank
    code, out = run(*alone)
    assert (code, "set trainer.grad_accum_iter=2" in out) == (2, True), out
    code, out = run(*alone, "trainer.grad_accum_iter=2")
    assert code == 0, out
    assert f"resuming from iteration {latest}" in out
    assert not list((volume / JOB).rglob(".partial-*"))


def test_encoding_in_the_step_equals_precomputed_latents(here, volume, monkeypatch):
    """Windows of exactly one clip leave no choice of frames, so that both see the same clips."""
    folder = volume / "datasets/v/train"
    generator = np.random.default_rng(0)
    for number in range(3):
        frames = generator.integers(0, 255, (5, 32, 32, 3), np.uint8)
        write_video(folder / f"videos/w{number}.mp4", frames, 10)
        write_embedding(folder / f"t5_xxl/w{number}.pickle", np.ones((2, 1024), np.float16))
    monkeypatch.chdir(volume)
    TransformVAE().save_pretrained("vae")
    monkeypatch.delenv("V2W_INPUTS_HASH", raising=False)
    command = [
        "--dataset_path",
        "datasets/v/train",
        "--vae_path",
        "vae",
        "--num_frames",
        "5",
        "--video_size",
        "32",
        "32",
        "--clips_per_window",
        "1",
    ]
    assert latents.main(command) == 0
    use = ["dataloader_train.dataset.dataset_dir=datasets/v/train", "trainer.max_iter=4"]
    code, cached = here(volume, "job.name=cached", *use)
    assert code == 0, cached
    encode = [*use, "dataloader_train.dataset.encode=true", "model.config.vae_path=vae"]
    code, out = here(volume, *encode)
    assert code == 0, out
    assert list(losses(out).values()) == pytest.approx(list(losses(cached).values()), rel=1e-4)
    code, out = here(volume, "job.name=none", *encode, "model.config.vae_path=nowhere")
    assert code == 2
    assert "nowhere has no VAE" in out


def test_prometheus_scrapes_a_running_training(volume, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("V2W_METRICS_PORT", str(port))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    process = start(volume, "trainer.max_iter=100000", "checkpoint.save_iter=100000")
    try:
        said = events(read_until(process, 3), "progress")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        code, out = finish(process)
    assert code == 143, out
    figures = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    iteration = int(float(figures["video2world_training_iteration"]))
    reported = losses("".join(json.dumps(one) + "\n" for one in said) + out)
    assert iteration >= said[-1]["iteration"]
    assert float(figures["video2world_training_loss"]) == pytest.approx(
        reported[iteration], abs=1e-6
    )
    assert float(figures["video2world_training_iterations"]) == 100000


def test_a_cosmos_predict2_run_is_not_resumed_but_its_weights_can_be_loaded(here, volume):
    """Cosmos-Predict2's files: full optimizer state by name, LambdaLR state, iteration."""
    code, out = here(volume, "trainer.max_iter=1")
    assert code == 0, out
    ours, theirs = volume / JOB, volume / JOB.replace("demo", "theirs")
    weights = torch.load(ours / "model/iter_000000001.pt", weights_only=True)
    moments = {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    parts = {
        "model": weights,
        "optim": {"state": {"pipe.dit.x": moments}, "param_groups": [{"lr": 1e-5, "step": 500}]},
        "scheduler": {"last_epoch": 500, "_step_count": 501},
        "trainer": {"grad_scaler": {}, "iteration": 500},
    }
    for part, content in parts.items():
        (theirs / part).mkdir(parents=True)
        torch.save(content, theirs / part / "iter_000000500.pt")
    (theirs / "latest_checkpoint.txt").write_text("iter_000000500.pt\n")
    code, out = here(volume, "trainer.max_iter=600", "job.name=theirs")
    assert code == 2, out
    assert "was not written by this trainer, so its training cannot be continued" in out
    start = f"model.config.model_manager_config.dit_path={theirs}/model/iter_000000500.pt"
    assert start.split("=")[0] in out
    code, out = here(volume, "trainer.max_iter=1", "job.name=new", start)
    assert code == 0, out
