"""Tests for reading and normalising actions."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from video2world_common.action_statistics import ActionStatistics
from video2world_common.exit_codes import UserError
from video2world_preprocess.actions.poses import relative_poses
from video2world_preprocess.actions.sequence import normalise, read_actions, read_sequence

A = (0.30, -0.10, 0.15, 0.10, -0.20, 0.30)
B = (0.31, -0.12, 0.16, 0.12, -0.17, 0.35)


def statistics(
    names=("shoulder", "elbow"), representation="absolute", fps=10.0, low=-90.0, high=90.0
):
    count = len(names)
    return ActionStatistics(
        names=tuple(names),
        representation=representation,
        source="test",
        fps=fps,
        rows=10,
        mean=(2.0,) * count,
        std=(4.0,) * count,
        min=(low,) * count,
        max=(high,) * count,
        offset=(2.0,) * count,
        scale=(0.25,) * count,
    )


def relative():
    return statistics(("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"), "relative_pose")


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_normalising_is_offset_then_scale():
    raw = np.array([[2.0, 6.0], [-2.0, 0.0]], np.float32)
    result = normalise(raw, statistics())
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[0, 1], [-1, -0.5]])
    with pytest.raises(UserError, match=r"dimension 3, but the model's have 2 \(shoulder, elbow\)"):
        normalise(np.zeros((4, 3)), statistics())


def test_every_format_gives_the_same_rows(tmp_path):
    rows = np.array([[1.5, -2.0], [3.0, 0.25], [8.0, 9.0]], np.float32)
    save_file({"actions": rows}, tmp_path / "a.safetensors")
    paths = [
        tmp_path / "a.safetensors",
        write(tmp_path, "a.csv", "elbow,shoulder\n-2,1.5\n0.25,3\n\n9,8\n"),
        write(tmp_path, "b.csv", "timestamp,shoulder,elbow\n0,1.5,-2\n0.1,3,.25\n0.2,8,9\n"),
        write(tmp_path, "a.json", {"actions": rows.tolist()}),
        write(
            tmp_path,
            "b.json",
            {"names": ["elbow", "shoulder"], "fps": 10, "actions": rows[:, ::-1].tolist()},
        ),
    ]
    for path in paths:
        result = read_sequence(path, statistics())
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, rows)


def test_an_annotation_gives_relative_poses_and_the_later_gripper_value(tmp_path):
    annotation = {
        "state": [[*A, 9], [*B, 9]],
        "continuous_gripper_state": [0.1, 0.7],
        "action": [[1] * 7],  # not read
    }
    rows = read_sequence(write(tmp_path, "13.json", annotation), relative())
    golden = [0.0055570374, -0.0210455340, 0.0112340924, 0.0299960363, 0.0345266888, 0.0460862655]
    np.testing.assert_allclose(rows, [[*golden, 0.7]], atol=1e-8)


def test_absolute_actions_of_another_rate_are_resampled(tmp_path):
    value = {"fps": 20, "actions": [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]}
    rows = read_sequence(write(tmp_path, "a.json", value), statistics())
    np.testing.assert_allclose(rows, [[0, 0], [2, 20], [4, 40]])
    up = read_sequence(write(tmp_path, "a.json", value | {"fps": 5}), statistics())
    np.testing.assert_allclose(up[:3], [[0, 0], [0.5, 5], [1, 10]])
    assert len(up) == 9


def test_resampling_takes_the_short_way_around_for_angles_and_quaternions(tmp_path):
    names = ["x", "yaw", "qx", "qy", "qz", "qw"]
    half = math.sqrt(0.5)
    value = {
        "names": names,
        "fps": 5,
        "actions": [[0, 3.1, 0, 0, 0, 1], [1, -3.1, 0, 0, -half, -half]],
    }
    rows = read_sequence(write(tmp_path, "a.json", value), statistics(names))
    angle = math.pi / 8
    np.testing.assert_allclose(
        rows[1], [0.5, math.pi, 0, 0, math.sin(angle), math.cos(angle)], atol=1e-6
    )


def test_a_nearly_normalised_quaternion_is_normalised(tmp_path):
    names = ["qx", "qy", "qz", "qw"]
    path = write(tmp_path, "a.json", {"actions": [[0, 0, 0, 1.0009]]})
    np.testing.assert_array_equal(read_sequence(path, statistics(names)), [[0, 0, 0, 1]])


STATES = {"state": [list(A), list(B)], "continuous_gripper_state": [0, 1]}
BAD = [
    ("a.txt", "", statistics(), "give actions as"),
    ("a.csv", "shoulder,elbow\n1,2\nnan,3\n", statistics(), "row 1: value 0 is nan"),
    ("a.csv", "shoulder,elbow\n1,2\n1,inf\n", statistics(), "row 1: value 1 is inf"),
    ("a.csv", "shoulder,elbow\n1,2\n1,x\n", statistics(), "row 1: could not convert"),
    ("a.csv", "shoulder,elbow\n1,2\n1\n", statistics(), "row 1: 1 values, the first line names 2"),
    ("a.csv", "shoulder,elbow\n", statistics(), "no row of numbers"),
    ("a.csv", "", statistics(), "add shoulder, elbow"),
    ("a.csv", "shoulder,wrist\n1,2\n", statistics(), "add elbow, without wrist"),
    ("a.csv", "elbow,shoulder,elbow\n1,2,3\n", statistics(), "add each once"),
    ("a.csv", "timestamp,shoulder,elbow\n0,1,2\n0,1,2\n", statistics(), "do not increase"),
    (
        "a.csv",
        "timestamp,shoulder,elbow\n0,1,2\n.1,1,2\n.2,1,2\n.9,1,2\n",
        statistics(),
        "row 3: its timestamp is 0.7 s after",
    ),
    ("a.json", [[1, 2]], statistics(), "is not an object"),
    ("a.json", "{", statistics(), "not valid JSON"),
    ("a.json", {"actions": [[1, 2], [1]]}, statistics(), "actions: row 1 has 1 values"),
    ("a.json", {"actions": [[1, 2], [1, None]]}, statistics(), "actions: row 1 is "),
    ("a.json", {"actions": [[1, 2, 3]]}, statistics(), "rows of 3 values, but .* have 2"),
    ("a.json", {"names": ["a"], "actions": [[1, 2]]}, statistics(), "names 1 columns"),
    ("a.json", {"fps": -1, "actions": [[1, 2]]}, statistics(), "fps: -1"),
    ("a.json", '{"actions": [[1, NaN]]}', statistics(), "actions: row 0 has nan"),
    (
        "a.json",
        {"actions": [[0, 0.5], [0, 7]]},
        statistics(("x", "gripper"), low=0, high=1),
        "row 1: gripper is 7, but in training it was from 0 to 1",
    ),
    (
        "a.json",
        {"actions": [[0, 0, 0, 1], [0, 0, 0, 1.01]]},
        statistics(("qx", "qy", "qz", "qw")),
        "row 1: the quaternion qx, qy, qz, qw has the length 1.01",
    ),
    ("a.json", STATES, statistics(), "is an annotation with poses"),
    (
        "a.json",
        STATES | {"continuous_gripper_state": [0, 1.5]},
        relative(),
        "continuous_gripper_state: row 1 is 1.5, from 0",
    ),
    ("a.json", STATES | {"continuous_gripper_state": [0]}, relative(), "1 values for 2 rows"),
    ("a.json", STATES | {"state": [[1, 2], [3, 4]]}, relative(), "state: rows of 2 values"),
    ("a.json", {"fps": 5, "actions": [[0] * 7] * 3}, relative(), "cannot be resampled"),
]


@pytest.mark.parametrize(("name", "content", "known", "message"), BAD)
def test_bad_sequences_are_refused_by_file_and_row(tmp_path, name, content, known, message):
    with pytest.raises(UserError, match=message) as error:
        read_sequence(write(tmp_path, name, content), known)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": np.zeros((2, 2), np.float32)}, "no tensor"),
        ({"actions": np.zeros((2, 2, 1), np.float32)}, r"actions is F32 \[2, 2, 1\]"),
        ({"actions": np.zeros((2, 2), np.int64)}, "actions is I64"),
        ({"actions": np.zeros((0, 2), np.float32)}, r"have the shape \[0, 2\]"),
        ({"actions": np.zeros((1, 1025), np.float32)}, r"have the shape \[1, 1025\]"),
        ({"actions": np.array([[1, 2], [3, np.nan]], np.float32)}, "row 1: value 1 is nan"),
    ],
)
def test_bad_tensors_are_refused(tmp_path, tensors, message):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        read_actions(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        read_actions(path)


def test_relative_poses_of_the_same_pose_are_exactly_zero():
    rotation = np.broadcast_to(np.eye(3)[[1, 2, 0]], (2, 3, 3))
    assert not relative_poses(np.ones((2, 3)), rotation).any()
