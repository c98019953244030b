"""Which episodes or videos are held out: by their own names, at least one, and stable."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.held_out import (
    add_flag,
    add_requirement,
    choose_held_out,
    is_held_out,
    require_held_out,
)

NAMES = st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=30)


@given(NAMES, st.integers(1, 50))
def test_at_least_one_is_held_out_and_one_is_not(names, percent):
    chosen = choose_held_out(names, percent)
    assert chosen
    assert chosen < names


@given(NAMES, st.text(min_size=1, max_size=8), st.integers(1, 50))
def test_another_episode_moves_none_that_the_hash_chose(names, another, percent):
    chosen = {name for name in choose_held_out(names, percent) if is_held_out(name, percent)}
    after = choose_held_out(names | {another}, percent)
    if len(chosen) < len(names):
        assert chosen <= after


def test_the_share_is_about_what_was_asked_for():
    names = [str(number) for number in range(10_000)]
    assert len(choose_held_out(names, 5)) == pytest.approx(500, rel=0.1)
    assert choose_held_out(names, 0) == set()
    assert choose_held_out(["only"], 50) == set()


def test_a_data_set_without_held_out_windows_is_refused(tmp_path):
    flags = argparse.ArgumentParser()
    add_flag(flags, "videos")
    add_requirement(flags)
    require_held_out(flags.parse_args([]), tmp_path, {})
    args = flags.parse_args(["--require_val", "--val_percent", "5"])
    require_held_out(args, tmp_path, {"val_windows": 1})
    with pytest.raises(UserError, match=r"no usable window in .*/val, which spec\.training\.valid"):
        require_held_out(args, tmp_path, {"val_windows": 0})
    with pytest.raises(SystemExit):
        flags.parse_args(["--val_percent", "51"])
