"""The decisions of the reconciler for a given status, cluster and time."""

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from reconcile_world import NOW, STAGES, World, resource
from video2world_common.progress_events import (
    CheckpointSaved,
    Resumed,
    Skipped,
    TrainProgress,
    Validated,
    VolumeSeen,
)
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.plan import make_plan
from video2world_operator.reconcile.actions import Apply, Delete, Policy
from video2world_operator.reconcile.observed_state import Claim, Pod, VolumePeer
from video2world_operator.reconcile.reconciler import plan_of


def test_stages_run_in_order_with_seven_status_writes():
    world = World()
    order, writes = [], 0
    for _ in range(len(STAGES)):
        world.settle()
        order += [world.status["stage"]]
        writes += 1
        world.finish(world.status["stage"])
    world.settle()
    writes += 1
    assert order == STAGES
    assert world.status["phase"] == "Succeeded"
    assert world.status["completionTime"] == "2026-11-24T12:00:00Z"
    assert [e["state"] for e in world.status["stages"]] == ["Succeeded"] * 6
    kinds = [m["kind"] for m in world.applied]
    assert kinds.count("Job") == 6
    assert kinds.count("Service") == 1
    assert "ConfigMap" not in kinds
    assert writes == 7


def test_children_are_owned_by_the_resource_except_the_claim():
    world = World()
    world.to_training()
    for manifest in world.applied:
        owners = manifest["metadata"].get("ownerReferences", [])
        if manifest["kind"] == "PersistentVolumeClaim":
            assert owners == []
        else:
            assert [o["uid"] for o in owners] == ["u1"]


def test_reconciling_again_changes_nothing():
    world = World()
    world.to_training()
    world.round()
    before = copy.deepcopy(world.body)
    for _ in range(3):
        decision = world.round()
        assert not decision.actions
        assert world.body == before


def test_the_attempt_is_in_the_status_before_its_job_is_applied():
    world = World()
    world.settle()
    for stage in STAGES[:4]:
        world.finish(stage)
        decision = world.round()
        following = STAGES[STAGES.index(stage) + 1]
        assert world.stage(following)["attempt"] == 1
        assert [a.manifest["metadata"]["name"] for a in decision.actions][
            -1
        ] == f"run-{following}-1"
        world.settle()


@pytest.mark.parametrize(
    ("what", "reason", "charged", "exit_code"),
    [
        ({"phase": "Failed", "exit_code": 1}, "Crashed", True, 1),
        ({"phase": "Failed", "exit_code": 137, "reason": "OOMKilled"}, "OutOfMemory", True, 137),
        ({"phase": "Failed", "exit_code": 143}, "Terminated", False, 143),
        ({"disruption": "PreemptionByScheduler"}, "Preempted", False, None),
        ({"disruption": "DeletionByTaintManager"}, "NodeLost", False, None),
        ({"disruption": "EvictionByEvictionAPI", "deleted": NOW}, "Evicted", False, None),
        ({"disruption": "DeletionByPodGC"}, "NodeLost", False, None),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted", False, None),
        ({"deleted": NOW + timedelta(seconds=600)}, "PodDeleted", False, None),
    ],
)
def test_one_pod_down_restarts_the_whole_group(what, reason, charged, exit_code):
    world = World()
    _, second = world.to_training()
    world.round(events=[TrainProgress("train", 300, 1000, 0.1, 8.0), CheckpointSaved("train", 250)])
    world.pod(second, **what)
    decision = world.round()
    assert [a.name for a in decision.actions] == ["run-train-1"]
    assert world.status["phase"] == "Restarting"
    assert world.status["attempt"] == 2
    assert world.status["restarts"] == 1
    assert world.status.get("chargedRestarts", 0) == int(charged)
    record = world.status["attempts"][0]
    assert (record["reason"], record["charged"]) == (reason, charged)
    assert record["endIteration"] == 300
    assert world.status["attempts"][1]["startIteration"] == 250
    # nothing starts while a pod of the last attempt is alive, nor before the pause is over
    world.tick(3600)
    assert not [a for a in world.round().actions if isinstance(a, Apply)]
    world.pods.clear()
    (service, job) = (
        a.manifest for a in world.round().actions if a.manifest["kind"] != "PersistentVolumeClaim"
    )
    assert (service["kind"], job["metadata"]["name"]) == ("Service", "run-train-2")
    world.settle()
    assert world.status["phase"] == "Running"


def test_backoff_doubles_and_survives():
    world = World(resource(training={"iterations": 9, "nodes": 2, "maxRestarts": 3}))
    world.to_training()
    waits = []
    for attempt in (1, 2, 3):
        world.pod(f"run-train-{attempt}-0", phase="Failed", exit_code=1)
        world.round()
        began = world.now
        world.pods.clear()
        while world.status["phase"] == "Restarting":
            decision = world.round()
            if decision.wake and world.status["phase"] == "Restarting":
                world.now = decision.wake  # the status has all it needs
        waits.append((world.now - began).total_seconds())
        world.settle()
        world.start_pods()
    assert waits == [10, 20, 40]
    world.pod("run-train-4-0", phase="Failed", exit_code=9, tail="boom\nValueError: bad weather")
    world.round()
    failed = world.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "RestartsExhausted")
    assert "after 3 restarts: pod run-train-4-0 ended with exit code 9" in failed["message"]
    assert "bad weather" in failed["message"]
    assert world.stage("train")["logTail"] == "boom\nValueError: bad weather"
    assert world.status["phase"] == "Failed"


def test_a_user_error_fails_the_resource_with_the_workers_message():
    world = World()
    first, second = world.to_training()
    line = '{"event": "failed", "stage": "train", "reason": "UserError", "message": "no clips"}'
    world.pod(first, phase="Failed", exit_code=1)
    world.pod(second, phase="Failed", exit_code=2, tail=f"error: no clips\n{line}\n")
    world.round()
    assert world.status["message"] == "Stage train: no clips"
    assert world.condition("Failed")["reason"] == "UserError"
    assert world.stage("train")["logTail"] == "error: no clips"
    assert world.status.get("restarts") == 0
    # the Job controller gets a moment; then everything that still runs is ended
    assert not world.round().actions
    world.tick(20)
    assert [a.name for a in world.round().actions] == ["run-train-1"]


def test_a_spec_change_restarts_a_failed_resource():
    world = World()
    first, _ = world.to_training()
    world.pod(first, phase="Failed", exit_code=2)
    world.round()
    assert world.status["phase"] == "Failed"
    world.pods.clear()
    world.body["metadata"]["generation"] = 2
    world.settle()
    assert world.status["phase"] == "Running"
    assert world.status["attempt"] == 2
    assert "completionTime" not in world.status
    assert world.condition("Failed")["status"] == "False"


def test_a_failed_job_of_a_stage_fails_the_resource():
    world = World()
    world.settle()
    world.start_pods(phase="Failed", ready=False, exit_code=1, tail="error: disk on fire")
    world.round()
    assert world.status["phase"] == "Running"  # the Job controller retries
    world.jobs["run-download-1"] = replace(
        world.jobs["run-download-1"], failed="BackoffLimitExceeded", message="too many"
    )
    world.round()
    assert world.condition("Failed")["reason"] == "StageFailed"
    assert "disk on fire" in world.status["message"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(-1, "PodDeleted"), (0, "Crashed"), (2, "Crashed"), (None, "PodDeleted")],
)
def test_a_crash_counts_though_the_job_controller_has_deleted_the_others(asked, reason):
    """The Job controller ends the group, often before the operator has seen the crash."""
    world = World()
    first, second = world.to_training()
    world.pod(second, phase="Failed", exit_code=1, ended=world.now)
    moment = None if asked is None else world.now + timedelta(seconds=asked)
    world.pod(first, deleted=world.now + timedelta(seconds=600), deletion_requested=moment)
    world.round()
    assert world.status["attempts"][0]["reason"] == reason
    assert world.status.get("chargedRestarts", 0) == (reason == "Crashed")


def test_a_manually_deleted_job_is_replaced_by_a_new_attempt():
    world = World()
    world.to_training()
    world.round()
    del world.jobs["run-train-1"]
    world.pods.clear()
    world.settle()
    world.tick(10)
    world.settle()
    assert "run-train-2" in world.jobs
    assert world.status["attempts"][0]["reason"] == "JobDeleted"
    assert world.status.get("chargedRestarts", 0) == 0


def test_suspending_saves_first_and_resuming_continues():
    world = World()
    world.to_training()
    world.round()
    world.body["spec"]["suspend"] = True
    decision = world.round()
    assert [a.name for a in decision.actions] == ["run-train-1"]
    assert world.status["phase"] == "Running"  # its pods are still saving
    assert world.condition("Progressing")["reason"] == "Suspending"
    world.round(events=[CheckpointSaved("train", 421)])
    world.pods.clear()
    world.round()
    assert world.status["phase"] == "Suspended"
    assert world.status["checkpoint"]["iteration"] == 421
    assert not world.round().actions
    world.body["spec"]["suspend"] = False
    world.settle()
    assert "run-train-2" in world.jobs
    assert world.status["attempts"][1]["startIteration"] == 421
    assert (world.status["restarts"], world.status["phase"]) == (0, "Running")


def test_nothing_starts_while_suspended():
    body = resource()
    body["spec"]["suspend"] = True
    world = World(body)
    assert not world.round().actions
    assert world.status["phase"] == "Suspended"
    body["spec"]["suspend"] = False
    world.settle()
    assert list(world.jobs) == ["run-download-1"]


def test_a_pod_on_a_dead_node_is_force_deleted_and_not_counted():
    world = World()
    first, second = world.to_training()
    world.pod(first, phase="Failed", exit_code=1)  # its peer went silent
    world.round()
    assert world.status["chargedRestarts"] == 1
    world.pod(second, deleted=world.now + timedelta(seconds=30))
    decision = world.round()
    assert not decision.actions
    world.now = decision.wake
    world.tick(-1)
    while world.now < NOW + timedelta(seconds=90):
        assert not [a for a in world.round().actions if isinstance(a, Delete) and a.force]
        world.tick(10)
    (forced,) = [a for a in world.round().actions if isinstance(a, Delete) and a.force]
    assert (forced.kind, forced.name) == ("Pod", second)
    assert "node-1 does not answer" in forced.why
    assert world.status["chargedRestarts"] == 0
    assert world.status["attempts"][0]["reason"] == "NodeLost"


def test_stages_already_done_on_the_volume_need_no_pod():
    world = World()
    world.settle()
    hashes = {s.name: s.inputs_hash for s in plan_of(world.body).stages}
    world.finish("download")
    reported = [
        Skipped("download"),
        Skipped("dataset", hashes["dataset"]),
        Skipped("embeddings", "another"),
        Skipped("latents", hashes["latents"]),
    ]
    world.round(events=reported)
    states = {e["name"]: e["state"] for e in world.status["stages"]}
    assert states == {
        "download": "Skipped",
        "dataset": "Skipped",
        "embeddings": "Running",
        "latents": "Skipped",
        "train": "Pending",
        "inference": "Pending",
    }
    world.finish("embeddings")
    world.round()
    assert world.status["stage"] == "train"
    world.finish("train")
    note = "its data changed since: 1 new latents file: w.safetensors"
    world.round(events=[Skipped("train", hashes["train"], note)])
    (train,) = (e for e in world.status["stages"] if e["name"] == "train")
    assert (train["state"], train["message"]) == ("Skipped", note)


def test_training_continues_after_success_if_iterations_are_raised():
    world = World()
    world.through()
    assert world.status["phase"] == "Succeeded"
    world.body["spec"]["training"]["iterations"] = 2000
    world.body["metadata"]["generation"] = 2
    world.settle()
    assert world.status["phase"] == "Running"
    assert world.status["stage"] == "train"
    assert "run-train-2" in world.jobs
    assert [e["state"] for e in world.status["stages"]][:4] == ["Succeeded"] * 4


def test_deadline():
    world = World(resource(activeDeadlineSeconds=100))
    world.to_training()
    assert world.round().wake == NOW + timedelta(seconds=100)
    world.tick(101)
    decision = world.round()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    assert [a.name for a in decision.actions] == ["run-train-1"]  # no GPU is held


def test_ttl_and_cleanup_follow_the_written_end():
    world = World(resource(ttlSecondsAfterFinished=60, cleanupPolicy="All"))
    world.settle()
    for stage in STAGES:
        world.finish(stage)
        decision = world.round()
    assert world.status["phase"] == "Succeeded"
    assert {a.name for a in decision.actions} >= {"run-inference-1", "run-train-1"}
    world.tick(59)
    assert not world.round().actions
    world.tick(1)
    (last,) = world.round().actions
    assert (last.kind, last.uid) == ("Video2WorldPostTrain", "u1")


def test_a_training_that_ended_early_says_why():
    world = World()
    world.settle()
    for stage in STAGES:
        if stage == "train":
            reason = "the validation loss was 0.2 at iteration 40"
            event = Validated("train", 60, 0.3, best_iteration=40, best_loss=0.2, stopped=reason)
            world.round(events=[event])
        world.finish(stage)
        world.round()
    assert world.status["phase"] == "Succeeded"
    assert world.condition("Succeeded")["reason"] == "StoppedEarly"
    assert world.status["message"] == (
        "All stages are finished. Training ended early, at iteration 60, as spec.training.stopWhen "
        "requests: the validation loss was 0.2 at iteration 40."
    )


def test_a_changed_stopping_rule_takes_effect_at_once():
    training = {"validation": {}, "stopWhen": {"validationLossNotBetterFor": 5}}
    dataset = {"agibot": {"taskIDs": [327], "validationEpisodeIDs": [685393]}}
    world = World(resource(training={"iterations": 1000} | training, dataset=dataset))
    world.to_training()
    changed(world, training=world.body["spec"]["training"] | {"stopWhen": {}})
    world.settle()
    assert world.status["attempt"] == 2


def test_finished_jobs_stay_for_their_logs_by_default():
    world = World()
    world.through()
    assert sorted(world.jobs) == sorted(f"run-{stage}-1" for stage in STAGES)


@pytest.mark.parametrize(
    ("claim", "storage", "reason"),
    [
        (Claim("c", found=False), {"claimName": "c"}, "ClaimMissing"),
        (Claim("c", lost=True), {"claimName": "c"}, "ClaimLost"),
        (Claim("c", modes=("ReadWriteOnce",)), {"claimName": "c"}, "ClaimNotShared"),
        (Claim("c", modes=("ReadWriteMany",)), {"claimName": "c"}, None),
        (
            Claim("c", modes=("ReadWriteOnce",)),
            {"claimName": "c", "accessMode": "ReadWriteOnce"},
            None,
        ),
        (Claim("run-data", found=False), {}, None),
    ],
)
def test_the_volume_is_checked_before_anything_starts(claim, storage, reason):
    world = World(resource(storage=storage))
    decision = world.round(claim=claim)
    ready = world.condition("VolumeReady")
    if reason:
        assert (ready["status"], ready["reason"]) == ("False", reason)
        assert not decision.actions
        assert decision.wake == NOW + timedelta(seconds=Policy().min_requeue)
        assert world.status["message"] == ready["message"]
    else:
        assert decision.actions


def test_a_missing_claim_is_checked_less_and_less_often():
    world = World(resource(storage={"claimName": "c"}))
    waits = []
    for waited in (0, 60, 1000, 10_000):
        world.now = NOW + timedelta(seconds=waited)
        decision = world.round(claim=Claim("c", found=False))
        waits.append((decision.wake - world.now).total_seconds())
    assert waits == [15, 15, 100, 300]


def test_the_same_work_of_an_older_resource_is_awaited():
    world = World(resource(storage={"claimName": "c"}))
    hashes = {s.name: s.inputs_hash for s in plan_of(world.body).stages}
    peer = VolumePeer("elder", "elsewhere", {"dataset": hashes["dataset"]})
    world.round(peers=[peer])
    assert list(world.jobs) == ["run-download-1"]  # the older resource does not do that stage
    world.finish("download")
    decision = world.round(peers=[peer])
    assert not decision.actions
    assert world.condition("Progressing")["reason"] == "Waiting"
    assert "elder" in world.status["message"]
    world.settle()  # the older resource is done
    assert "run-dataset-1" in world.jobs


def test_two_runs_never_share_a_folder():
    world = World(resource(storage={"claimName": "c"}))
    world.through(STAGES[:3])
    folder = "checkpoints/posttraining/video2world/run/checkpoints"
    peer = VolumePeer("elder", folder, {"train": "another"})
    world.finish("latents")
    world.round(peers=[peer])
    world.tick(5)
    world.round(peers=[peer])
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NameInUse")
    assert accepted["lastTransitionTime"] == "2026-11-24T12:00:00Z"  # set once
    world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert "run-train-1" in world.jobs


def test_errors_of_the_api_server_are_reported_and_cleared():
    world = World()
    world.round(problems=["Job run-download-1: exceeded quota: gpus"])
    applied = world.condition("ChildrenApplied")
    assert (applied["status"], applied["reason"]) == ("False", "Refused")
    assert "exceeded quota" in world.status["message"]
    world.settle()
    assert world.condition("ChildrenApplied")["status"] == "True"


def test_an_invalid_spec_is_reported_and_nothing_is_changed():
    body = resource(training={"iterations": 5, "contextParallelSize": 3})
    decision = World(body).round()
    (accepted,) = decision.status.conditions
    assert (accepted.status, accepted.reason) == ("False", "Invalid")
    assert "spec.training.contextParallelSize" in decision.status.message
    assert not decision.actions


def test_waiting_pods_are_reported_with_the_reason():
    world = World()
    world.settle()
    (pod,) = world.start_pods(phase="Pending", ready=False, waits="ErrImagePull: no such image")
    world.round()
    assert world.condition("PodsStarted")["reason"] == "ContainerWaits"
    assert "ErrImagePull: no such image" in world.status["message"]
    world.pod(pod, waits="", unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu")
    world.round()
    assert world.condition("PodsStarted")["reason"] == "Unschedulable"
    world.pod(pod, unschedulable="", phase="Running", ready=True)
    world.round()
    assert world.condition("PodsStarted")["status"] == "True"


def test_kueue_may_stop_and_start_the_group_without_a_restart():
    world = World(resource(scheduling={"queueName": "q"}))
    first, _ = world.to_training()
    world.round()
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=True)
    world.pod(first, deleted=world.now, disruption="PreemptionByKueue")
    world.round()
    assert world.condition("PodsStarted")["reason"] == "Queued"
    assert (world.status["attempt"], world.status["restarts"]) == (1, 0)
    assert world.condition("GangScheduled")["reason"] == "Kueue"


def test_the_gang_depends_on_what_the_cluster_serves():
    def kinds(capabilities, **scheduling):
        world = World(resource(scheduling=scheduling))
        world.extra = {"capabilities": capabilities}
        world.to_training()
        groups = [m for m in world.applied if m["kind"] == "PodGroup"]
        job = next(
            m
            for m in world.applied
            if m["metadata"]["name"] == "run-train-1" and m["kind"] == "Job"
        )
        return world.condition("GangScheduled"), groups, job["spec"]["template"]

    every = Capabilities(
        {
            OptionalApi.NATIVE_POD_GROUP: "v1beta1",
            OptionalApi.VOLCANO_POD_GROUP: "v1beta1",
            OptionalApi.COSCHEDULING_POD_GROUP: "v1alpha1",
        }
    )
    condition, (group,), template = kinds(every)
    assert condition["reason"] == "Native"
    assert group["apiVersion"] == "scheduling.k8s.io/v1beta1"
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert template["spec"]["schedulingGroup"] == {"podGroupName": "run-train-1"}
    condition, (group,), template = kinds(every, gang="Volcano")
    assert (condition["reason"], template["spec"]["schedulerName"]) == ("Volcano", "volcano")
    assert group["spec"] == {"minMember": 2, "minResources": {"nvidia.com/gpu": "16"}}
    condition, (group,), template = kinds(
        Capabilities({OptionalApi.COSCHEDULING_POD_GROUP: "v1alpha1"})
    )
    assert condition["reason"] == "Coscheduling"
    assert template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == "run-train-1"
    assert group["apiVersion"] == "scheduling.x-k8s.io/v1alpha1"
    condition, (group,), _ = kinds(
        Capabilities({OptionalApi.VOLCANO_POD_GROUP: "v2"})
    )  # a future version
    assert group["apiVersion"] == "scheduling.volcano.sh/v2"
    condition, groups, _ = kinds(Capabilities())
    assert (condition["status"], condition["reason"], groups) == ("False", "Unavailable", [])
    condition, groups, _ = kinds(every, gang="None")
    assert (condition["reason"], groups) == ("Off", [])


def crashed_gang(served, **training):
    """Return the world of a gang, one of whose pods has crashed."""
    world = World(resource(training=training))
    world.extra = {"capabilities": Capabilities({served: "v1beta1"})}
    pods = world.to_training()
    world.round()
    world.pod(pods[0], phase="Failed", exit_code=137, ended=world.now)
    world.round()
    return world


def test_an_ended_attempt_of_volcano_leaves_no_group_that_would_reserve_gpus():
    world = crashed_gang(OptionalApi.VOLCANO_POD_GROUP)
    assert world.groups_deleted == ["run-train-1"]
    world.round()
    world.tick(10)
    world.settle()
    assert world.groups_deleted == ["run-train-1"]


def test_a_run_that_fails_for_good_leaves_no_group_either():
    world = crashed_gang(OptionalApi.VOLCANO_POD_GROUP, maxRestarts=0)
    world.settle()
    assert (world.status["phase"], world.groups_deleted) == ("Failed", ["run-train-1"])


def test_a_group_of_kubernetes_itself_stays_until_the_resource_goes():
    assert crashed_gang(OptionalApi.NATIVE_POD_GROUP).groups_deleted == []


def test_a_group_of_volcano_has_the_queue_and_priority_of_its_pods():
    annotations = {"scheduling.volcano.sh/queue-name": "team"}
    world = World(
        resource(
            scheduling={"gang": "Volcano", "priorityClassName": "urgent"},
            stages={"train": {"podTemplate": {"metadata": {"annotations": annotations}}}},
        )
    )
    served = {OptionalApi.VOLCANO_POD_GROUP: "v1beta1"}
    world.extra = {"capabilities": Capabilities(served)}
    world.to_training()
    (group,) = [m for m in world.applied if m["kind"] == "PodGroup"]
    assert (group["spec"]["queue"], group["spec"]["priorityClassName"]) == ("team", "urgent")


ACTS = {  # evidence that a scheduler acts: in the PodGroup, the pods or the Job
    "Native": (
        Capabilities({OptionalApi.NATIVE_POD_GROUP: "v1"}),
        {"conditions": [{"type": "PodGroupInitiallyScheduled"}]},
        {},
        {},
    ),
    "Volcano": (
        Capabilities({OptionalApi.VOLCANO_POD_GROUP: "v1beta1"}),
        {"phase": "Inqueue"},
        {},
        {},
    ),
    "Volcano by its pods": (
        Capabilities({OptionalApi.VOLCANO_POD_GROUP: "v1beta1"}),
        {},
        {"unschedulable": "no room"},
        {},
    ),
    "Coscheduling": (
        Capabilities({OptionalApi.COSCHEDULING_POD_GROUP: "v1alpha1"}),
        {"phase": "Pending"},
        {},
        {},
    ),
    "Kueue": (Capabilities(), {}, {}, {"queued": True}),
}


@pytest.mark.parametrize("way", ACTS)
def test_a_gang_is_scheduled_only_once_a_scheduler_acts(way):
    capabilities, reported, pod_fields, job_fields = ACTS[way]
    world = World(resource(scheduling={"queueName": "q"} if way == "Kueue" else {}))
    world.extra = {"capabilities": capabilities, "pod_group": {"spec": {}, "status": {}}}
    world.through(STAGES[:4])
    pods = world.start_pods(phase="Pending", ready=False, node="", started=None)
    world.round()
    condition = world.condition("GangScheduled")
    assert (condition["status"], condition["reason"]) == ("Unknown", way.split()[0])
    assert "It is not known yet whether" in condition["message"]
    world.tick(29)
    world.round()
    assert world.condition("GangScheduled")["status"] == "Unknown"
    world.tick(2)
    world.round()
    condition = world.condition("GangScheduled")
    assert (condition["status"], condition["reason"]) == ("False", "SchedulerMissing")
    assert world.status["message"] == condition["message"]
    assert "No scheduler has acted on" in condition["message"]
    world.extra |= {"pod_group": {"spec": {}, "status": reported}}
    world.pod(pods[0], **pod_fields)
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], **job_fields)
    world.round()
    condition = world.condition("GangScheduled")
    assert (condition["status"], condition["reason"]) == ("True", way.split()[0])
    assert "Its scheduler has acted" in condition["message"]


@pytest.mark.parametrize("way", ["Native", "Coscheduling"])
def test_pods_that_the_default_scheduler_places_are_no_sign_of_a_gang(way):
    world = World()
    world.extra = {"capabilities": ACTS[way][0], "pod_group": {"spec": {}}}
    world.to_training()
    world.round()
    world.tick(31)
    world.round()
    assert world.condition("GangScheduled")["reason"] == "SchedulerMissing"


def test_gpu_time_is_accounted_for():
    world = World()
    first, _ = world.to_training()
    world.round()
    world.tick(1000)  # 2 nodes of 8 GPUs for 1000 s
    world.round(events=[TrainProgress("train", 100, 1000, 0.5, 8.0, 7200.0, 80)])
    live = world.status["gpuSeconds"]
    assert live == {"useful": 12800.0, "lost": 0.0, "idle": 3200.0}
    assert world.status["progress"]["eta"] == "2h00m"
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    assert world.status["gpuSeconds"] == {"useful": 10240.0, "lost": 2560.0, "idle": 3200.0}
    world.pods.clear()
    world.tick(10)
    world.settle()
    world.start_pods()
    world.tick(-500)  # the clock is set back
    world.round()
    total = world.status["gpuSeconds"]
    assert sum(total.values()) >= 16000.0
    assert all(v >= 0 for v in total.values())


def test_a_checkpoint_whose_event_was_lost_with_its_pod():
    """The next attempt reports where it began; iterations counted as lost had been saved."""
    world = World()
    first, _ = world.to_training()
    world.round()
    world.tick(1000)
    world.round(events=[TrainProgress("train", 100, 1000, 0.5, 8.0, 7200.0, 80)])
    world.pod(first, deleted=NOW)
    world.round()
    assert world.status["gpuSeconds"] == {"useful": 10240.0, "lost": 2560.0, "idle": 3200.0}
    world.pods.clear()
    world.tick(10)
    world.settle()
    world.round(events=[Resumed("train", 103)])
    before, now = world.status["attempts"]
    assert (before["endIteration"], now["startIteration"], now["endIteration"]) == (103, 103, 103)
    assert world.status["checkpoint"]["iteration"] == 103
    assert world.status["gpuSeconds"] == {"useful": 12800.0, "lost": 0.0, "idle": 3200.0}
    world.round(events=[Resumed("train", 103), Resumed("train", 80)])  # read again: no change
    assert world.status["attempts"][1]["startIteration"] == 103
    assert world.status["gpuSeconds"] == {"useful": 12800.0, "lost": 0.0, "idle": 3200.0}


@pytest.mark.parametrize(
    ("waits", "todo"),
    [
        ('ImagePullBackOff: Back-off pulling image "none:9": not found', "spec.images"),
        ('CreateContainerConfigError: secret "hf" not found', "kubectl create secret generic hf"),
        ("Odd: never heard of", "kubectl describe pod"),
    ],
)
def test_a_pod_that_cannot_start_is_reported_with_a_remedy(waits, todo):
    world = World()
    first, _ = world.to_training()
    world.pod(first, phase="Pending", ready=False, waits=waits)
    world.round()
    condition = world.condition("PodsStarted")
    assert condition["reason"] == "ContainerWaits"
    assert waits in condition["message"]
    assert todo in condition["message"]


def test_a_resource_being_deleted_is_left_to_the_garbage_collector():
    body = resource()
    body["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    decision = World(body).round()
    assert decision.status is None
    assert not decision.actions


def test_conditions_carry_the_generation():
    world = World()
    world.body["metadata"]["generation"] = 7
    world.round()
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {7}
    assert world.status["observedGeneration"] == 7


def test_train_manifests_are_the_plans_own():
    world = World()
    world.to_training()
    plan = make_plan(plan_of(world.body).resource)
    rendered = plan.manifests("train", 1)[-1]
    applied = next(
        m for m in world.applied if m["metadata"]["name"] == "run-train-1" and m["kind"] == "Job"
    )
    assert applied["spec"] == rendered["spec"]


def test_an_uncounted_restart_is_immediate_unless_the_attempt_was_short():
    world = World()
    first, _ = world.to_training()
    world.tick(59)
    world.pod(first, phase="Failed", exit_code=143)
    world.round()
    assert world.status["nextAttemptTime"] == "2026-11-24T12:01:09Z"
    world.tick(10)
    world.pods.clear()
    world.settle()
    first, _ = world.start_pods()
    world.tick(61)
    world.pod(first, phase="Failed", exit_code=143)
    world.round()
    assert world.status["nextAttemptTime"] == "2026-11-24T12:02:10Z"  # now
    assert world.status.get("chargedRestarts", 0) == 0


def test_a_changed_run_closes_the_attempt_it_interrupts():
    world = World()
    world.to_training()
    world.round()
    world.body["spec"]["training"]["iterations"] = 2000
    world.body["metadata"]["generation"] = 2
    world.round()
    assert world.status["attempts"][0]["reason"] == "SpecChanged"
    assert world.status["attempt"] == 2
    world.pods.clear()
    world.settle()
    assert next(j for j in world.jobs.values() if j.stage == "train").attempt == 2


def test_a_succeeded_job_is_not_deleted_if_the_cache_goes_back():
    world = World()
    world.settle()
    before = world.jobs["run-download-1"]
    world.finish("download")
    world.round()
    world.jobs = {"run-download-1": before}  # as a list from before its end shows it
    world.settle()
    assert "run-download-1" in world.jobs
    world.body["spec"]["suspend"] = True
    world.jobs = {"run-download-1": before}
    world.settle()
    assert "run-download-1" in world.jobs


def crashed_an_hour_ahead(**training):
    """A world whose clock was an hour ahead when a training pod crashed, and was corrected."""
    world = World(resource(training=training))
    first, _ = world.to_training()
    world.tick(3600)
    world.pod(first, phase="Failed", exit_code=1, ended=world.now)
    world.settle()
    world.tick(-3600)
    return world


def test_a_clock_that_was_ahead_does_not_delay_the_next_attempt():
    world = crashed_an_hour_ahead()
    world.pods.clear()
    world.settle()
    assert "run-train-2" not in world.jobs
    world.tick(10)  # the pause it would have had
    world.settle()
    assert "run-train-2" in world.jobs


def test_a_clock_that_was_ahead_does_not_keep_the_gpus_of_a_failed_resource():
    world = crashed_an_hour_ahead(maxRestarts=0)
    assert world.status["phase"] == "Failed"
    world.settle()
    assert world.status["completionTime"] == "2026-11-24T12:00:00Z"
    world.tick(15)
    world.settle()
    assert "run-train-1" not in world.jobs


def test_a_pod_on_a_dead_node_is_force_deleted_in_every_stage():
    world = World()
    world.settle()
    (pod,) = world.start_pods()
    world.pod(
        pod,
        node="dead",
        disruption="DeletionByTaintManager",
        deleted=world.now + timedelta(seconds=30),
    )
    world.settle()
    assert pod in world.pods
    assert list(world.jobs) == ["run-download-1"]
    world.tick(91)
    world.settle()
    assert pod not in world.pods
    assert list(world.jobs) == ["run-download-2"]
    assert world.status["phase"] == "Running"
    assert (world.status["restarts"], world.status.get("chargedRestarts", 0)) == (1, 0)


def test_a_pod_of_an_earlier_resource_on_a_dead_node_is_force_deleted_without_a_restart():
    world = World()
    world.settle()
    (pod,) = world.start_pods()
    world.pod(pod, node="dead", deleted=world.now + timedelta(seconds=30))
    world.jobs.clear()
    world.body = resource()
    world.body["metadata"]["uid"] = "u2"
    world.settle()
    assert (pod in world.pods, list(world.jobs)) == (True, [])
    world.tick(91)
    world.settle()
    assert (pod in world.pods, list(world.jobs)) == (False, ["run-download-1"])
    assert world.status["restarts"] == 0


def test_a_job_deleted_before_it_was_recorded_is_recreated_once_its_pods_are_gone():
    world = World()
    first, second = world.to_training()
    world.stage("train").pop("jobUID", None)  # as written before the Job existed
    del world.jobs["run-train-1"]  # by a user
    for pod in (first, second):
        world.pod(pod, deleted=world.now + timedelta(seconds=600))
    world.settle()
    assert "run-train-1" not in world.jobs
    del world.pods[first]
    world.pod(second, phase="Failed", exit_code=143)
    world.settle()
    assert "run-train-1" not in world.jobs
    del world.pods[second]
    world.settle()
    assert "run-train-1" in world.jobs
    assert world.status["restarts"] == 0


def test_pods_of_an_earlier_resource_delay_the_job_of_the_same_name():
    world = World()
    world.settle()
    (pod,) = world.start_pods()
    world.body = resource()
    world.body["metadata"]["uid"] = "u2"  # and the Job of the first one was not garbage-collected
    decision = world.round(cache=world.snapshot())
    assert pod in world.pods
    made = [a.manifest for a in decision.actions if isinstance(a, Apply)]
    assert "run-download-1" in [m["metadata"]["name"] for m in made if m["kind"] == "Job"]


def test_a_recorded_job_is_not_recreated_if_the_watch_lags():
    world = World()
    world.to_training()
    world.stage("train").pop("jobUID", None)
    job = world.jobs.pop("run-train-1")
    of_the_stage_before = [j for j in world.snapshot()[0] if j.stage != "train"], []
    pods = dict(world.pods)
    decision = world.round(cache=of_the_stage_before)  # the cache has neither Job nor pods yet
    assert not [a for a in decision.actions if isinstance(a, Apply)]
    assert world.pods == pods
    assert job.name not in world.jobs


def test_samples_whose_pod_is_on_a_dead_node_are_restarted():
    world = World(resource(inference={"everyCheckpoint": True}))
    world.to_training()
    world.round(events=[CheckpointSaved("train", 100)])
    world.settle()
    (job,) = [j for j in world.jobs.values() if j.stage == "samples"]
    pod = Pod(
        "s", "s", "samples", 100, 0, "Running", "dead", deleted=world.now + timedelta(seconds=30)
    )
    world.pods["s"] = pod
    world.tick(91)
    world.settle()
    assert "s" not in world.pods
    (again,) = [j for j in world.jobs.values() if j.stage == "samples"]
    assert again.uid != job.uid
    assert world.status["restarts"] == 0


def test_a_resource_suspended_after_its_spec_was_extended_has_not_succeeded():
    world = World()
    world.through()
    assert world.status["phase"] == "Succeeded"
    world.body["spec"]["training"]["iterations"] = 2000
    world.body["spec"]["suspend"] = True  # both before the operator reconciles again
    world.body["metadata"]["generation"] = 3
    world.settle()
    assert world.stage("train")["state"] == "Pending"
    assert world.status["phase"] == "Suspended"
    assert world.condition("Succeeded")["status"] == "False"
    assert "completionTime" not in world.status


def test_an_ended_pod_on_a_silent_node_is_force_deleted_and_counts_by_its_exit_code():
    world = World()
    first, second = world.to_training()
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    world.pod(second, phase="Failed", exit_code=143, deleted=world.now + timedelta(seconds=30))
    world.settle()
    assert second in world.pods
    world.tick(91)
    world.settle()
    assert second not in world.pods
    assert world.status["chargedRestarts"] == 1


def test_samples_removed_and_added_again_get_a_new_job():
    world = World()
    world.through()
    for samples in ([], [{"input": "val/videos/b.mp4"}]):
        world.body["spec"]["inference"] = {"samples": samples}
        world.body["metadata"]["generation"] += 1
        world.settle()
    assert world.stage("inference")["state"] == "Running"
    assert not world.jobs["run-inference-2"].finished


def test_success_is_reported_once_nothing_runs():
    world = World()
    world.through(STAGES[:5])
    (pod,) = world.start_pods()
    world.body["spec"]["inference"] = {"samples": []}  # while they are being made
    world.body["metadata"]["generation"] = 2
    world.settle()
    assert "run-inference-1" not in world.jobs
    assert world.status["phase"] == "Running"
    world.pods.pop(pod)
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_a_failed_job_whose_pod_is_gone_is_not_counted():
    """A pod was deleted manually while no operator was leading; a crash would leave its pod."""
    world = World()
    world.to_training()
    world.pods.clear()
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], failed="BackoffLimitExceeded")
    world.round()
    assert world.status["attempts"][0]["reason"] == "JobFailed"
    assert world.status["restarts"] == 1
    assert world.status.get("chargedRestarts", 0) == 0


def test_pod_counts_are_reset_with_their_attempt():
    world = World()
    first, _ = world.to_training()
    world.round()
    assert world.stage("train")["ready"] == 2
    world.pod(first, phase="Failed", exit_code=1, ready=False)
    world.round()
    assert world.stage("train").get("ready", 0) == 0
    world.pods.clear()
    world.tick(60)
    world.settle()
    assert world.stage("train")["attempt"] == 2
    assert world.stage("train").get("ready", 0) == 0


def test_preflight_problems_are_a_condition_and_delay_nothing():
    world = World()
    world.round(preflight=["nodes for train: there is room for 0 of 2 pods; add nodes"])
    found = world.condition("PreflightPassed")
    assert (found["status"], found["reason"]) == ("False", "ChecksFailed")
    assert "room for 0 of 2" in found["message"]
    assert world.jobs
    world.round()  # not read: unchanged
    assert world.condition("PreflightPassed") == found
    world.round(preflight=[])
    assert world.condition("PreflightPassed")["status"] == "True"


# ---------------------------------------------------------------------- the volume's content

OWN = Claim("run-data", modes=("ReadWriteMany",))
GONE = Claim("run-data", found=False)


def reported(stage, identity, expected=""):
    return [VolumeSeen(stage, identity, expected)]


def to_latents(world, identity="a"):
    """The first worker reports its volume; two more stages are done on it."""
    world.extra = {"claim": OWN}
    world.settle()
    world.round(events=reported("download", identity))
    for stage in ("download", "dataset", "embeddings"):
        world.finish(stage)
        world.settle()
    assert world.status["volumeID"] == identity


def given(world, name):
    """The volume ID that the worker of a Job gets."""
    job = next(
        m for m in reversed(world.applied) if m["metadata"]["name"] == name and m["kind"] == "Job"
    )
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return next((e["value"] for e in env if e["name"] == "V2W_VOLUME_ID"), None)


def test_later_workers_get_the_volume_id_of_the_first():
    world = World()
    to_latents(world)
    assert given(world, "run-download-1") is None
    assert given(world, "run-dataset-1") == "a"
    world.finish("latents")
    world.settle()
    assert given(world, "run-train-1") == "a"


def test_a_worker_that_finds_another_volume_makes_all_stages_run_again():
    world = World()
    to_latents(world)
    world.start_pods()
    world.round(events=reported("latents", "b", "a"))
    assert [e["state"] for e in world.status["stages"]] == ["Running"] + ["Pending"] * 5
    condition = world.condition("ContentKept")
    assert (condition["status"], condition["reason"]) == ("False", "ContentLost")
    assert "all stages run again" in world.status["message"]
    assert (world.status["restarts"], world.status["chargedRestarts"]) == (1, 1)
    assert "run-latents-1" not in world.jobs
    assert not [j for j in world.jobs.values() if j.stage == "download" and not j.finished]
    world.pods.clear()
    world.settle()
    assert given(world, "run-download-2") == "b"
    world.round(events=reported("latents", "b", "a"))  # the same lines, read again
    world.round(events=reported("latents", "b", "b"))
    assert world.status["restarts"] == 1
    for stage in STAGES:
        world.finish(stage)
        world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.condition("ContentKept")["status"] == "True"


@pytest.mark.parametrize(
    "events",
    [
        reported("latents", "a", "a"),
        reported("latents", "a"),
        reported("latents", "b"),  # of a worker without a volume ID
        reported("latents", "b", "c"),  # of an attempt with an older volume ID
    ],
    ids=str,
)
def test_events_that_are_not_a_loss(events):
    world = World()
    to_latents(world)
    world.round(events=events)
    assert world.condition("ContentKept") is None
    assert world.stage("latents")["state"] == "Running"
    assert world.status["volumeID"] == "a"


def test_two_resources_on_one_volume_use_one_volume_id():
    one, other = (
        World(resource(storage={"claimName": "run-data"})),
        World(resource(storage={"claimName": "run-data"})),
    )
    for world in (one, other):
        to_latents(world)
        world.round(events=reported("latents", "a", "a"))
        assert world.condition("ContentKept") is None


def test_a_deleted_claim_of_our_own_is_a_loss():
    world = World()
    to_latents(world)
    world.finish("latents")
    world.extra = {"claim": GONE}
    world.round()
    assert world.stage("download")["state"] == "Running"
    assert world.condition("ContentKept")["reason"] == "ContentLost"
    assert "run-data was deleted" in world.status["message"]
    assert "volumeID" not in world.status
    assert "checkpoint" not in world.status
    world.settle()
    assert "run-download-2" in world.jobs


def test_a_claim_that_was_never_created_is_not_a_loss():
    world = World()
    world.extra = {"claim": GONE}
    world.settle()
    world.round()
    assert world.condition("ContentKept") is None


def test_a_deleted_claim_of_the_user_is_awaited():
    world = World(resource(storage={"claimName": "run-data"}))
    to_latents(world)
    world.finish("latents")
    world.extra = {"claim": GONE}
    world.settle()
    assert world.condition("VolumeReady")["reason"] == "ClaimMissing"
    assert world.stage("train")["state"] == "Pending"
    assert world.condition("ContentKept") is None
    world.extra = {"claim": OWN}
    world.settle()
    assert given(world, "run-train-1") == "a"


@pytest.mark.parametrize("claim_name", ["", "run-data"])
def test_no_stage_starts_on_a_claim_that_is_being_deleted(claim_name):
    world = World(resource(storage={"claimName": claim_name} if claim_name else {}))
    to_latents(world)
    world.extra = {"claim": replace(OWN, deleting=True)}
    world.round()
    assert world.stage("latents")["state"] == "Running"  # running pods continue
    assert world.condition("VolumeReady")["reason"] == "ClaimDeleted"
    assert world.status["message"].startswith("Claim run-data is being deleted, and its data too")
    world.finish("latents")
    world.settle()
    assert world.stage("train")["state"] == "Pending"
    assert not [j for j in world.jobs.values() if j.stage == "train"]


def test_a_volume_that_keeps_nothing_fails_the_resource():
    world = World(resource(training={"maxRestarts": 2}))
    world.extra = {"claim": OWN}
    world.settle()
    world.round(events=reported("download", "0"))
    for number in range(3):
        world.finish("download")
        world.settle()
        world.round(events=reported("dataset", str(number + 1), str(number)))
        world.pods.clear()
        if number < 2:
            world.settle()
    assert world.status["phase"] == "Failed"
    assert world.condition("Failed")["reason"] == "ContentLostAgain"
    assert "maxRestarts (2)" in world.status["message"]


# ---------------------------------------------------------------------- a change of the spec


def changed(world, **spec):
    """Change the spec, as a user would."""
    body = world.body
    metadata = body["metadata"] | {"generation": body["metadata"]["generation"] + 1}
    world.body = body | {"metadata": metadata, "spec": body["spec"] | spec}


IMAGES = {"images": {"trainer": "t:2", "preprocess": "p:2"}}


@pytest.mark.parametrize("phase", ["Pending", "no pod"])
def test_an_attempt_that_has_not_started_is_replaced_after_a_spec_change(phase):
    world = World()
    world.settle()
    if phase == "Pending":
        world.start_pods(phase="Pending", ready=False, waits="ImagePullBackOff: no")
        world.settle()
    changed(world, **IMAGES)
    world.round()
    assert world.stage("download")["message"].startswith("SpecChanged")
    world.pods.clear()
    world.settle()
    job = world.applied[-1]
    assert job["metadata"]["name"] == "run-download-2"
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "p:2"
    assert world.status.get("chargedRestarts", 0) == 0
    world.round()
    assert list(world.jobs) == ["run-download-2"]


def test_running_pods_continue_and_the_next_attempt_uses_the_new_spec():
    world = World()
    first, _ = world.to_training()
    changed(world, **IMAGES, stages={"train": {"nodeSelector": {"a": "b"}}})
    world.settle()
    assert world.stage("train")["attempt"] == 1
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    world.pods.clear()
    world.tick(1000)
    world.settle()
    template = next(
        m for m in world.applied if m["metadata"]["name"] == "run-train-2" and m["kind"] == "Job"
    )["spec"]["template"]["spec"]
    assert template["containers"][0]["image"] == "t:2"
    assert template["nodeSelector"] == {"a": "b"}


def test_a_change_of_another_stage_restarts_nothing():
    world = World()
    world.settle()
    changed(world, stages={"train": {"nodeSelector": {"a": "b"}}}, ttlSecondsAfterFinished=7)
    world.settle()
    assert list(world.jobs) == ["run-download-1"]
