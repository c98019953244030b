"""Elastic groups: attempts with fewer and more nodes, their records and reports."""

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from reconcile_world import World, causes, resource
from video2world_common.progress_events import CheckpointSaved, Resumed, TrainProgress
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.reconcile.actions import Apply, Delete, Policy

BOUND = Policy().elastic_after


def elastic(**training):
    world = World(resource(training={"iterations": 1000, "nodes": 4, "minNodes": 1} | training))
    world.extra = {"room": 4}
    return world


def applied(world):
    return [m for m in world.applied if m["kind"] == "Job" and "-train-" in m["metadata"]["name"]]


def changes(decision):
    """Return what a decision creates and deletes, without notes on what exists."""
    return [a for a in decision.actions if isinstance(a, Apply | Delete)]


def pods_of(world, attempt):
    return [p for p in world.pods.values() if (p.stage, p.attempt) == ("train", attempt)]


def gone(world):
    """The kubelets remove deleted pods."""
    world.pods = {n: p for n, p in world.pods.items() if not p.deleted}


def unschedulable(world, first):
    """Of the pods of the unfinished Job those from ``first`` on get no node."""
    for name in world.start_pods():
        if world.pods[name].index >= first:
            world.pod(
                name, phase="Pending", node="", ready=False, started=None, unschedulable="0/2 nodes"
            )


def lose_two_nodes(world):
    """Two of four nodes are lost; the next attempt gets no room for four pods."""
    names = world.to_training()
    saved = [TrainProgress("train", 300, 1000, 0.1, 8.0), CheckpointSaved("train", 250)]
    world.tick(3000)
    world.round(events=saved)
    for name in names[:2]:
        world.pod(name, disruption="DeletionByTaintManager")
    world.extra = {"room": 2}
    world.round()
    world.pods.clear()
    world.settle()
    assert world.status["attempt"] == 2
    unschedulable(world, 2)
    world.settle()


def shrink(world):
    lose_two_nodes(world)
    world.tick(BOUND + 1)
    decision = world.round()
    gone(world)
    world.settle()
    return decision


def test_nodes_lost_for_longer_than_the_bound_shrink_the_group():
    world = elastic()
    lose_two_nodes(world)
    size = world.status["groupSize"]
    assert (size["asked"], size["running"], size["usable"]) == (4, 4, [4, 2, 1])
    assert size["waitingSince"]
    charged = world.status.get("chargedRestarts", 0)
    world.tick(BOUND - 60)
    assert not changes(world.round())  # not yet
    world.tick(61)
    decision = world.round()
    assert [a.name for a in decision.actions if isinstance(a, Delete)] == ["run-train-2"]
    size = world.status["groupSize"]
    assert (size["running"], size["text"], size["lastChange"]) == (2, "2/4", "Shrunk")
    assert size["message"] == "2 of 4 nodes could be had for 600 s"
    record = world.status["attempts"][-2]
    assert (record["reason"], record["charged"], record["nodes"]) == ("GroupShrunk", False, 4)
    assert world.status.get("chargedRestarts", 0) == charged
    assert "nextAttemptTime" not in world.status
    condition = world.condition("FullSize")
    assert (condition["status"], condition["reason"]) == ("False", "GroupShrunk")
    gone(world)
    world.settle()
    job = applied(world)[-1]
    assert job["metadata"]["name"] == "run-train-3"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    worker = job["spec"]["template"]["spec"]["containers"][0]
    assert "trainer.grad_accum_iter=2" in worker["command"]
    env = {e["name"]: e.get("value") for e in worker["env"]}
    first = {
        e["name"]: e.get("value")
        for e in applied(world)[0]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert env["PET_NNODES"] == "2"
    # the checkpoint is that of the same run
    for name in ("V2W_RUN_HASH", "V2W_INPUTS_HASH"):
        assert env[name] == first[name]
    world.start_pods()
    world.settle()
    assert world.status["phase"] == "Running"
    assert (world.stage("train")["desired"], world.stage("train")["ready"]) == (2, 2)


def test_the_shrunken_group_grows_back_at_a_checkpoint():
    world = elastic()
    shrink(world)
    world.start_pods()
    world.round(events=[Resumed("train", 250)])
    world.tick(2000)
    world.extra = {"room": 4}
    world.round()
    since = world.status["groupSize"]["roomSince"]
    world.tick(BOUND + 5)
    assert not changes(world.round())  # no checkpoint of this attempt yet
    assert world.status["groupSize"]["roomSince"] == since
    decision = world.round(events=[CheckpointSaved("train", 500)])
    assert [a.name for a in changes(decision)] == ["run-train-3"]  # its pods get SIGTERM
    assert world.status["groupSize"]["running"] == 4
    record = world.status["attempts"][-2]
    assert (record["reason"], record["nodes"], record["charged"]) == ("GroupGrown", 2, False)
    assert world.condition("FullSize")["reason"] == "GroupGrown"
    assert "Another" not in world.status["message"]
    gone(world)
    world.settle()
    job = applied(world)[-1]
    assert job["spec"]["completions"] == 4
    assert "grad_accum_iter" not in str(job["spec"]["template"]["spec"]["containers"][0]["command"])
    world.start_pods()
    world.settle()
    assert world.condition("FullSize")["reason"] == "GroupComplete"
    assert world.status["groupSize"].get("failedGrowths") == 1
    world.round(events=[CheckpointSaved("train", 600)])
    world.round()
    assert world.status["groupSize"].get("failedGrowths", 0) == 0
    assert world.status["restarts"] == 3
    assert world.status.get("chargedRestarts", 0) == 0


def test_gpu_seconds_count_the_nodes_that_each_attempt_had():
    world = elastic(gpusPerNode=8)
    shrink(world)
    before = copy.deepcopy(world.status["gpuSeconds"])
    world.start_pods()
    world.round(events=[Resumed("train", 250)])
    world.tick(100)
    world.round(events=[TrainProgress("train", 260, 1000, 0.1, 10.0)])
    spent = {k: v - before[k] for k, v in world.status["gpuSeconds"].items()}
    assert spent["useful"] == pytest.approx(10 * 10.0 * 16)
    assert spent["useful"] + spent["idle"] == pytest.approx(100 * 16)
    assert world.status["attempts"][-1]["heldGPUSeconds"] == pytest.approx(100 * 16)


def test_a_running_group_is_never_shrunk():
    world = elastic()
    world.to_training()
    world.extra = {"room": 0}
    for _ in range(5):
        world.tick(BOUND)
        assert not changes(world.round())
    assert world.status["groupSize"]["running"] == 4
    assert world.condition("FullSize")["status"] == "True"


@pytest.mark.parametrize(
    "fields",
    [
        {"phase": "Pending", "ready": False, "waits": "ImagePullBackOff: no"},  # they have nodes
        {"phase": "Pending", "node": "", "ready": False, "scheduled": False},  # no scheduler
    ],
)
def test_pods_that_wait_for_something_else_than_nodes_do_not_shrink_the_group(fields):
    world = elastic()
    world.through(["download", "dataset", "embeddings", "latents"])
    world.start_pods(**fields)
    for _ in range(3):
        world.tick(BOUND)
        world.round()
    assert world.status["groupSize"]["running"] == 4
    assert world.status["attempt"] == 1


def test_a_gang_of_which_no_pod_is_placed_steps_down():
    world = elastic()
    world.extra = {
        "room": None,
        "capabilities": Capabilities({OptionalApi.NATIVE_POD_GROUP: "v1beta1"}),
    }
    world.through(["download", "dataset", "embeddings", "latents"])
    sizes = []
    for _ in range(3):
        unschedulable(world, 0)
        world.settle()
        world.tick(BOUND + 1)
        world.round()
        gone(world)
        world.pods.clear()
        world.settle()
        groups = [m for m in world.applied if m["kind"] == "PodGroup"]
        sizes.append(groups[-1]["spec"]["schedulingPolicy"]["gang"]["minCount"])
    assert sizes == [2, 2, 2]  # then one node, which needs no group
    assert world.status["groupSize"]["running"] == 1
    assert applied(world)[-1]["spec"]["completions"] == 1


def test_what_a_quota_of_the_namespace_refuses_is_not_had():
    world = elastic()
    world.through(["download", "dataset", "embeddings", "latents"])
    for name in world.start_pods(phase="Pending", ready=False, node="", scheduled=False)[2:]:
        del world.pods[name]
    world.settle()
    world.tick(BOUND + 1)
    world.round()
    assert world.status["groupSize"]["message"] == "2 of 4 nodes could be had for 600 s"


def test_a_queue_that_does_not_admit_the_group_gets_a_smaller_one():
    world = elastic()
    world.body["spec"]["scheduling"] = {"queueName": "team"}
    world.extra = {"room": None, "capabilities": Capabilities({OptionalApi.LOCAL_QUEUE: "v1beta2"})}
    world.through(["download", "dataset", "embeddings", "latents"])
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=True, queue="team")
    world.settle()
    world.tick(BOUND + 1)
    world.round()
    world.settle()
    assert world.status["groupSize"]["running"] == 2
    job = applied(world)[-1]
    assert job["spec"]["completions"] == 2
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    # a Job that someone else suspends is left as it is
    world.jobs["run-train-2"] = replace(world.jobs["run-train-2"], suspended=True, queue="")
    world.settle()
    world.tick(BOUND + 1)
    world.round()
    assert world.status["groupSize"]["running"] == 2


def test_nothing_usable_is_said_and_waited_for():
    world = elastic(minNodes=2)
    world.extra = {"room": 1}
    world.through(["download", "dataset", "embeddings", "latents"])
    unschedulable(world, 1)
    world.settle()
    world.tick(BOUND + 1)
    world.settle()
    assert world.status["groupSize"]["running"] == 4
    condition = world.condition("FullSize")
    assert condition["reason"] == "GroupWaiting"
    assert "1 of 4 nodes could be had for 600 s, and usable are 2 or more" in condition["message"]
    assert any("usable are 2 or more" in cause.what for cause in causes(world))
    world.extra = {"room": 3}
    world.pod("run-train-1-1", node="node-1", unschedulable="")
    world.round()
    assert world.status["groupSize"]["running"] == 2


def test_suspending_and_resuming_asks_for_all_nodes_again():
    world = elastic()
    shrink(world)
    world.start_pods()
    world.settle()
    world.body["spec"]["suspend"] = True
    world.body["metadata"]["generation"] += 1
    world.round()
    world.pods.clear()
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["groupSize"]["running"] == 2
    world.body["spec"]["suspend"] = False
    world.body["metadata"]["generation"] += 1
    resumed = copy.deepcopy(world.body)
    world.extra = {"room": 2}  # still missing
    world.settle()
    assert applied(world)[-1]["spec"]["completions"] == 2
    world.body, world.extra = resumed, {"room": 4}
    world.jobs.pop("run-train-4")
    world.settle()
    assert applied(world)[-1]["spec"]["completions"] == 4


def test_a_longer_run_continues_with_its_nodes_and_a_failed_attempt_too():
    world = elastic()
    shrink(world)
    names = world.start_pods()
    world.settle()
    world.pod(names[0], phase="Failed", exit_code=1, ended=world.now)
    world.round()
    world.pods.clear()
    world.tick(60)
    world.settle()
    assert applied(world)[-1]["spec"]["completions"] == 2
    world.start_pods()
    world.settle()
    world.body["spec"]["training"]["iterations"] = 2000
    world.body["metadata"]["generation"] += 1
    world.round()
    gone(world)
    world.settle()
    assert applied(world)[-1]["spec"]["completions"] == 2


def test_min_nodes_can_be_set_and_removed_at_any_time():
    world = elastic(minNodes=4)
    world.through(["download", "dataset", "embeddings", "latents"])
    assert "groupSize" not in world.status
    unschedulable(world, 2)
    world.settle()
    world.body["spec"]["training"]["minNodes"] = 2
    world.body["metadata"]["generation"] += 1
    world.extra = {"room": 2}
    world.settle()
    world.tick(BOUND + 1)
    world.round()
    gone(world)
    world.pods.clear()
    world.settle()
    assert world.status["groupSize"]["running"] == 2
    world.start_pods()
    del world.body["spec"]["training"]["minNodes"]
    world.body["metadata"]["generation"] += 1
    world.settle()
    assert world.stage("train")["desired"] == 2  # it keeps running
    world.extra = {"room": 4}
    world.round()
    world.tick(BOUND + 1)
    world.round(events=[CheckpointSaved("train", 10)])
    world.pods.clear()
    world.settle()
    world.start_pods()
    world.settle()
    assert "groupSize" not in world.status
    assert world.condition("FullSize") is None


def test_an_operator_that_ends_between_status_and_job_makes_the_same_job():
    world = elastic()
    shrink(world)
    jobs = dict(world.jobs)
    count = len(world.applied)
    world.jobs.pop("run-train-3")
    world.body["status"]["stages"] = [
        {k: v for k, v in e.items() if k != "jobUID"} for e in world.body["status"]["stages"]
    ]
    world.round()
    again = [m for m in world.applied[count:] if m["kind"] == "Job"]
    assert [(m["metadata"]["name"], m["spec"]["completions"]) for m in again] == [
        (jobs["run-train-3"].name, 2)
    ]


def test_a_status_without_attempt_sizes_is_of_full_attempts():
    world = elastic(gpusPerNode=8)
    world.to_training()
    world.round()
    for record in world.body["status"]["attempts"]:
        record.pop("nodes")
    del world.body["status"]["groupSize"]
    world.tick(100)
    world.round(events=[TrainProgress("train", 10, 1000, 0.1, 10.0)])
    assert world.status["gpuSeconds"]["useful"] == pytest.approx(100 * 32)
    assert world.status["groupSize"]["running"] == 4


def test_explain_tells_of_the_missing_nodes():
    world = elastic()
    shrink(world)
    world.start_pods()
    world.settle()
    (cause,) = causes(world)
    assert cause.what == ("The train group has 2 of 4 nodes: 2 of 4 nodes could be had for 600 s.")
    assert "grows back at a checkpoint" in cause.remedy


def test_the_drained_group_may_take_its_time():
    world = elastic()
    shrink(world)
    world.start_pods()
    world.extra = {"room": 4}
    world.round()
    world.tick(2 * BOUND)
    world.round(events=[CheckpointSaved("train", 500)])
    world.tick(300)
    assert not [a for a in world.round().actions if isinstance(a, Apply)]
    assert all(p.deleted == world.now + timedelta(seconds=300) for p in pods_of(world, 3))
    found = causes(world)
    assert found[0].what == "Stage train resumes with another number of nodes."
