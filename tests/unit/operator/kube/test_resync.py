"""Resyncs are spread evenly, one for each key, never too early and never too late."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from video2world_operator.kube.resync import ResyncPacer


def test_keys_that_come_together_are_resynced_one_after_the_other():
    pacer = ResyncPacer(10)
    found = [pacer.next(key, 0.0, 100.0) for key in range(1000)]
    assert found[0] == 100
    assert all(0.099 < b - a < 0.101 for a, b in pairwise(found))
    again = [pacer.next(key, 250.0, 100.0) for key in range(1000)]
    assert again[0] == 350
    assert 449 < again[-1] < 450.1


def test_a_key_keeps_its_time_until_it_has_come():
    pacer = ResyncPacer(10)
    assert [pacer.next("a", now, 10.0) for now in (0.0, 3.0, 9.9, 10.0)] == [10, 10, 10, 20]
    pacer.forget("a")
    assert pacer.next("a", 12.0, 10.0) == 22


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5), st.floats(1, 100))))
def test_no_resync_is_earlier_than_its_pause_or_later_than_twice_that(calls):
    pacer, now = ResyncPacer(10), 0.0
    given_out = {}
    for key, passed, pause in calls:
        now += passed
        turn = pacer.next(key, now, pause)
        if given_out.get(key, now) > now:
            assert turn == given_out[key]
        else:
            assert now + pause <= turn <= now + 2 * pause
        given_out[key] = turn
