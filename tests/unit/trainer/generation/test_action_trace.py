"""What is recorded of a sample's actions, and how it is drawn."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from video2world_trainer.generation.action_strip import PLOT_HEIGHT, action_strip
from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.generation.contact_sheet import contact_sheet

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
ROWS = array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: arrays(np.float32, shape, elements=FLOATS)
)


def trace(rows, low=-1.0, high=1.0, seams=()):
    rows = np.asarray(rows, np.float32)
    names = tuple(f"joint_{n}" for n in range(rows.shape[1]))
    ends = [np.full(rows.shape[1], end) for end in (low, high)]
    return ActionTrace(names, rows, *ends, seams)


@given(ROWS)
def test_json_keeps_the_float32_values(rows):
    made = trace(rows, seams=(3,))
    read = ActionTrace.from_json(json.loads(json.dumps(made.to_json())))
    assert read.names == made.names
    assert read.seams == (3,)
    assert np.allclose(read.rows, rows, rtol=1e-6, atol=0)
    scaled = read.scaled()
    assert ((scaled >= 0) & (scaled <= 1)).all()


def test_lines_are_scaled_to_the_training_data_and_constant_ones_are_in_the_middle():
    assert trace([[0, 1], [1, 0]]).scaled().tolist() == [[0.5, 1], [1, 0.5]]
    assert trace([[3], [0]]).scaled().tolist() == [[1], [0.25]]  # beyond the range of the data
    assert trace([[2], [2]], low=2, high=2).scaled().tolist() == [[0.5], [0.5]]


def test_rows_outside_the_training_data_are_found():
    assert trace([[0.5, 1.09], [-1.05, 0]]).out_of_range() is None  # within 5 % of the range
    assert trace([[0.5, 1], [0, -1.2]]).out_of_range() == (1, "joint_1")


DAMAGED = {"names": ["a"], "range": {"min": [0], "max": [1]}, "rows": [[0.5]], "seams": []}


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "b"]},
        {"names": 3},
        {"range": {"min": [0]}},
        {"range": [1]},
        {"rows": []},
        {"rows": [[1, 2]]},
        {"rows": [[1], [2, 3]]},
        {"rows": [["x"]]},
        {"rows": [[float("nan")]]},
        {"rows": [[10**400]]},
        {"seams": [None]},
    ],
)
def test_damaged_json_is_refused(change):
    ActionTrace.from_json(DAMAGED)
    for value in (DAMAGED | change, [1], None):
        with pytest.raises(ValueError, match=r"\S"):
            ActionTrace.from_json(value)


def test_the_contact_sheet_draws_the_actions_under_its_columns():
    video = np.full((9, 32, 40, 3), 200, np.uint8)
    plain = contact_sheet({"generated": video}, 16)
    drawn = contact_sheet({"generated": video}, 16, actions=trace(np.eye(8), seams=(4,)))
    assert drawn.width == plain.width
    assert drawn.height > plain.height + PLOT_HEIGHT
    assert np.array_equal(np.asarray(drawn)[: plain.height], np.asarray(plain))


def test_a_step_is_drawn_between_the_frames_it_leads_from_and_to():
    strip = np.asarray(action_strip(trace([[1], [-1], [1]]), 140, 20, 110)).astype(int)
    low = (np.abs(strip[6 + PLOT_HEIGHT - 2] - (11, 98, 196)).sum(1) < 60).nonzero()[0]
    assert 49 <= low.min() <= 51  # row 1: from frame 1 at x = 50 to frame 2 at x = 80
    assert 79 <= low.max() <= 81
