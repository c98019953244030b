"""Failures that lost iterations are counted, and shorten the automatic interval of checkpoints."""

from datetime import timedelta

import pytest

from reconcile_world import NOW, World, resource
from video2world_common.checkpoint_interval import seconds_between_failures
from video2world_common.progress_events import CheckpointSaved, Resumed, TrainProgress
from video2world_operator.reconcile.failure_rate import SECONDS_BETWEEN_FAILURES

GPUS = 16
HOUR = 3600


def automatic():
    training = {"iterations": 1000, "nodes": 2, "checkpoint": {"everyIterations": "Auto"}}
    return World(resource(training=training))


def env(world, name=SECONDS_BETWEEN_FAILURES):
    """The variable's value in the newest train Job; None without it."""
    job = [m for m in world.applied if m["kind"] == "Job"][-1]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return next((one["value"] for one in container["env"] if one["name"] == name), None)


def run_for(world, hours, iteration, saved):
    world.start_pods()
    world.round()
    world.tick(hours * HOUR)
    world.round(events=[TrainProgress("train", iteration, 1000, 0.5, 8.0, 60.0, saved)])
    return list(world.pods)


def end(world, pod, **how):
    """End the attempt by what happens to a pod; the next one's Job is created."""
    if how:
        world.pod(pod, **how)
        world.round()
    world.pods.clear()
    world.tick(700)
    world.settle()


def test_the_first_attempt_expects_the_published_rate():
    world = automatic()
    world.to_training()
    assert env(world) == f"{seconds_between_failures(GPUS):.0f}"
    assert world.status["failures"]["count"] == 0


def test_a_fixed_interval_needs_no_expectation():
    world = World()
    world.to_training()
    assert env(world) is None
    assert "failures" not in world.status


def test_a_crash_counts_and_its_time_is_observed():
    world = automatic()
    world.to_training()
    pods = run_for(world, 2, 100, 80)
    end(world, pods[0], phase="Failed", exit_code=1)
    expected = seconds_between_failures(GPUS, 1, GPUS * 2 * HOUR)
    failures = world.status["failures"]
    assert failures == {
        "count": 1,
        "deviceSeconds": GPUS * 2 * HOUR,
        "attempt": 1,
        "lostAttempt": 1,
        "expectedSeconds": round(expected),
    }
    assert env(world) == str(round(expected))
    world.round()  # a restarted operator comes to the same
    assert world.status["failures"] == failures


@pytest.mark.parametrize(
    ("how", "saved", "count"),
    [
        ({"disruption": "EvictionByEvictionAPI"}, 100, 0),
        ({"disruption": "EvictionByEvictionAPI"}, 80, 1),  # its grace period was too short
        ({"disruption": "PreemptionByScheduler"}, 100, 0),
        ({"deleted": NOW}, 100, 0),
        ({"disruption": "DeletionByTaintManager"}, 100, 1),  # a lost node saves nothing
        ({"phase": "Failed", "exit_code": 1, "reason": "OOMKilled"}, 100, 1),
    ],
)
def test_an_eviction_that_saved_has_lost_nothing(how, saved, count):
    world = automatic()
    world.to_training()
    pods = run_for(world, 1, 100, 80)
    world.pod(pods[0], **how)
    world.round()  # the attempt ends at once; its pods may still save
    world.round(events=[CheckpointSaved("train", saved)])
    end(world, pods[0])
    assert world.status["failures"]["count"] == count
    assert world.status["failures"]["attempt"] == 1
    world.start_pods()
    for _ in range(2):  # what was not counted is not taken back
        world.round(events=[Resumed("train", saved)])
        assert world.status["failures"]["count"] == count


def test_a_checkpoint_reported_by_the_next_attempt_only():
    world = automatic()
    world.to_training()
    pods = run_for(world, 1, 100, 80)
    end(world, pods[0], disruption="EvictionByEvictionAPI")
    assert world.status["failures"]["count"] == 1
    world.start_pods()
    for _ in range(2):
        world.round(events=[Resumed("train", 100)])
        assert world.status["failures"]["count"] == 0


def test_attempts_without_an_iteration_do_not_count():
    world = automatic()
    world.to_training()
    world.start_pods()
    end(world, next(iter(world.pods)), phase="Failed", exit_code=1)
    assert world.status["failures"]["count"] == 0


def test_the_count_outlives_the_list_of_attempts():
    world = automatic()
    world.body["spec"]["training"]["maxRestarts"] = 100
    world.to_training()
    for number in range(1, 14):
        pods = run_for(world, 1, 10 * number, 10 * number - 5)
        end(world, pods[0], phase="Failed", exit_code=1)
    assert len(world.status["attempts"]) == 10
    failures = world.status["failures"]
    assert (failures["count"], failures["attempt"]) == (13, 13)
    assert failures["deviceSeconds"] == pytest.approx(13 * GPUS * HOUR)
    assert failures["expectedSeconds"] == pytest.approx(HOUR, rel=0.3)
    assert timedelta(seconds=float(env(world))) < timedelta(hours=1.3)


def test_the_interval_and_its_reason_are_shown():
    world = automatic()
    world.to_training()
    why = "saves cost 0.9 s, a failure every 1d17h expected"
    event = TrainProgress(
        "train", 100, 1000, checkpoint_interval=132, checkpoint_interval_reason=why
    )
    world.round(events=[event])
    progress = world.status["progress"]
    assert (progress["checkpointInterval"], progress["checkpointIntervalReason"]) == (132, why)
