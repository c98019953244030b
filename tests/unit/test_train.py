"""The train command as its users run it: processes, signals, files."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from video2world_preprocess.pickles import write_embedding
from video2world_trainer import train
from video2world_trainer.checkpoint import CheckpointFolder, read_latest

SHAPE = (16, 2, 4, 4)  # 5 frames of 32x32
JOB = "checkpoints/posttraining/video2world/demo/checkpoints"
SETTINGS = [
    "model.size=Tiny", "job.name=demo", "dataloader_train.dataset.num_frames=5",
    "dataloader_train.dataset.video_size=[32,32]", "dataloader_train.dataset.text_length=4",
    "dataloader_train.dataset.dataset_dir=datasets/d/train", "trainer.logging_iter=1",
    "scheduler.warm_up_steps=5", "trainer.max_iter=40", "checkpoint.save_iter=20",
]  # fmt: skip


def add_window(volume, stem, latents):
    folder = volume / "datasets/d/train"
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


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes started here have it
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
        command, cwd=volume, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


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


def final(volume):
    folder = CheckpointFolder(volume / JOB)
    return {part: folder.load(part, 40) for part in ("model", "optim", "trainer")}


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
    assert "going on from iteration 20" in second
    assert losses(first) | losses(second) == whole
    assert list(losses(second)) == list(range(21, 41))
    assert same(final(volume), final(other))


@pytest.mark.slow
def test_two_ranks_see_the_batches_that_one_rank_sees(here, volume):
    """Noise and order follow from the data position: only the sums' rounding differs."""
    _, alone = here(volume, "dataloader_train.batch_size=2", "trainer.max_iter=6")
    code, two = run(copy_of(volume, "other"), "trainer.max_iter=6", ranks=2)
    assert code == 0, two
    assert list(losses(two).values()) == pytest.approx(list(losses(alone).values()), rel=1e-4)


def test_the_checkpoint_is_what_the_guide_says(here, volume, monkeypatch):
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
    assert torch.equal(optim["masters"][weight].bfloat16(), model[f"net.{weight}"])
    trainer = torch.load(job / "trainer/iter_000000003.pt", weights_only=True)
    assert trainer["iteration"] == 3
    described = json.loads((job / "model/config.json").read_text())
    assert (described["size"], described["num_frames"], described["rope_ratio_h"]) == (
        "Tiny", 5, 1.0,
    )  # fmt: skip
    assert events(out, "checkpoint") == [{
        "event": "checkpoint", "stage": "train", "iteration": 3,
        "path": f"{JOB}/model/iter_000000003.pt",
    }]  # fmt: skip
    marker = json.loads((volume / ".video2world/stages/train-abc.json").read_text())
    assert marker["outputs"] == [f"{JOB}/latest_checkpoint.txt"]

    code, out = here(volume, "trainer.max_iter=3")
    assert code == 0
    assert "nothing to do" in out
    assert not events(out, "progress")
    code, out = here(volume, "trainer.max_iter=5")  # raised: it goes on
    assert code == 0
    assert list(losses(out)) == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_and_the_resumed_run_is_exact(here, volume, number):
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
def test_a_torn_newest_checkpoint_is_trained_again_from_the_one_before(here, volume):
    _, out = here(volume, "checkpoint.save_iter=15")
    whole, before = losses(out), final(volume)
    path = volume / JOB / "optim/iter_000000040.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    code, out = here(volume, "checkpoint.save_iter=15")
    assert code == 0, out
    assert "iter_000000040.pt has" in out
    assert losses(out) == {i: whole[i] for i in range(31, 41)}
    assert same(final(volume), before)


def test_the_folder_of_another_run_is_refused(here, volume):
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
        (["model.config.train_architecture=lora"], "train_architecture=lora"),
        (["trainer.max_itr=2"], "did you mean trainer.max_iter?"),
        (["model.config.model_manager_config.dit_path=checkpoints/none.pt"], "does not exist"),
        (["dataloader_train.dataset.num_frames=17"], "num_frames"),
    ],
)
def test_mistakes_end_with_2_and_no_traceback(here, volume, overrides, message):
    code, out = here(volume, *overrides)
    assert code == 2, out
    assert message in out
    assert "Traceback" not in out
    assert events(out, "failed")[0]["reason"] == "UserError"


def test_missing_base_weights_name_the_file_and_the_download(here, volume):
    for path in (volume / "datasets/d/train/latents").iterdir():
        save_file(
            {"latents": torch.zeros(1, 16, 1, 2, 2), "starts": torch.zeros(1)}, path,
            metadata={"geometry": "crop"},
        )  # fmt: skip
    code, out = here(
        volume, "model.size=2B", "dataloader_train.dataset.num_frames=1",
        "dataloader_train.dataset.video_size=[16,16]",
    )  # fmt: skip
    assert code == 2, out
    assert "nvidia/Cosmos-Predict2-2B-Video2World/model-480p-16fps.pt does not exist" in out
    assert "video2world_preprocess.download" in out


def test_fewer_windows_than_ranks(volume):
    for path in list((volume / "datasets/d/train/latents").iterdir())[1:]:
        path.unlink()
    code, out = run(volume, ranks=2)
    assert code != 0
    assert "1 windows are fewer than the 2 ranks" in out


def test_nan_latents_skip_the_step_and_then_stop_with_the_batch_named(here, volume):
    here(volume, "trainer.max_iter=2", "checkpoint.save_iter=1")
    kept = CheckpointFolder(volume / JOB).load("optim", 2)["masters"]
    add_window(volume, "w3", torch.full((2, *SHAPE), float("nan")))
    code, out = here(volume)
    assert code == 1, out
    assert "w3, clip" in out
    assert "latents are not finite" in out
    assert len(events(out, "skipped_step")) == 3
    assert events(out, "failed")[0]["reason"] == "NonFinite"
    assert "Traceback" not in out
    latest = read_latest(volume / JOB)
    saved = CheckpointFolder(volume / JOB).load("optim", latest)["masters"]
    assert saved.keys() == kept.keys()
    assert all(one.isfinite().all() for one in saved.values())


def test_one_bad_window_among_many_is_skipped_and_training_goes_on(here, volume):
    add_window(volume, "w3", torch.full((2, *SHAPE), float("inf")))
    code, out = here(volume, "trainer.max_iter=6")
    assert code == 0, out
    assert 1 <= len(events(out, "skipped_step")) <= 2
    masters = CheckpointFolder(volume / JOB).load("optim", 6)["masters"]
    assert all(one.isfinite().all() for one in masters.values())


def test_dryrun_shows_the_settings_and_trains_nothing(tmp_path):
    command = [sys.executable, "-m", "video2world_trainer.train", "--config=x.py", "--dryrun"]
    out = subprocess.run(
        [*command, "--", *SETTINGS], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out)["trainer.max_iter"] == 40
    assert not list(tmp_path.iterdir())


def test_it_learns(here, volume):
    """A still, uniform picture is soon known: what is left is noise."""
    for number in range(5):
        add_window(volume, f"w{number}", torch.full((2, *SHAPE), 1.5))
    code, out = here(volume, "trainer.max_iter=60", "trainer.logging_iter=20")
    assert code == 0, out
    first, *_, last = losses(out).values()
    assert last < 0.7 * first


@pytest.mark.slow
def test_the_launcher_passes_the_workers_exit_code_on(volume):
    """torchrun itself ends with 1 whatever its workers say."""
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
