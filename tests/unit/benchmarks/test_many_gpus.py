"""The record of several GPUs: goals by layout, differences from one GPU, document."""

from benchmarks.many_gpus import _difference
from benchmarks.many_gpus_report import goals, markdown, table
from benchmarks.random_run import events


def row(gpus, context, seconds, **more):
    return {"gpus": gpus, "context_parallel": context, "seconds": seconds, "peak_GiB": 40} | more


def test_a_goal_is_compared_with_its_own_layout():
    layouts = {"a": row(8, 2, 5.9), "b": row(8, 1, 9.0), "c": {"error": "exit code 1"}}
    (met,) = goals("2B", {"layouts": layouts})
    assert (met["measured"], met["met"]) == (5.9, True)
    assert goals("14B", {"layouts": layouts}) == []
    (missed,) = goals("14B", {"layouts": {"a": row(8, 8, 6.1)}})
    assert not missed["met"]


def test_the_difference_is_the_largest_of_the_iterations():
    assert _difference([1.0, 2.2], [1.0, 2.0]) == 0.1
    assert _difference([1.0, 2.0], [1.0, 2.0]) == 0


def test_a_failed_layout_is_reported_and_only_events_are_read():
    text = table(
        {"layouts": {"a": row(2, 2, 5.75, efficiency=0.95), "b": {"error": "exit code 1"}}}
    )
    assert "0.95" in text
    assert "failed: exit code 1" in text
    assert list(events(["iteration 1/5", '{"event": "progress", "iteration": 1}'])) == [
        {"event": "progress", "iteration": 1}
    ]


def test_the_document_shows_layouts_and_samples():
    place = {"nvidia_smi": "A, 1\nA, 1", "torch": "2", "date": "d", "commit": "c", "command": "x"}
    layouts = {
        "a": row(2, 2, 5.754, data_parallel=1, loss_difference=2e-6, norm_difference=3e-5),
        "b": {"error": "killed"},
    }
    inference = {
        "2": {"seconds_a_level": 3.3, "speedup": 1.9, "timings": {"decode": 4.0}},
        "4": {"error": "exit code 1"},
    }
    reported = markdown(
        {"machine": place, "cases": {"2B": {"layouts": layouts, "inference": inference}}}
    )
    assert "2 x A, 1 (name" in reported
    assert "| 2, 1 x 2 |  | 5.75 |" in reported
    assert "2.0e-06, 3.0e-05" in reported
    assert "failed: killed" in reported
    assert "| 2 | 3.3 | 1.9 | 4.0 |" in reported
