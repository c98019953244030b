"""Derive relative poses from end-effector poses.

The conventions are those of Cosmos-Predict2's Bridge data (``dataset_utils.py``), which the
published action-conditioned weights were trained with.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "RELATIVE_NAMES",
    "euler_of",
    "matrix_of",
    "matrix_of_quaternion",
    "relative_actions",
    "relative_poses",
]

RELATIVE_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
GIMBAL = 1e-6  # cos(pitch) below which roll and yaw turn about the same axis


def matrix_of(angles: np.ndarray) -> np.ndarray:
    """Return rotations [..., 3, 3] of roll, pitch and yaw [..., 3] in radians: Rz @ Ry @ Rx."""
    (sr, sp, sy), (cr, cp, cy) = (
        np.moveaxis(f(np.asarray(angles, np.float64)), -1, 0) for f in (np.sin, np.cos)
    )
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_of_quaternion(quaternions: np.ndarray) -> np.ndarray:
    """Return rotations [..., 3, 3] of quaternions [..., 4] of length 1, in the order x, y, z, w."""
    x, y, z, w = np.moveaxis(np.asarray(quaternions, np.float64), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler_of(rotations: np.ndarray) -> np.ndarray:
    """Return roll, pitch and yaw [..., 3] in (-pi, pi] of rotations [..., 3, 3].

    Near a pitch of 90 degrees, yaw is 0 and roll has the rotation that is left.
    """
    r = rotations
    cosine = np.hypot(r[..., 0, 0], r[..., 1, 0])
    is_locked = cosine < GIMBAL
    roll = np.where(
        is_locked,
        np.arctan2(-r[..., 1, 2], r[..., 1, 1]),
        np.arctan2(r[..., 2, 1], r[..., 2, 2]),
    )
    pitch = np.arctan2(-r[..., 2, 0], cosine)
    yaw = np.where(is_locked, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    angles = np.stack([roll, pitch, yaw], axis=-1)
    wrapped: np.ndarray = np.where(angles <= -np.pi, np.pi, angles)
    return wrapped


def relative_poses(positions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Return each pose relative to the one before, in its coordinates: [N - 1, 6].

    Args:
        positions: [N, 3], in metres.
        rotations: [N, 3, 3].
    """
    before, after = rotations[:-1], rotations[1:]
    moved = np.einsum("nji,nj->ni", before, np.diff(positions, axis=0))
    turned = euler_of(np.einsum("nji,njk->nik", before, after))
    same = (before == after).all(axis=(1, 2))  # rounding would leave 1e-17 where nothing turned
    return np.concatenate([moved, np.where(same[:, None], 0.0, turned)], axis=1)


def relative_actions(states: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Return actions [N - 1, 7]: relative poses, and the gripper's value at the later frame.

    Args:
        states: x, y, z in metres and roll, pitch, yaw in radians, [N, 6].
        gripper: [N].
    """
    poses = relative_poses(states[:, :3], matrix_of(states[:, 3:6]))
    return np.concatenate([poses, gripper[1:, None]], axis=1)
