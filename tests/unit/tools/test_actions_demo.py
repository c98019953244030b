"""tools/actions_demo.py: its moves, the model that it compares with, and its verdict."""

import importlib

import numpy as np
import pytest
import yaml

from video2world_operator.api.validation import parse
from video2world_preprocess.drawn_arm import LIMITS, ArmScene, render
from video2world_preprocess.video.writer import write_video


@pytest.fixture(scope="module")
def demo():
    return importlib.import_module("actions_demo")


def test_the_moves_start_at_the_first_frame_and_end_in_four_poses(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "VOLUME", tmp_path)
    demo.write_moves()
    resource = yaml.safe_load(demo.RESOURCE.read_text())
    samples = resource["spec"]["inference"]["samples"]
    assert {f"episode_{demo.FIRST:06d}" in one["input"] for one in samples} == {True}
    assert len({one["input"] for one in samples}) == 1
    ends = []
    for sample in samples:
        lines = (tmp_path / sample["actions"]).read_text().splitlines()
        assert lines[0] == "shoulder,elbow"
        rows = np.array([line.split(",") for line in lines[1:]], float)
        assert rows.shape == (demo.CLIP - 1, 2)
        steps = np.diff(np.concatenate([demo.joints(demo.FIRST)[:1], rows]), axis=0)
        assert np.abs(steps).max() < 13  # as fast as the arm moves in training
        for column, name in zip(rows.T, ("shoulder", "elbow"), strict=True):
            assert LIMITS[name][0] <= column.min() <= column.max() <= LIMITS[name][1]
        ends.append(rows[-1])
        assert sample["output"] == sample["actions"].split("/")[1].replace(".csv", ".mp4")
    apart = [np.abs(one - two).max() for n, one in enumerate(ends) for two in ends[:n]]
    assert min(apart) > 20


def test_the_other_model_differs_in_its_actions_alone(demo):
    resource = yaml.safe_load(demo.RESOURCE.read_text())
    other = demo.without_actions(resource)
    first, second = (parse(one).spec for one in (resource, other))
    assert second.training.conditioning is None
    assert first.training.conditioning is not None
    for name in ("seed", "iterations", "batch_size", "overrides", "clips_per_window"):
        assert getattr(first.training, name) == getattr(second.training, name)
    assert first.model == second.model
    assert other["spec"]["dataset"] == {"prepared": {"path": "datasets/demo-actions"}}


def test_the_pose_error_is_that_of_the_last_frame(demo, tmp_path):
    joints = demo.joints(100)
    video = tmp_path / "x.mp4"
    write_video(video, render(ArmScene.of(100, *demo.SIZE), joints), 10)
    assert demo.pose_error(video, 100, joints[-1]) < 2
    assert demo.pose_error(video, 100, joints[-1] + [10, -30]) == pytest.approx(20, abs=2)


@pytest.mark.parametrize(
    ("lift", "low", "with_actions", "without", "code"),
    [(0.6, 0.5, 6, 40, 0), (0.6, 0.5, 14, 40, 1), (0.09, 0.05, 6, 40, 1), (0.2, -0.1, 6, 40, 1)],
)
def test_the_goals(demo, capsys, lift, low, with_actions, without, code):
    table = {
        "rows": [{"model": "iter_5", "metrics": {"psnr": {"value": 20.0}}}],
        "answer": {"checkpoint": "iter_5"},
        "actions": {"lift": lift, "low": low, "high": lift + 0.1},
    }
    models = tuple(demo.Model(table, {96: e, 97: e}) for e in (with_actions, without))
    assert demo.show(models, {"left": 3.0}, 12.3, 2048.0) == code
    out = capsys.readouterr().out
    assert ("DOES NOT FOLLOW" in out) == bool(code)
    assert out.splitlines()[-1].endswith("/.demo/results/demo-actions/index.html")
