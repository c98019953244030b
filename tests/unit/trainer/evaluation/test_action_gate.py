"""The action gate's verdict on losses, and the wrong actions that it compares with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_trainer.evaluation.action_gate import (
    LEAST_LIFT,
    VARIANTS,
    action_variants,
    gate,
    other_clips,
)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_every_clip_borrows_from_another_and_lends_once(sizes):
    windows = [window for window, clips in enumerate(sizes) for _ in range(clips)]
    order = other_clips(windows)
    if len(windows) == 1:
        assert order is None
        return
    assert sorted(order) == list(range(len(windows)))
    assert all(number != other for number, other in enumerate(order))
    if max(sizes) * 2 <= len(windows):  # no window has the majority
        assert all(windows[number] != windows[other] for number, other in enumerate(order))


def test_the_wrong_actions_of_a_variant():
    clips = torch.arange(3 * 8 * 2, dtype=torch.float32).reshape(3, 8, 2)
    found = action_variants(clips, ["a", "b", "c"])
    assert list(found) == list(VARIANTS)
    assert {one.shape for one in found.values()} == {clips.shape}
    assert torch.equal(found["true"], clips)
    assert torch.equal(found["shuffled"].sort(0).values, clips)
    assert not found["zeroed"].any()
    # late: row k has the actions of row k - 4; early: those of row k + 4
    assert torch.equal(found["late"][:, 4:], clips[:, :4])
    assert torch.equal(found["late"][:, :4], clips[:, :1].expand(-1, 4, -1))
    assert torch.equal(found["early"][:, :4], clips[:, 4:])
    assert torch.equal(found["early"][:, 4:], clips[:, -1:].expand(-1, 4, -1))


def test_a_single_clip_is_shuffled_in_time():
    clips = torch.arange(8.0).reshape(1, 8, 1)
    assert torch.equal(action_variants(clips, ["a"])["shuffled"], clips.flip(1))


def losses(clips, lift, spread, seed=0):
    """Losses of clips that differ much from each other, but alike for all variants."""
    random = np.random.default_rng(seed)
    true = random.uniform(1, 9, (clips, 1)) * random.uniform(0.9, 1.1, (clips, 4))
    other = true / (1 - lift) * (1 + spread * random.normal(size=(clips, 4)))
    return {"true": true.tolist(), "shuffled": other.tolist(), "zeroed": (2 * other).tolist()}


@pytest.mark.parametrize(
    ("clips", "lift", "spread", "followed", "opening"),
    [
        (16, 0.12, 0.01, True, "The model follows its actions"),
        (16, 0.0, 0.001, False, "The model ignores its actions"),
        (16, LEAST_LIFT / 2, 1e-5, False, "The model ignores its actions"),  # clear, but tiny
        (16, 0.02, 0.5, False, "The model ignores its actions"),  # chance
        (16, -0.1, 0.01, False, "The model ignores its actions"),
        (5, 0.12, 0.01, None, "Whether the model follows its actions is unknown"),
    ],
)
def test_the_verdict(clips, lift, spread, followed, opening):
    found = gate(losses(clips, lift, spread))
    assert found["followed"] is followed
    assert found["clips"] == clips
    assert found["text"].startswith(opening)
    if spread <= 0.01:
        assert found["lift"] == pytest.approx(lift, abs=0.01)
    if followed is None:
        assert found["low"] is found["high"] is None
        assert "5 held-out clips, too few for an interval, which takes 6" in found["text"]
    else:
        assert found["low"] <= found["lift"] <= found["high"]
    if lift < 0:
        assert "% higher than with those of other clips" in found["text"]
    assert found["variants"]["zeroed"]["lift"] > found["lift"]


def test_pairing_over_clips_narrows_the_interval():
    paired = losses(16, 0.05, 0.01)
    found = gate(paired)
    assert found["high"] - found["low"] < 0.02  # the clips' own losses differ by a factor of 9


def test_actions_that_fit_better_when_shifted_are_reported():
    table = losses(16, 0.05, 0.001)
    true = np.array(table["true"])
    found = gate(table | {"late": (true * 0.8).tolist(), "early": (true * 1.2).tolist()})
    assert found["followed"] is True
    assert "With actions one latent frame later the loss is lower still" in found["text"]
    assert "earlier" not in found["text"]
