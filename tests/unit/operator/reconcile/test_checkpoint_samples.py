"""Sampling during training: which checkpoints are sampled, and which are skipped."""

from dataclasses import replace

import pytest

from reconcile_world import World, resource
from video2world_common.progress_events import CheckpointSaved, SamplesMade, parse
from video2world_operator.api.status import Status, dump_status, parse_status
from video2world_operator.reconcile.checkpoint_samples import begin, decide
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.progress import update_status

ON = {"samples": [{"input": "a.mp4"}, {"input": "b.mp4"}], "everyCheckpoint": True}


def job(iteration, **fields):
    return Job(
        f"run-samples-{iteration}", f"u{iteration}", "samples", iteration, "", "u1", **fields
    )


def pod(iteration, phase="Running", **fields):
    name = f"run-samples-{iteration}-0"
    return Pod(name, name, "samples", iteration, 0, phase, **fields)


def row(iteration, **fields):
    return {
        "checkpoint": f"iter_{iteration:09d}",
        "iteration": iteration,
        "done": 0,
        "total": 2,
        "state": "Running",
    } | fields


TABLE = {
    "nothing saved yet": (0, [], [], [], True, (None, [], None), {}),
    "the first one": (500, [], [], [], True, (500, [], 500), {500: "Running"}),
    "it runs": (500, [row(500)], [job(500)], [pod(500)], True, (None, [], 500), {500: "Running"}),
    "it runs and a newer one waits": (
        1000,
        [row(500)],
        [job(500)],
        [pod(500)],
        True,
        (None, [], 500),
        {500: "Running"},
    ),
    "it has no node and a newer one comes": (
        1000,
        [row(500)],
        [job(500)],
        [pod(500, "Pending")],
        True,
        (None, [500], None),
        {500: "Skipped"},
    ),
    "only the newest of those that came meanwhile": (
        2000,
        [row(500)],
        [job(500, complete=True)],
        [],
        True,
        (2000, [500], 2000),
        {500: "Succeeded", 2000: "Running"},
    ),
    "done, and no newer one": (
        500,
        [row(500, state="Succeeded")],
        [job(500, complete=True)],
        [],
        True,
        (None, [], None),
        {500: "Succeeded"},
    ),
    "failed: the next checkpoint is tried": (
        1000,
        [row(500)],
        [job(500, failed="BackoffLimitExceeded")],
        [],
        True,
        (1000, [500], 1000),
        {500: "Failed", 1000: "Running"},
    ),
    "its Job was deleted by a user: again": (
        500,
        [row(500)],
        [],
        [],
        True,
        (500, [], 500),
        {500: "Running"},
    ),
    "its Job was deleted and a newer one is there": (
        1000,
        [row(500)],
        [],
        [],
        True,
        (1000, [], 1000),
        {500: "Skipped", 1000: "Running"},
    ),
    "training is over: what runs continues": (
        1000,
        [row(500)],
        [job(500)],
        [pod(500)],
        False,
        (None, [], 500),
        {500: "Running"},
    ),
    "training is over: what has no node does not": (
        1000,
        [row(500)],
        [job(500)],
        [],
        False,
        (None, [500], None),
        {500: "Skipped"},
    ),
    "training is over: nothing begins": (
        1000,
        [],
        [],
        [],
        False,
        (None, [], None),
        {},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_next_step(name):
    saved, rows, jobs, pods, training, expected, states = TABLE[name]
    raw = {"samples": rows} | ({"checkpoint": {"iteration": saved}} if saved else {})
    status = parse_status(raw)
    step = decide(status, jobs, pods, training=training, total=2)
    assert (step.apply, [j.attempt for j in step.delete], step.running) == expected
    assert {row.iteration: row.state for row in status.samples} == states
    again = decide(
        status, [j for j in jobs if j not in step.delete], pods, training=training, total=2
    )
    assert not again.delete


def test_a_failure_is_reported_with_its_evidence():
    tail = '{"event": "failed", "stage": "samples", "reason": "UserError", "message": "no clip"}'
    status = parse_status({"samples": [row(500)], "checkpoint": {"iteration": 500}})
    step = decide(
        status,
        [job(500, failed="PodFailurePolicy")],
        [pod(500, "Failed", exit_code=2, tail=tail)],
        training=True,
        total=2,
    )
    assert step.failed == (500, "no clip")
    assert status.samples[0].message == "no clip"


def test_a_worker_may_report_that_its_checkpoint_was_deleted():
    status = Status()
    begin(status, 500, 2)
    line = (
        '{"event": "samples", "stage": "samples", "checkpoint": "iter_000000500", '
        '"iteration": 500, "done": 0, "total": 2, "message": "deleted"}'
    )
    update_status(status, parse(line), "now")
    decide(status, [job(500, complete=True)], [], training=True, total=2)
    assert dump_status(status)["samples"] == [row(500, state="Skipped", message="deleted")]


def test_only_the_newest_checkpoints_are_listed():
    status = Status()
    for iteration in range(100):
        event = SamplesMade("inference", f"iter_{iteration:09d}", 1, 1, iteration)
        update_status(status, event, "now")
    assert [row.iteration for row in status.samples] == list(range(36, 100))


def sampling(world):
    return [n for n in world.jobs if "-samples-" in n]


def train_saves(world, iteration):
    world.round(events=[CheckpointSaved("train", iteration)])
    world.settle()


def test_sampling_runs_alongside_training_without_affecting_it():
    world = World(resource(inference=ON))
    pods = world.to_training()
    train_saves(world, 500)
    assert sampling(world) == ["run-samples-500"]
    assert world.condition("SamplesMade")["reason"] == "Sampling"
    assert world.status["phase"] == "Running"
    assert all(world.pods[name].deleted is None for name in pods)
    world.pods["s"] = replace(pod(500), name="s")
    train_saves(world, 1000)
    train_saves(world, 1500)
    assert sampling(world) == ["run-samples-500"]  # one at a time
    # training crashes and restarts: sampling continues
    world.pod(pods[0], phase="Failed", exit_code=1)
    world.settle()
    world.tick(60)
    for name in pods:
        world.pods.pop(name, None)
    world.settle()
    assert "run-train-2" in world.jobs
    assert sampling(world) == ["run-samples-500"]
    # it ends: the newest follows, those in between are skipped
    del world.pods["s"]
    world.jobs["run-samples-500"] = replace(world.jobs["run-samples-500"], complete=True)
    world.settle()
    assert sampling(world) == ["run-samples-1500"]
    assert [(r["iteration"], r["state"], r["done"]) for r in world.status["samples"]] == [
        (500, "Succeeded", 2),
        (1500, "Running", 0),
    ]


def test_failed_sampling_fails_nothing_else():
    world = World(resource(inference=ON))
    pods = world.to_training()
    train_saves(world, 500)
    name = "run-samples-500"
    world.jobs[name] = replace(world.jobs[name], failed="BackoffLimitExceeded", message="it broke")
    world.settle()
    condition = world.condition("SamplesMade")
    assert (condition["status"], condition["reason"]) == ("False", "SamplesFailed")
    assert "iteration 500 could not be made; training continues" in condition["message"]
    assert "it broke" in condition["message"]
    assert world.status["phase"] == "Running"
    for one in pods:
        world.pod(one, phase="Succeeded", exit_code=0)
    world.finish("train")
    world.settle()
    world.finish("inference")
    world.settle()
    assert world.status["phase"] == "Succeeded"


@pytest.mark.parametrize("runs", [True, False])
def test_the_inference_stage_waits_only_for_running_samples(runs):
    world = World(resource(inference=ON))
    pods = world.to_training()
    train_saves(world, 500)
    if runs:
        world.pods["s"] = replace(pod(500), name="s")
    for name in pods:
        world.pod(name, phase="Succeeded", exit_code=0)
    world.finish("train")
    world.settle()
    if runs:
        assert world.condition("Progressing")["reason"] == "WaitingForSamples"
        assert "iteration 500" in world.status["message"]
        assert "run-inference-1" not in world.jobs
        del world.pods["s"]
        world.jobs["run-samples-500"] = replace(world.jobs["run-samples-500"], complete=True)
        world.settle()
    assert "run-inference-1" in world.jobs
    states = {r["iteration"]: r["state"] for r in world.status["samples"]}
    assert states == {500: "Succeeded" if runs else "Skipped"}
    event = SamplesMade("inference", "iter_000001000", 1, 2, 1000)
    world.round(events=[event])
    world.finish("inference")
    world.settle()
    assert world.status["samples"][-1]["done"] == 2  # its pods had no time to report
    assert world.status["phase"] == "Succeeded"


def test_suspending_stops_sampling_and_resuming_continues_it():
    world = World(resource(inference=ON))
    pods = world.to_training()
    train_saves(world, 500)
    world.body["spec"]["suspend"] = True
    world.settle()
    assert not sampling(world)
    for name in pods:
        world.pods.pop(name, None)
    world.settle()
    assert world.status["phase"] == "Suspended"
    world.body["spec"]["suspend"] = False
    world.settle()
    assert sampling(world) == ["run-samples-500"]


def test_nothing_is_sampled_without_every_checkpoint():
    world = World()
    world.to_training()
    train_saves(world, 500)
    assert not sampling(world)
    assert world.condition("SamplesMade") is None
    assert "samples" not in world.status
