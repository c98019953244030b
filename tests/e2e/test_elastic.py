"""A training group that loses a node, and gets it back, learns what one that never did learns."""

import json
import sys

import pytest
import yaml

from video2world_operator.api.validation import load_resource
from video2world_operator.local.engine import LocalEngine
from video2world_operator.local.pods import PodGroup
from video2world_operator.plan.plan import make_plan
from video2world_operator.terminal import Display
from video2world_preprocess.demo import make_task

pytestmark = pytest.mark.slow


def run(tmp_path, name, iterations):
    """Train so far on two nodes, or on one where the other does not start."""
    training = {"nodes": 2, "minNodes": 1, "iterations": iterations, "clipsPerWindow": 2}
    training["overrides"] = ["trainer.logging_iter=1"]
    document = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": name},
        "spec": {
            "model": {"size": "Tiny"},
            "dataset": {"agibot": {"path": "datasets/agibot"}},
            "training": training | {"jobName": name},
        },
    }
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document))
    engine = LocalEngine(
        make_plan(load_resource(file)), tmp_path / "volume", Display(sys.stdout), file
    )
    assert engine.run() == 0


def losses(tmp_path, name):
    folder = tmp_path / "volume/checkpoints/posttraining/video2world" / name
    (path,) = folder.rglob("progress.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["iteration"]: row["loss"] for row in rows if row.get("loss") is not None}


def test_the_loss_curve_is_that_of_the_full_group(tmp_path, monkeypatch):
    make_task(tmp_path / "volume/datasets/agibot", episodes=3)
    run(tmp_path, "fixed", 18)
    run(tmp_path, "elastic", 6)
    start_pod, lost = PodGroup._start_pod, True

    def start(self, index, *more):
        if index and lost and self.stage == "train":
            raise OSError(11, "Resource temporarily unavailable")
        start_pod(self, index, *more)

    monkeypatch.setattr(PodGroup, "_start_pod", start)
    run(tmp_path, "elastic", 12)
    lost = False
    run(tmp_path, "elastic", 18)
    state = json.loads((tmp_path / "volume/.video2world/elastic/state.json").read_text())
    records = state["status"]["attempts"]
    assert [(r["nodes"], r["reason"], r["startIteration"]) for r in records] == [
        (2, "Succeeded", 0),
        (2, "GroupShrunk", 6),
        (1, "Succeeded", 6),
        (2, "Succeeded", 12),
    ]
    fixed, elastic = losses(tmp_path, "fixed"), losses(tmp_path, "elastic")
    assert set(elastic) == set(fixed)
    assert len(fixed) == 18
    assert elastic == pytest.approx(fixed, abs=1e-5)
