"""What an eviction would cost: in the status, and announced on the train Job in a few writes."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcile_world import NOW, World
from video2world_common.progress_events import CheckpointSaved
from video2world_operator.api.status import EvictionCost, parse_status
from video2world_operator.plan.labels import EVICTION_COST_ANNOTATION
from video2world_operator.reconcile.eviction_cost import (
    FIRST_STEP,
    SHORTEST_STEP,
    announced,
    describe,
    gpu_seconds_at,
)

GPUS = 16


def training():
    world = World()
    world.to_training()
    world.round()
    return world


def values(world):
    return [int(one[EVICTION_COST_ANNOTATION]) for one in world.annotated]


def test_the_cost_grows_until_a_checkpoint():
    world = training()
    world.tick(1000)
    world.round()
    cost = world.status["evictionCost"]
    assert cost == {
        "gpuSeconds": 1000.0 * GPUS,
        "gpus": GPUS,
        "since": (NOW).isoformat().replace("+00:00", "Z"),
    }
    world.round(events=[CheckpointSaved("train", 100)])
    world.tick(10)
    world.round()
    assert world.status["evictionCost"]["gpuSeconds"] == 10.0 * GPUS
    later = world.now + timedelta(seconds=20)
    written = parse_status(world.status).eviction_cost
    assert gpu_seconds_at(written, later) == 30.0 * GPUS
    assert describe(written, later) == (
        "8m00s of GPU time (16 GPUs, 30s since the last checkpoint or start)"
    )


def test_a_few_writes_announce_it():
    world = training()
    for _ in range(360):  # an hour, reconciled every ten seconds
        world.tick(10)
        world.round()
    assert values(world) == [3600, 7200, 14400, 28800, 57600]
    world.round(events=[CheckpointSaved("train", 100)])
    world.round()
    assert values(world)[5:] == [0]


def test_nothing_is_at_risk_without_pods():
    world = training()
    world.tick(1000)
    world.round()
    assert values(world) == [14400]
    (first, *_) = world.pods
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    assert "evictionCost" not in world.status


def test_the_job_of_a_finished_training_costs_nothing():
    world = training()
    world.tick(1000)
    world.round()
    world.finish("train")
    for name in list(world.pods):
        world.pod(name, phase="Succeeded", ended=world.now, exit_code=0)
    world.settle()
    assert values(world) == [14400, 0]
    assert "evictionCost" not in world.status


def test_a_cpu_run_holds_no_gpu():
    world = World()
    world.body["spec"] |= {"model": {"size": "Tiny"}, "training": {"iterations": 9, "nodes": 2}}
    world.to_training()
    world.tick(10_000)
    world.round()
    assert "evictionCost" not in world.status
    assert values(world) == []


@given(st.integers(1, 20_000), st.floats(1, 1e6))
def test_a_job_is_written_at_most_every_minute(gpus, seconds):
    cost = announced(EvictionCost(gpu_seconds=seconds * gpus, gpus=gpus))
    assert cost <= seconds * gpus * 1.001
    if cost:
        step = max(FIRST_STEP, SHORTEST_STEP * gpus)
        assert cost >= step
        assert seconds * gpus < 2.001 * cost
        doubled = cost / gpus  # seconds until the next value
        assert doubled >= SHORTEST_STEP * 0.999
    else:
        assert seconds * gpus < max(FIRST_STEP, SHORTEST_STEP * gpus)


@pytest.mark.parametrize("cost", [None, EvictionCost()])
def test_no_cost_is_announced_as_zero(cost):
    assert announced(cost) == 0
