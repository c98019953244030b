"""The joint angles that are read off frames of the drawn arm: drawn, noisy, blurred, encoded."""

import numpy as np
import pytest
import torch

from video2world_preprocess.drawn_arm import LIMITS, ArmScene, render, trajectory
from video2world_preprocess.drawn_arm_pose import fit_joints
from video2world_preprocess.vae.tiny_vae import TransformVAE


def noisy(frames):
    noise = np.random.default_rng(0).normal(0, 25, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def blurred(frames):
    """Average over 5 x 5 pixels."""
    padded = np.pad(frames.astype(float), [(0, 0), (2, 2), (2, 2), (0, 0)], mode="edge")
    shifts = [
        padded[:, y : y + frames.shape[1], x : x + frames.shape[2]]
        for y in range(5)
        for x in range(5)
    ]
    return np.mean(shifts, axis=0).astype(np.uint8)


def through_the_vae(frames):
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    vae = TransformVAE()
    decoded = vae.decode(vae.encode(video).mode()).sample[0].clamp(-1, 1)
    return ((decoded + 1) * 127.5 + 0.5).byte().permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize(
    ("change", "mean", "most"),  # degrees
    [
        (lambda frames: frames, 0.3, 1.0),
        (noisy, 0.4, 1.5),
        (blurred, 1.5, 5.0),
        (through_the_vae, 3.0, 15.0),
    ],
)
def test_the_angles_are_those_that_were_drawn(change, mean, most):
    errors = []
    for seed in range(2):
        scene = ArmScene.of(seed, 64, 80)
        joints = trajectory(seed, 17)
        frames = change(render(scene, joints))[::8]
        errors.append(np.abs(fit_joints(scene, frames) - joints[::8]))
    assert np.mean(errors) < mean
    assert np.max(errors) < most


def test_a_gripper_is_read_too_and_angles_stay_within_the_limits():
    scene = ArmScene.of(1, 64, 80, gripper=True)
    joints = np.array([[LIMITS[name][1] for name in scene.joints], [-20.0, 60.0, 15.0]])
    found = fit_joints(scene, render(scene, joints))
    np.testing.assert_allclose(found[:, :2], joints[:, :2], atol=0.6)
    np.testing.assert_allclose(found[:, 2], joints[:, 2], atol=6)
    for column, name in zip(found.T, scene.joints, strict=True):
        assert LIMITS[name][0] <= column.min() <= column.max() <= LIMITS[name][1]


def test_frames_of_another_size_are_refused():
    scene = ArmScene.of(0, 64, 80)
    with pytest.raises(ValueError, match=r"do not fit 64x80 pixels"):
        fit_joints(scene, np.zeros((1, 96, 128, 3), np.uint8))
