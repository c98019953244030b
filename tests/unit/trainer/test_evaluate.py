"""The evaluation command end to end on random weights: its table, resuming, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from video2world_common.action_statistics import ActionStatistics
from video2world_preprocess import latents
from video2world_preprocess.demo import draw_episode, scene
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.writer import write_video
from video2world_trainer import evaluate
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.distributed.process_group import World
from video2world_trainer.evaluation.base_weights import initial_weights
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.model.state_dict import read_weights
from video2world_trainer.training.checkpointer import describe_run
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.network import build_network

RUN = Path("checkpoints/posttraining/video2world/x/checkpoints")
TABLE = Path("results/x/evaluation/evaluation.json")
CONFIG = TrainConfig(
    size="Tiny", num_frames=17, video_size=(96, 128), text_length=64, rope_h=1.0, rope_w=1.0, seed=3
)
FLAGS = ["--run_folder", str(RUN), "--dataset_dir", "datasets/d"]
FLAGS += ["--save_dir", "results/x/evaluation"]
INFERENCE = ["--", "--model_size", "Tiny", "--device", "cpu", "--num_steps", "1"]
INFERENCE += ["--guidance", "0", "--load_ema"]
WINDOWS = ("episode_1_window_0", "episode_2_window_0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A volume with two held-out windows, and a checkpoint other than the initial weights."""
    volume = tmp_path_factory.mktemp("volume")
    val = volume / "datasets/d/val"
    (val / "metas").mkdir(parents=True)
    for number, name in enumerate(WINDOWS):
        write_video(val / f"videos/{name}.mp4", draw_episode(scene(number))[:19], 30)
        (val / f"metas/{name}.txt").write_text("The robot reaches for a tomato.\n")
        write_embedding(val / f"t5_xxl/{name}.pickle", np.ones((4, 1024), np.float16))
    TransformVAE().save_pretrained(volume / PRESETS["Tiny"].base_folder / "tokenizer")
    folder = CheckpointFolder(volume / RUN)
    folder.set_description(describe_run(CONFIG))
    net = build_network(CONFIG, World(device=torch.device("cpu")))
    zeros = {f"net.{name}": torch.zeros_like(one) for name, one in net.named_parameters()}
    average = {f"net_ema.{name}": one * 0.5 for name, one in net.named_parameters()}
    parts = {"model": zeros | average, "optim": {}, "scheduler": {}, "trainer": {}}
    folder.save(7, parts)
    return volume


@pytest.fixture
def volume(made, monkeypatch):
    monkeypatch.chdir(made)
    for name in [n for n in os.environ if n.startswith(("V2W_", "JOB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def run(capfd, *flags):
    capfd.readouterr()
    code = evaluate.main([*FLAGS, *flags, *INFERENCE])
    out, err = capfd.readouterr()
    events = [json.loads(line) for line in out.splitlines() if line.startswith('{"event"')]
    return code, events, out + err


def test_interrupted_and_resumed_it_writes_the_same_table(volume, capfd):
    command = [sys.executable, "-m", "video2world_trainer.evaluate", *FLAGS, *INFERENCE]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.startswith('{"event": "sample"'):
            break
    child.send_signal(signal.SIGTERM)
    assert child.wait(200) == 143
    first = Path(f"results/x/evaluation/base/{WINDOWS[0]}.json")
    before = first.stat().st_mtime_ns
    assert not TABLE.exists()

    code, events, out = run(capfd)
    assert (code, first.stat().st_mtime_ns) == (0, before)
    totals = [(e["done"], e["total"]) for e in events if e["event"] == "progress"]
    assert totals[0] in [(0, 3), (0, 2)]  # the second may have been done before the signal
    assert totals[-1] == (totals[0][1],) * 2
    assert "note: 16 samples requested, all 2 windows are used" in out
    table = json.loads(TABLE.read_text())
    rows = {row["model"]: row["metrics"] for row in table["rows"]}
    assert list(rows) == ["floor", "base", "iter_000000007", "ceiling"]
    assert rows["floor"]["psnr"]["value"] < rows["ceiling"]["psnr"]["value"]
    assert rows["floor"]["latent_l2"]["value"] > rows["ceiling"]["latent_l2"]["value"]
    assert rows["floor"]["latent_frechet"]["value"] > rows["ceiling"]["latent_frechet"]["value"]
    clips = {clip["clip"]: clip for clip in table["clips"]}
    assert list(clips) == list(WINDOWS)
    seen = json.loads(first.read_text())
    assert clips[WINDOWS[0]]["values"]["base"]["psnr"] == seen["metrics"]["psnr"]
    assert seen["ema"] is False  # the base has no average
    assert json.loads(Path(str(first).replace("base", "iter_000000007")).read_text())["ema"] is True
    (answer,) = [event for event in events if event["event"] == "evaluation"]
    assert (answer["clips"], answer["iteration"], answer["verdict"]) == (2, 7, "Unclear")
    assert answer["text"] == table["answer"]["text"]
    assert events[-1]["evaluation"]["text"] == answer["text"]

    # what is lost, and that alone, is made again, to the same figures
    second = Path(f"results/x/evaluation/iter_000000007/{WINDOWS[1]}.mp4")
    second.unlink()
    lost = Path("results/x/evaluation/references", seen["metrics"]["reference"])
    lost.unlink()  # of the other clip
    code, events, _ = run(capfd)
    assert code == 0
    again = [e["path"] for e in events if e["event"] == "sample"]
    assert sorted(again) == sorted(
        [
            str(second),
            f"results/x/evaluation/base/{WINDOWS[0]}.mp4",
            f"results/x/evaluation/iter_000000007/{WINDOWS[0]}.mp4",
        ]
    )
    assert lost.is_file()
    assert json.loads(TABLE.read_text()) == table

    page = Path("results/x/index.html").read_text()
    units_kept = answer["text"].replace(" dB", "\N{NO-BREAK SPACE}dB")
    for shown in (units_kept, "VAE round trip", WINDOWS[1]):
        assert shown in page
    for window in WINDOWS:
        assert f'src="evaluation/strips/{window}.png"' in page
        assert Path(f"results/x/evaluation/strips/{window}.png").is_file()

    # other metrics need no new clip, and those that cannot be computed say why
    code, events, out = run(capfd, "--metrics", "lpips", "ssim", "--samples", "2")
    assert code == 0
    assert not [e for e in events if e["event"] == "sample"]
    table = json.loads(TABLE.read_text())
    assert (table["metrics"], table["answer"]["metric"]) == (["ssim"], "ssim")
    assert "lpips" in table["skipped_metrics"]["lpips"]
    assert "note: LPIPS is left out" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics", "PSNRR"], "--metrics: PSNRR is unknown; did you mean psnr? (known: psnr"),
        (["--metrics", "lpips"], "--metrics: none can be computed (the package lpips"),
        (["--samples", "0"], "--samples 0: at least 1"),
        (["--dataset_dir", "datasets/none"], "no held-out windows in datasets/none/val/videos"),
        (["--checkpoints", "8"], "spec.evaluation.checkpoints: 8: there is no checkpoint of this"),
        (["--checkpoints", "a.pt"], "spec.evaluation.checkpoints: a.pt: there is no such file"),
        (["--base_weights", "b.pt"], "--base_weights b.pt: there is no such file; run the"),
        (["--run_folder", "none", "--checkpoints", "latest"], "latest: there is no checkpoint in"),
    ],
)
def test_mistakes_are_refused_before_any_weights_are_loaded(volume, capfd, flags, message):
    code, events, out = run(capfd, *flags)
    assert code == 2
    assert message in out
    assert [event["event"] for event in events] == ["failed"]
    assert "Traceback" not in out


def test_the_initial_weights_are_those_that_training_starts_from(volume):
    path = initial_weights(RUN)
    net = build_network(CONFIG, World(device=torch.device("cpu")))
    read = read_weights(path)
    assert len(read) == len(dict(net.named_parameters()))
    for name, one in net.named_parameters():
        torch.testing.assert_close(read[f"net.{name}"], one.detach().bfloat16(), rtol=0, atol=0)
    assert CheckpointFolder(RUN).iterations() == [7]  # it is not taken for a checkpoint


ACTIONS = ActionStatistics(
    names=("x", "y"),
    representation="absolute",
    source="test",
    fps=30.0,
    rows=36,
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
    min=(-3.0, -3.0),
    max=(3.0, 3.0),
    offset=(0.0, 0.0),
    scale=(1.0, 1.0),
)


def test_an_action_conditioned_checkpoint_that_ignores_its_actions_fails_if_asked_to(
    made, tmp_path, monkeypatch, capfd
):
    shutil.copytree(made, tmp_path / "v")
    monkeypatch.chdir(tmp_path / "v")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    random = np.random.default_rng(0)
    Path("datasets/d/actions.json").write_text(json.dumps(ACTIONS.to_json()))
    Path("datasets/d/val/actions").mkdir()
    for name in WINDOWS:
        rows = random.normal(size=(18, 2)).astype(np.float32)
        save_file({"actions": rows}, f"datasets/d/val/actions/{name}.safetensors")
    vae = str(PRESETS["Tiny"].base_folder) + "/tokenizer"
    flags = ["--dataset_path", "datasets/d/val", "--vae_path", vae, "--num_frames", "17"]
    flags += ["--video_size", "96", "128", "--clips_per_window", "3", "--device", "cpu"]
    assert latents.main(flags) == 0
    # as training starts: the embedders add zero, so every lift is exactly 0
    config = replace(CONFIG, action_conditioning="per_frame", name="y")
    recorded = RecordedActions("per_frame", ACTIONS)
    folder = CheckpointFolder(Path(str(RUN).replace("/x/", "/y/")))
    folder.set_description(describe_run(config, recorded))
    net = build_network(config, World(device=torch.device("cpu")), recorded)
    state = {f"net_ema.{name}": one.detach() for name, one in net.named_parameters()}
    folder.save(7, {"model": state, "optim": {}, "scheduler": {}, "trainer": {}})

    def evaluated(*flags):
        capfd.readouterr()
        argv = [one.replace("/x/", "/y/") for one in FLAGS]
        code = evaluate.main([*argv, "--samples", "6", *flags, *INFERENCE])
        out, err = capfd.readouterr()
        lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"event"')]
        return code, lines, out + err

    code, events, out = evaluated("--fail_when_actions_ignored")
    assert code == 2, out
    assert "(spec.evaluation.failWhenActionsIgnored): The model ignores its actions" in out
    assert "Traceback" not in out
    (verdict,) = [event for event in events if event["event"] == "evaluation"]
    actions = verdict["actions"]
    assert (actions["followed"], actions["lift"], actions["clips"]) == (False, 0.0, 6)
    assert actions["low"] == actions["high"] == 0.0

    # everything is written, and measured once
    results = Path("results/y/evaluation")
    table = json.loads((results / "evaluation.json").read_text())["actions"]
    assert table["text"] == actions["text"]
    lines = (results / "actions.csv").read_text().splitlines()
    assert lines[0] == "clip,true,shuffled,zeroed,late,early"
    assert len(lines) == 7
    page = Path("results/y/index.html").read_text()
    assert "Does it follow its actions?" in page
    assert "another clip&#39;s" in page
    code, events, out = evaluated()
    assert code == 0
    assert "its actions are measured already" in out
    assert events[-1]["evaluation"]["actions"] == actions
