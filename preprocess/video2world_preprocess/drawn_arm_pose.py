"""Read the joint angles of the drawn arm off frames, by fitting rendered poses to them."""

from __future__ import annotations

import itertools

import numpy as np

from video2world_preprocess.drawn_arm import LIMITS, ArmScene, render

__all__ = ["fit_joints"]

GRID = 10.0  # degrees between the poses that are tried first
BEST = 3  # of them, which are refined
FINEST = 0.25  # degrees


def fit_joints(scene: ArmScene, frames: np.ndarray) -> np.ndarray:
    """Return the joint angles in degrees [T, J] whose pictures are nearest to ``frames``.

    Poses are compared by the squared difference of pixels: first those on a grid over the joints'
    limits, then around the best of them with ever smaller steps. The result is within the limits.

    Args:
        scene: what is drawn besides the pose; of the frames' size.
        frames: uint8 RGB [T, H, W, 3].

    Raises:
        ValueError: the frames have another size than the scene.
    """
    if frames.shape[1:] != (scene.height, scene.width, 3):
        raise ValueError(f"frames {frames.shape} do not fit {scene.height}x{scene.width} pixels")
    low, high = np.array([LIMITS[name] for name in scene.joints]).T
    axes = [
        np.linspace(*LIMITS[name], 2 + int((LIMITS[name][1] - LIMITS[name][0]) / GRID))
        for name in scene.joints
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    wanted = frames.reshape(len(frames), 1, -1).astype(np.float32)
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2, so that no array has frames x poses x pixels
    drawn = render(scene, grid).reshape(len(grid), -1).astype(np.float32)
    distance = np.square(drawn).sum(-1) - 2 * wanted[:, 0] @ drawn.T
    poses = grid[np.argsort(distance, axis=1)[:, :BEST]].reshape(-1, len(axes))
    owner = np.repeat(np.arange(len(frames)), BEST)
    moves = np.array(list(itertools.product((0, -1, 1), repeat=len(axes))))
    error = np.full(len(poses), np.inf)
    step = GRID / 2
    while step >= FINEST:
        near = np.clip(poses[:, None] + step * moves, low, high)
        drawn = render(scene, near.reshape(-1, len(axes))).reshape(*near.shape[:2], -1)
        found = np.square(drawn - wanted[owner]).sum(-1)
        best = found.argmin(axis=1)
        poses, error = near[np.arange(len(poses)), best], found.min(axis=1)
        if (best == 0).all():
            step /= 2
    chosen = error.reshape(len(frames), BEST).argmin(axis=1)
    joints: np.ndarray = poses.reshape(len(frames), BEST, -1)[np.arange(len(frames)), chosen]
    return joints
