"""`helm install`, `kubectl apply -f demo.yaml`: containers on a node, and a video on the volume."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime

import yaml

from on_node import NAMESPACE, RELEASE, apply, demo, helm
from operators import Resource, eventually
from video2world_preprocess.video.reader import probe

ITERATIONS = 120
SAMPLE = "task_327_episode_685393_window_0_frame_0-149"


def stamp(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_from_apply_to_the_video(node, volume, record):
    folder = volume("demo-data")
    body = demo("demo", training={"iterations": ITERATIONS, "checkpoint": {"everyIterations": 50}})
    applied = time.time()
    run = apply(node, body)

    # Training runs, in two pods that know each other by name.
    pods = eventually(
        lambda: run.pods("train") if len(run.pods("train")) == 2 else None,
        300,
        lambda: (run.status, node.kubectl("get", "pods", "-A").stdout),
    )
    names = [pod["metadata"]["name"] for pod in pods]
    host = "demo-train-1-0.demo-train"
    code = f"import socket; print(socket.gethostbyname('{host}'))"
    asked = ("exec", "-n", NAMESPACE, names[1], "--", "python", "-c", code)
    assert node.kubectl(*asked).stdout.strip() == pods[0]["status"]["podIP"]

    # kubectl shows its progress while it runs.
    logs = ("logs", "-n", NAMESPACE, names[0])
    eventually(
        lambda: (run.status.get("progress") or {}).get("iteration", 0) > 5,
        120,
        lambda: (run.status, node.kubectl(*logs).stdout),
    )
    table = node.kubectl("get", "v2w", "-n", NAMESPACE, "demo").stdout
    assert "Running" in table
    assert f"/{ITERATIONS}" in table
    logged = node.kubectl(*logs).stdout
    assert '"event": "progress"' in logged or '"event":"progress"' in logged

    status = run.reaches(phase="Succeeded", seconds=600)

    # Every stage ran as a container, after the one before it.
    ends = []
    for entry in status["stages"]:
        stage = entry["name"]
        done = run.pods(stage, phase="Succeeded")
        assert len(done) == (2 if stage == "train" else 1), stage
        states = [p["status"]["containerStatuses"][0]["state"]["terminated"] for p in done]
        assert [s["exitCode"] for s in states] == [0] * len(states)
        started = min(stamp(s["startedAt"]) for s in states)
        assert not ends or started >= ends[-1], stage
        ends.append(max(stamp(s["finishedAt"]) for s in states))
        record.setdefault("stages", {})[stage] = {
            "created_after_apply": age(done[0]["metadata"]["creationTimestamp"], applied),
            "started_after_apply": round(started.timestamp() - applied, 1),
            "ended_after_apply": round(ends[-1].timestamp() - applied, 1),
        }

    # The loss fell.
    lines = node.kubectl(*logs, "--timestamps").stdout.splitlines()
    reported = [line.partition(" ") for line in lines if '"iteration"' in line]
    parsed = [(when, json.loads(text)) for when, _, text in reported if text.startswith("{")]
    events = [(when, event) for when, event in parsed if event["event"] == "progress"]
    losses = [e["loss"] for _, e in events if e.get("loss") is not None]
    few = max(1, len(losses) // 5)
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    assert last < 0.8 * first, losses
    record["loss"] = {"first": round(first, 4), "last": round(last, 4)}
    record["first_iteration_after_apply"] = age(events[0][0], applied)
    record["succeeded_after_apply"] = age(status["completionTime"], applied)

    # The volume holds the guide's tree, and the video.
    checkpoints = folder / "checkpoints/posttraining/video2world/demo/checkpoints"
    assert (checkpoints / "latest_checkpoint.txt").read_text() == f"iter_{ITERATIONS:09d}.pt\n"
    for part in ("model", "optim", "scheduler", "trainer"):
        assert (checkpoints / part / f"iter_{ITERATIONS:09d}.pt").exists()
    train = folder / "datasets/agibot_head_center_fisheye_color/train"
    for name, suffix in {"videos": ".mp4", "metas": ".txt", "t5_xxl": ".pickle"}.items():
        assert list((train / name).glob(f"*{suffix}"))
    assert probe(folder / "results/demo/sample-0.mp4").frames == 17
    figures = json.loads((folder / "results/demo/sample-0.json").read_text())
    assert figures["metrics"]["psnr"] > 0


def age(when, applied):
    return round(stamp(when[:19] + "Z").timestamp() - applied, 1)


def test_helm_test(node):
    assert "Phase:          Succeeded" in helm(node, "test", RELEASE)


def test_what_render_shows_is_what_was_applied(node, tmp_path):
    """Every field that `v2w render` writes is in the API server's object, with that value."""
    file = tmp_path / "demo.yaml"
    live = Resource(node, NAMESPACE, "demo").object
    kept = {key: live[key] for key in ("apiVersion", "kind", "spec")}
    kept["metadata"] = {"name": "demo", "namespace": NAMESPACE}
    file.write_text(yaml.safe_dump(kept))
    command = [sys.executable, "-m", "video2world_operator.cli", "render", "-f", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rendered = list(yaml.safe_load_all(text))
    assert {one["kind"] for one in rendered} >= {"PersistentVolumeClaim", "Service", "Job"}
    for one in rendered:
        kind, name = one["kind"].lower(), one["metadata"]["name"]
        shown = node.kubectl("get", kind, "-n", NAMESPACE, name, "-o", "json").stdout
        assert lacks(one, json.loads(shown)) == []


def lacks(wanted, there, path=""):
    """Paths of fields that are wanted and not there, or there with another value."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [
            found
            for key, value in wanted.items()
            for found in lacks(value, there.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(there, list) and named(wanted) and named(there):
        by_name = {one["name"]: one for one in there}  # as API machinery merges such lists
        return [
            found
            for one in wanted
            for found in lacks(one, by_name.get(one["name"]), f"{path}[{one['name']}]")
        ]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        return [
            found
            for number, (a, b) in enumerate(zip(wanted, there, strict=True))
            for found in lacks(a, b, f"{path}[{number}]")
        ]
    same = wanted == there or (wanted == "" and there is None)  # the server keeps no empty text
    return [] if same else [f"{path}: {wanted!r} is {there!r}"]


def named(items):
    """Whether a list is one of environment variables, containers, volumes, ports, ..."""
    return bool(items) and all(isinstance(one, dict) and "name" in one for one in items)
