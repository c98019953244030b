"""A stage whose Job Kueue holds back or evicts, and what Kueue's Workload says about it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from reconcile_world import STAGES, World, causes, resource
from video2world_common.progress_events import TrainProgress
from video2world_operator.reconcile.workload import Workload


def evict(world, *, evicted="Preempted"):
    """Suspend the train Job, as Kueue does; return its Workload as it is then."""
    name = "run-train-1"
    world.jobs[name] = replace(world.jobs[name], suspended=True, started=None)
    for pod in [p for p in world.pods if p.startswith(name)]:
        world.pod(pod, deleted=world.now + timedelta(seconds=600), deletion_requested=world.now)
    said = "Preempted to accommodate a workload (UID: 1) due to prioritization"
    world.extra = {"workload": Workload("w", waits=said, evicted=evicted, eviction=said)}


@pytest.mark.parametrize(("evicted", "reason"), [("Preempted", "Preempted"), ("X", "Evicted")])
def test_an_eviction_from_the_queue_ends_a_record_and_not_the_attempt(evicted, reason):
    """What it did is accounted for once its pods, which save a checkpoint, are gone."""
    world = World(resource(scheduling={"queueName": "q"}))
    world.to_training()
    world.round()
    world.tick(1000)
    world.round(events=[TrainProgress("train", 100, 1000, 0.5, 8.0, 7200.0, 80)])
    evict(world, evicted=evicted)
    world.round()
    assert "endTime" not in world.status["attempts"][0]  # it still holds the GPUs
    assert "Preempted to accommodate" in world.status["message"]
    world.tick(60)
    for pod in [p for p in world.pods if p.startswith("run-train-1")]:
        del world.pods[pod]
    world.settle()
    first, second = world.status["attempts"]
    assert (first["reason"], first["charged"], first["endIteration"]) == (reason, False, 100)
    assert "to accommodate" in first["message"]
    assert (second["number"], "startTime" in second) == (1, False)
    assert (world.status["attempt"], world.status["restarts"]) == (1, 0)
    assert world.status["gpuSeconds"]["lost"] == 2560.0  # 20 iterations since the checkpoint
    assert world.status.get("chargedRestarts", 0) == 0
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=False)
    world.start_pods()
    world.tick(100)
    world.settle()
    assert len(world.status["attempts"]) == 2
    assert world.status["attempts"][1]["heldGPUSeconds"] == 1600.0


def test_pods_that_still_save_when_the_job_is_resumed_are_no_failure():
    world = World(resource(scheduling={"queueName": "q"}))
    pods = world.to_training()
    world.round()
    world.tick(100)
    evict(world)
    world.round()
    world.tick(5)
    job = world.jobs["run-train-1"]
    world.jobs["run-train-1"] = replace(job, suspended=False, started=world.now)
    world.pod(pods[0], phase="Failed", exit_code=143)
    world.round()
    assert (world.status["attempt"], world.status["restarts"]) == (1, 0)
    world.tick(5)
    for pod in pods:
        del world.pods[pod]
    first, _ = world.start_pods()
    world.settle()
    assert world.condition("PodsStarted")["status"] == "True"
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    assert world.status["attempt"] == 2  # a crash after that counts as ever


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("LocalQueue q doesn't exist", "kubectl get localqueues -n ns"),
        ("ClusterQueue team is stopped", "spec.stopPolicy"),
        ("ClusterQueue team doesn't exist", "resume or create it"),
        (
            "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in "
            "flavor h100, request > maximum capacity (16 > 8)",
            "Ask for more quota",
        ),
        ("", ""),
    ],
)
def test_a_queued_stage_reports_what_kueue_says(said, remedy):
    world = World(resource(scheduling={"queueName": "q"}))
    world.extra = {"workload": Workload("w", waits=said)}
    world.through(STAGES[:4])
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=True)
    world.round()
    message = world.condition("PodsStarted")["message"]
    assert message.startswith(f"Stage train waits in queue q{': ' if said else ''}{said}.")
    assert remedy in message
    assert world.status["message"] == message
    (cause,) = causes(world)
    assert remedy in cause.remedy


def test_a_job_that_waits_is_replaced_when_the_spec_of_its_pods_changes():
    world = World(resource(scheduling={"queueName": "q"}))
    world.through(STAGES[:4])
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=True)
    world.round()
    world.body["spec"]["stages"] = {"train": {"nodeSelector": {"gpu": "h100"}}}
    world.body["metadata"]["generation"] = 2
    world.settle()
    assert [job.name for job in world.jobs.values() if job.stage == "train"] == ["run-train-2"]
    assert world.status["restarts"] == 1
    assert world.status.get("chargedRestarts", 0) == 0


WORKLOADS = {
    "new": ({}, [], {"waits": ""}),
    "waits for quota": (
        {},
        [("QuotaReserved", "False", "Pending", "insufficient unused quota")],
        {"waits": "insufficient unused quota"},
    ),
    "missing queue": (
        {},
        [
            ("QuotaReserved", "False", "Inadmissible", "LocalQueue q doesn't exist"),
            ("Admitted", "False", "NoReservation", "The workload has no reservation"),
        ],
        {"waits": "LocalQueue q doesn't exist"},
    ),
    "preempted": (
        {},
        [
            ("QuotaReserved", "False", "Pending", "Preempted to accommodate a workload"),
            ("Evicted", "True", "Preempted", "Preempted to accommodate a workload"),
        ],
        {"waits": "Preempted to accommodate a workload", "evicted": "Preempted"},
    ),
    "admitted": (
        {},
        [("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")],
        {"waits": "", "admitted": True, "flavors": ("h100",)},
    ),
    "waits for a check": (
        {},
        [
            ("QuotaReserved", "True", "QuotaReserved", ""),
            ("Admitted", "False", "UnsatisfiedAdmissionChecks", "not all checks are ready"),
        ],
        {"waits": "admission check capacity is Pending: no nodes yet"},
    ),
    "deactivated": (
        {"active": False},
        [("Evicted", "True", "Deactivated", "exceeded the maximum number of re-queuing retries")],
        {"waits": "Workload is deactivated: exceeded the maximum number of re-queuing retries"},
    ),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_read(name):
    spec, conditions, expected = WORKLOADS[name]
    keys = ("type", "status", "reason", "message")
    assigned = [{"name": "main", "flavors": {"nvidia.com/gpu": "h100", "cpu": "h100"}}]
    body = {
        "metadata": {"name": "w"},
        "spec": spec,
        "status": {
            "conditions": [dict(zip(keys, one, strict=True)) for one in conditions],
            "admission": {"podSetAssignments": assigned},
            "admissionChecks": [
                {"name": "license", "state": "Ready"},
                {"name": "capacity", "state": "Pending", "message": "no nodes yet"},
            ],
        },
    }
    read = Workload.of(body)
    assert {field: getattr(read, field) for field in expected} == expected


def test_a_pod_that_fits_no_node_names_its_flavor():
    world = World(resource(scheduling={"queueName": "q"}))
    world.to_training()
    said = "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector."
    for pod in [p for p in world.pods if p.startswith("run-train-1")]:
        world.pod(pod, phase="Pending", ready=False, node="", started=None, unschedulable=said)
    world.extra = {"workload": Workload("w", admitted=True, flavors=("h100",))}
    world.round()
    assert "(Kueue assigned flavor h100)" in world.condition("PodsStarted")["message"]
    (cause,) = causes(world, workload=Workload("w", flavors=("h100",)))
    assert "No node has the labels of flavor h100" in cause.what
    assert "kubectl describe resourceflavor h100" in cause.remedy
