"""Tests for relative poses: golden values of the reference sheet, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_preprocess.actions.moments import Moments
from video2world_preprocess.actions.poses import (
    euler_of,
    matrix_of,
    matrix_of_quaternion,
    relative_actions,
    relative_poses,
)

A = (0.30, -0.10, 0.15, 0.10, -0.20, 0.30)
B = (0.31, -0.12, 0.16, 0.12, -0.17, 0.35)
C = (0.33, -0.11, 0.14, 3.10, 0.05, -3.10)
D = (0.33, -0.11, 0.14, -3.10, 0.05, 3.10)
GOLDEN = {  # shared/reference/action-conditioned.md, section 12.4, executed upstream
    (A, B): (
        *(0.0055570374, -0.0210455340, 0.0112340924),
        *(0.0299960363, 0.0345266888, 0.0460862655),
    ),
    (B, C): (
        *(0.0185125303, -0.0002921489, -0.0236051026),
        *(-3.0169099148, -0.0747135745, 2.8208851395),
    ),
    (C, D): (0, 0, 0, 0.0871947849, -0.0036230605, 0.0830024331),
    (A, C): (
        *(0.0232058128, -0.0198152136, -0.0129941357),
        *(-3.0345949997, -0.1169231081, 2.8681458671),
    ),
}
angles = st.floats(-math.pi, math.pi)


@pytest.mark.parametrize(("before", "after"), GOLDEN)
def test_relative_poses_have_upstreams_values(before, after):
    rows = relative_actions(np.array([before, after]), np.array([0.25, 0.75]))
    np.testing.assert_allclose(rows, [[*GOLDEN[before, after], 0.75]], atol=6e-11)


def test_the_same_pose_gives_exactly_zero_and_the_later_gripper():
    rows = relative_actions(np.array([A, A]), np.array([0.25, 0.75]))
    assert rows.tolist() == [[0, 0, 0, 0, 0, 0, 0.75]]


def test_a_rotation_matrix_has_upstreams_values():
    golden = [
        [0.9362933636, -0.3129918258, -0.1593450793],
        [0.2896294776, 0.9447024860, -0.1537919980],
        [0.1986693308, 0.0978433950, 0.9751703272],
    ]
    np.testing.assert_allclose(matrix_of(np.array(A[3:])), golden, atol=6e-11)


def test_at_a_pitch_of_90_degrees_yaw_is_zero_and_nothing_is_lost():
    rotation = matrix_of(np.array([0.3, math.pi / 2, 0.2]))
    np.testing.assert_allclose(euler_of(rotation), [0.1, 1.5707963268, 0], atol=1e-9)
    np.testing.assert_allclose(matrix_of(euler_of(rotation)), rotation, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(angles, min_size=3, max_size=3))
def test_angles_describe_their_rotation_and_are_wrapped(values):
    rotation = matrix_of(np.array(values))
    found = euler_of(rotation)
    assert (found > -math.pi).all()
    assert (found <= math.pi).all()
    np.testing.assert_allclose(matrix_of(found), rotation, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-3, 3), min_size=6, max_size=6), min_size=2, max_size=6))
def test_adding_up_relative_poses_leads_to_the_last_pose(poses):
    poses = np.array(poses)
    rotations = matrix_of(poses[:, 3:])
    position, rotation = poses[0, :3], rotations[0]
    for step in relative_poses(poses[:, :3], rotations):
        position = position + rotation @ step[:3]
        rotation = rotation @ matrix_of(step[3:])
    np.testing.assert_allclose(position, poses[-1, :3], atol=1e-4)
    np.testing.assert_allclose(rotation, rotations[-1], atol=1e-4)


def test_quaternions_and_euler_angles_give_the_same_rotation():
    half = 0.35
    quaternion = np.array([0, 0, math.sin(half), math.cos(half)])  # x y z w: a turn about z
    np.testing.assert_allclose(
        matrix_of_quaternion(quaternion), matrix_of(np.array([0, 0, 2 * half])), atol=1e-15
    )
    np.testing.assert_array_equal(
        matrix_of_quaternion(-quaternion), matrix_of_quaternion(quaternion)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2), min_size=2, max_size=30),
    st.integers(1, 29),
)
def test_moments_of_parts_add_up_to_those_of_all(rows, place):
    rows = np.array(rows)
    place = min(place, len(rows) - 1)
    added = Moments.of(rows[:place]) + Moments.of(rows[place:])
    alone = Moments.of(rows)
    assert (added.rows, added.low, added.high) == (alone.rows, alone.low, alone.high)
    np.testing.assert_allclose(added.mean, alone.mean, atol=1e-9)
    np.testing.assert_allclose(added.squares, alone.squares, rtol=1e-9, atol=1e-6)
    assert Moments.from_json(vars(added), 2) == added


@pytest.mark.parametrize("value", [None, {}, {"rows": 1}, 7])
def test_damaged_moments_are_refused(value):
    with pytest.raises(ValueError, match=r"."):
        Moments.from_json(value, 2)
