"""Tests for the drawn arm: known angles, a readable pose, random motion, and its dataset."""

import colorsys
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from video2world_preprocess import demo_arm
from video2world_preprocess.drawn_arm import LIMITS, ArmScene, render, trajectory
from video2world_preprocess.video.reader import read_frames


def hues(frames):
    """Return each pixel's color as hue and saturation."""
    return np.apply_along_axis(lambda c: colorsys.rgb_to_hsv(*c)[:2], -1, frames / 255)


@pytest.mark.parametrize("size", [(96, 128), (64, 80)])
def test_both_links_are_seen_in_every_pose_and_none_leaves_the_picture(size):
    scene = ArmScene.of(3, *size)
    corners = [[s, e] for s in LIMITS["shoulder"] for e in LIMITS["elbow"]]
    frames = render(scene, np.array([*corners, [0, 0], [50, 40]]))
    found = hues(frames)
    vivid = found[..., 1] > 0.6
    for low, high in ((0.55, 0.67), (-0.05, 0.06)):
        hue = np.where(found[..., 0] > 0.9, found[..., 0] - 1, found[..., 0])
        link = vivid & (hue > low) & (hue < high)
        assert link.sum((1, 2)).min() > 0.015 * size[0] * size[1]
        assert not link[:, 0].any()
        assert not link[:, :, [0, -1]].any()


def test_a_pose_shows_as_drawn_and_different_angles_give_different_pictures():
    scene = ArmScene.of(0)
    straight = hues(render(scene, np.zeros((1, 2))))[0]
    rows, columns = np.nonzero((abs(straight[..., 0] - 0.6) < 0.06) & (straight[..., 1] > 0.6))
    assert abs(columns.mean() - scene.base[0]) < 1  # upwards from the shoulder
    assert rows.max() < scene.base[1] - 0.3 * scene.unit
    right = hues(render(scene, np.array([[0.0, 90.0]])))[0]
    rows, columns = np.nonzero((abs(right[..., 0] - 0.6) < 0.06) & (right[..., 1] > 0.6))
    assert columns.mean() > scene.base[0] + 0.1 * scene.unit  # a positive elbow turns right
    assert np.ptp(rows) < np.ptp(columns)


def test_many_frames_are_drawn_as_each_alone():
    scene = ArmScene.of(1, gripper=True)
    joints = trajectory(1, 70, scene.joints)
    frames = render(scene, joints)
    for place in (0, 31, 32, 69):
        assert (frames[place] == render(scene, joints[place : place + 1])[0]).all()
    with pytest.raises(ValueError, match=r"joints \[T, 3\] are expected"):
        render(scene, joints[:, :2])


def test_a_trajectory_is_smooth_within_limits_and_depends_on_its_seed_only():
    joints = ("shoulder", "elbow", "gripper")
    many = np.stack([trajectory(seed, 97, joints) for seed in range(60)])
    for place, (low, high) in enumerate(LIMITS.values()):
        assert low <= many[..., place].min() < many[..., place].max() <= high
    assert np.abs(np.diff(many, axis=1)).max() < 14
    assert np.abs(np.diff(many, 2, axis=1)).max() < 8
    assert (trajectory(7, 97, joints) == many[7]).all()
    assert (trajectory(7, 40, joints) == many[7, :40]).all()


def test_the_first_frame_does_not_determine_the_motion():
    many = np.stack([trajectory(seed, 13) for seed in range(2000)])
    moved = many[:, 12] - many[:, 0]
    near = np.abs(many[:, 0] - [0, 0]).max(1) < 15  # poses that look alike
    assert near.sum() > 30
    assert (moved[near].std(0) > [12, 25]).all()
    assert (np.abs(moved[near].mean(0)) < [10, 20]).all()
    both_ways = (moved[near] > 5).mean(0)
    assert ((both_ways > 0.2) & (both_ways < 0.8)).all()


def test_the_dataset_shows_the_angles_that_its_rows_say(tmp_path):
    flags = ["--data_dir", str(tmp_path), "--episodes", "3", "--frames", "20", "--seed", "4"]
    assert demo_arm.main(flags) == 0
    rows = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet").to_pydict()
    states, actions = np.array(rows["observation.state"]), np.array(rows["action"])
    assert states.shape == actions.shape == (60, 2)
    frames = read_frames(tmp_path / f"videos/{demo_arm.CAMERA}/chunk-000/file-000.mp4")
    for episode in range(3):
        part = slice(20 * episode, 20 * episode + 20)
        assert rows["episode_index"][part] == [episode] * 20
        np.testing.assert_array_equal(actions[part][:-1], states[part][1:])
        drawn = render(ArmScene.of(40_000 + episode), states[part])
        assert np.abs(frames[part].astype(int) - drawn).mean() < 3
    assert np.abs(np.diff(states[:20], axis=0)).max() > 2

    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["features"]["action"]["names"] == ["shoulder", "elbow"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert demo_arm.main(flags) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}


def test_flags_out_of_range_are_refused(capsys):
    with pytest.raises(SystemExit):
        demo_arm.main(["--height", "33"])
    assert "--height: give 32 to 2048, an even number" in capsys.readouterr().err
