"""Tests for the description of a data set's actions."""

import json

import pytest

from video2world_common.action_statistics import ActionStatistics
from video2world_common.exit_codes import UserError

VALUE = {
    "format": 1,
    "names": ["shoulder", "elbow"],
    "representation": "absolute",
    "source": "action of LeRobot my-robot",
    "fps": 10.0,
    "rows": 96,
    "mean": [1.5, -2.0],
    "std": [3.0, 0.0],
    "min": [-9.0, -2.0],
    "max": [9.0, -2.0],
    "offset": [1.5, -2.0],
    "scale": [0.25, 1.0],
}


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "actions.json"
    path.write_text(json.dumps(VALUE))
    read = ActionStatistics.read(path)
    assert read.to_json() == VALUE
    assert read.dimension == 2
    assert ActionStatistics.from_json(json.loads(json.dumps(read.to_json()))) == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is not a description of actions of format 1"),
        ({"names": []}, "names: 1 to 1024"),
        ({"names": ["a", "a"]}, "names: 1 to 1024"),
        ({"names": [f"n{i}" for i in range(1025)]}, "names: 1 to 1024"),
        ({"names": "ab"}, "names: 1 to 1024"),
        ({"representation": "joints"}, "representation: absolute or relative_pose"),
        ({"fps": 0}, "fps: 0"),
        ({"fps": float("nan")}, "fps: nan"),
        ({"rows": 0}, "rows: 0"),
        ({"rows": True}, "rows: True"),
        ({"mean": [1.0]}, "mean: 2 finite numbers"),
        ({"scale": [float("inf"), 1.0]}, "scale: 2 finite numbers"),
        ({"scale": [0.0, 1.0]}, "scale: 0 would remove"),
        ({"offset": None}, "offset: a list of numbers"),
        ({"offset": ["1", "2"]}, "offset: 2 finite numbers"),
    ],
)
def test_a_damaged_file_is_refused_by_field(tmp_path, change, message):
    path = tmp_path / "actions.json"
    path.write_text(json.dumps(VALUE | change))
    with pytest.raises(UserError, match=f"actions.json: {message}.*dataset stage"):
        ActionStatistics.read(path)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"actions.json: there is no such file.*--actions"):
        ActionStatistics.read(tmp_path / "actions.json")
