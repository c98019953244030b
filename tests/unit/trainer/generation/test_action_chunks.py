"""How a sequence of actions is divided into clips, and how their frames are joined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_trainer.generation.action_chunks import kept_parts, plan_chunks


@given(rows=st.integers(1, 200), clip_rows=st.integers(1, 40), size=st.integers(1, 9))
def test_every_frame_is_generated_once_by_its_own_action(rows, clip_rows, size):
    sequence = np.arange(rows, dtype=np.float32)[:, None]
    video = []
    for chunk in plan_chunks(rows, clip_rows):
        actions = chunk.actions(sequence)
        assert actions.shape == (clip_rows, 1)
        assert (actions[chunk.rows :] == actions[chunk.rows - 1]).all()
        # a clip's frame n + 1 is named by the action that leads to it; frame 0 is given
        clip = np.concatenate([[[chunk.first - 1.0]], actions])[:, :, None, None]
        parts = [clip[start : start + size] for start in range(0, len(clip), size)]
        video += [*kept_parts(parts, chunk.kept)]
    assert np.concatenate(video).ravel().tolist() == [-1, *range(rows)]


@pytest.mark.parametrize(
    ("rows", "clip_rows", "wanted"),
    [
        (12, 12, [(0, 12, 0)]),
        (5, 12, [(0, 5, 7)]),
        (25, 12, [(0, 12, 0), (12, 12, 0), (24, 1, 11)]),
        # upstream generates 25 frames of these, with frame 12 twice, and drops the last 6 actions
        (30, 12, [(0, 12, 0), (12, 12, 0), (24, 6, 6)]),
    ],
)
def test_division(rows, clip_rows, wanted):
    chunks = plan_chunks(rows, clip_rows)
    assert [(one.first, one.rows, one.padding) for one in chunks] == wanted
    frames = sum(len(range(clip_rows + 1)[one.kept]) for one in chunks)
    assert frames == rows + 1


@given(seed=st.integers(0, 2**32 - 1))
def test_each_clip_has_its_own_noise_which_the_sample_s_seed_decides(seed):
    chunks = plan_chunks(400, 4)
    seeds = [chunk.seed(seed) for chunk in chunks]
    assert seeds[0] == seed  # a sample of one clip is what it is without actions
    assert len(set(seeds)) == len(chunks)
    assert all(0 <= one < 2**32 for one in seeds)
    assert seeds == [chunk.seed(seed) for chunk in chunks]
    assert seeds[1:] != [chunk.seed((seed + 1) % 2**32) for chunk in chunks][1:]


@pytest.mark.parametrize(("rows", "clip_rows"), [(0, 4), (4, 0)])
def test_nothing_to_divide(rows, clip_rows):
    with pytest.raises(ValueError, match="at least 1"):
        plan_chunks(rows, clip_rows)
