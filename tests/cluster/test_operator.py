"""The operator on a real API server: a run from start to end, and the events that disturb it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from operators import Operator, Resource, eventually, exists, grant, set_quota
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.controller.observer import PVC_SECONDS
from video2world_operator.controller.rbac import ACCOUNT

STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]
USER = f"system:serviceaccount:video2world-system:{ACCOUNT}"


@pytest.fixture(scope="module")  # no longer: it would do the work of other modules' operators
def operator(gpu_cluster, tmp_path_factory):
    """One operator for the whole cluster, with the rights of manifests/rbac.yaml."""
    account = grant(gpu_cluster, "video2world-system")
    kubeconfig = gpu_cluster.write_kubeconfig(account)
    log = tmp_path_factory.mktemp("operator") / "log"
    flags = ("--termination-bound-seconds", "2", "--lease-seconds", "4")
    flags += ("--own-namespace", "video2world-system")
    with Operator(kubeconfig, *flags, log=log) as running:
        yield running


@pytest.fixture
def run(gpu_cluster, gpu_namespace, operator):
    """A resource that is not created yet."""
    if not operator.alive:  # the test before has ended it
        operator.start()
    yield Resource(gpu_cluster, gpu_namespace)
    assert not operator.crashed, operator.tail()


def writes(cluster, run):
    """Return what the operator wrote for a resource, in order: verb and object."""
    for event in cluster.audit(USER):
        about = event.get("objectRef", {})
        if event["verb"] in ("create", "patch", "update", "delete") and (
            about.get("namespace") == run.namespace and event["responseStatus"]["code"] < 300
        ):
            sub = f"/{about['subresource']}" if "subresource" in about else ""
            yield f"{event['verb']} {about['resource']}{sub} {about.get('name', '')}".strip()


def test_a_run_from_start_to_end(run, gpu_cluster):
    run.create()
    for stage in STAGES:
        run.reaches(stage=stage)
        run.finish(stage)
    status = run.reaches(phase="Succeeded")
    assert [e["state"] for e in status["stages"]] == ["Succeeded"] * 6
    assert run.object["metadata"].get("finalizers", []) == []
    managers = {m["manager"] for m in run.object["metadata"]["managedFields"]}
    assert "video2world-operator" in managers
    assert "kopf" not in json.dumps(run.object["metadata"].get("annotations", {}))
    made = list(writes(gpu_cluster, run))
    assert made.count("create services run-train") == 1
    assert [m for m in made if "jobs" in m] == [f"create jobs run-{s}-1" for s in STAGES]
    shown = gpu_cluster.kubectl("get", "v2w", "-n", run.namespace).stdout.splitlines()
    assert shown[0].split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "RESTARTS", "AGE"]
    assert shown[1].split()[:2] == ["run", "Succeeded"]


def test_a_run_takes_few_writes(run, gpu_cluster):
    run.create()
    for stage in STAGES:
        run.finish(stage)
    run.reaches(phase="Succeeded")
    made = list(writes(gpu_cluster, run))
    print("\n".join(made))
    assert len(made) <= 18  # the figure itself is measured in benchmarks/operator.py


def test_one_crash_restarts_the_gang_as_a_new_attempt(run, gpu_cluster):
    run.create()
    first, second = run.to_training()
    gpu_cluster.finish_pod(run.namespace, second, 1)
    run.running("train", 2)
    status = run.reaches(phase="Running", attempt=2, restarts=1, chargedRestarts=1)
    assert status["attempts"][0]["reason"] == "Crashed"
    assert not exists(gpu_cluster.admin, f"/api/v1/namespaces/{run.namespace}/pods/{first}")
    made = list(writes(gpu_cluster, run))
    gone, job = made.index("delete jobs run-train-1"), made.index("create jobs run-train-2")
    started = made.index("create jobs run-train-1")
    assert "patch video2worldposttrains/status run" in made[started:gone]  # persisted first
    assert gone < job
    events = gpu_cluster.admin.get(f"/api/v1/namespaces/{run.namespace}/events")["items"]
    mine = [e for e in events if e["involvedObject"]["kind"] == "Video2WorldPostTrain"]
    assert [e["reason"] for e in mine] == ["Restarting"]


def test_a_user_error_is_final(run, gpu_cluster):
    run.create()
    pods = run.to_training()
    gpu_cluster.finish_pod(run.namespace, pods[0], 2)
    status = run.reaches(phase="Failed")
    assert run.condition("Failed")["reason"] == "UserError"
    assert status["restarts"] == 0
    eventually(lambda: not run.pods("train"))  # no GPU is held by what has failed
    time.sleep(1)
    assert [j["metadata"]["name"] for j in run.children("jobs")].count("run-train-2") == 0


def test_a_pod_deleted_by_hand_restarts_the_gang_without_counting(run, gpu_cluster):
    run.create()
    pods = run.to_training()
    gpu_cluster.kubectl("delete", "pod", pods[1], "-n", run.namespace, "--wait=false")
    run.running("train", 2)
    status = run.reaches(attempt=2, restarts=1)
    assert status["attempts"][0]["reason"] in ("PodDeleted", "Terminated")
    assert status.get("chargedRestarts", 0) == 0


def test_a_run_fails_when_its_restarts_are_used_up(run, gpu_cluster):
    run.create(training={"maxRestarts": 1})
    run.to_training()
    for attempt in (1, 2):
        gpu_cluster.finish_pod(run.namespace, run.running("train", attempt)[0], 7)
    run.reaches(phase="Failed", restarts=1)
    assert run.condition("Failed")["reason"] == "RestartsExhausted"
    assert "exit code 7" in run.status["message"]


def test_suspending_releases_the_pods_and_resuming_continues(run, gpu_cluster):
    run.create()
    run.to_training()
    run.patch(suspend=True)
    run.reaches(phase="Suspended")
    assert run.pods("train") == []
    run.patch(suspend=False)
    run.running("train", 2)
    status = run.reaches(phase="Running", attempt=2)
    assert status["restarts"] == 0
    run.finish("train", 2)
    run.finish("inference")
    run.reaches(phase="Succeeded")


def test_deleting_a_resource_leaves_only_its_volume(run, gpu_cluster):
    run.create()
    run.to_training()
    run.delete()
    for kind in ("jobs", "pods", "services"):
        eventually(lambda kind=kind: run.children(kind) == [])
    assert len(run.children("persistentvolumeclaims")) == 1


@pytest.mark.parametrize("retention", ["Keep", "Delete"])
@pytest.mark.parametrize("stage", STAGES[:2])
def test_a_resource_created_again_while_its_predecessor_s_objects_are_left(
    run, gpu_cluster, stage, retention
):
    """The garbage collector misses a deletion while its watch is interrupted."""
    controllers = gpu_cluster.processes["kube-controller-manager"]
    run.create(storage={"retention": retention})
    for before in STAGES[: STAGES.index(stage)]:
        run.finish(before)
    run.running(stage)
    first, (claim,) = run.children("jobs"), run.children("persistentvolumeclaims")
    os.kill(controllers, signal.SIGSTOP)
    try:
        run.delete()
        run.create(storage={"retention": retention})
        going = [
            f"/apis/batch/v1/namespaces/{run.namespace}/jobs/{j['metadata']['name']}" for j in first
        ]
        if retention == "Delete" and stage == STAGES[0]:  # else the first one's pods are awaited
            going += [f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims/run-data"]
        for path in going:
            eventually(
                lambda path=path: "deletionTimestamp" in gpu_cluster.admin.get(path)["metadata"]
            )
            assert "foregroundDeletion" in gpu_cluster.admin.get(path)["metadata"]["finalizers"]
    finally:
        os.kill(controllers, signal.SIGCONT)
    uid = run.object["metadata"]["uid"]

    def only_its_own():
        owners = [o["uid"] for j in run.children("jobs") for o in j["metadata"]["ownerReferences"]]
        return owners == [uid]

    eventually(only_its_own, what=lambda: run.status)
    (now,) = run.children("persistentvolumeclaims")
    assert (now["metadata"]["uid"] == claim["metadata"]["uid"]) == (retention == "Keep")
    run.finish("download")


def test_retention_delete_deletes_the_volume_with_the_resource(run, gpu_cluster):
    run.create(storage={"retention": "Delete"})
    run.running("download")
    run.delete()
    for kind in ("jobs", "pods", "persistentvolumeclaims"):
        eventually(
            lambda kind=kind: all("deletionTimestamp" in c["metadata"] for c in run.children(kind))
        )


def test_a_refused_child_sets_a_condition_which_clears(run, gpu_cluster):
    quota = set_quota(gpu_cluster, run.namespace, {"count/jobs.batch": "0"})
    run.create()
    eventually(lambda: run.condition("ChildrenApplied").get("status") == "False")
    message = run.condition("ChildrenApplied")["message"]
    assert "Job run-download-1" in message
    assert "exceeded quota" in message
    assert run.status["message"] == message
    gpu_cluster.admin.delete(quota)
    run.running("download")
    eventually(lambda: run.condition("ChildrenApplied").get("status") == "True")


def test_no_training_pod_exists_before_what_it_needs(run, gpu_cluster):
    """Nor with a PodGroup of another size, as an operator leaves it that is killed before the Job,
    if the number of nodes is then changed."""
    quota = set_quota(gpu_cluster, run.namespace, {"count/services": "0"})
    run.create()
    group = f"/apis/scheduling.k8s.io/v1beta1/namespaces/{run.namespace}/podgroups"
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "run", "controller": True}
    owner["uid"] = run.object["metadata"]["uid"]
    label = {"app.kubernetes.io/instance": "run"}
    metadata = {"name": "run-train-1", "labels": label, "ownerReferences": [owner]}
    spec = {"schedulingPolicy": {"gang": {"minCount": 5}}}
    gpu_cluster.admin.post(group, {"metadata": metadata, "spec": spec})
    for stage in STAGES[:4]:
        run.finish(stage)
    eventually(
        lambda: "Service run-train" in run.condition("ChildrenApplied").get("message", ""),
        what=lambda: run.status,
    )
    assert "exceeded quota" in run.condition("ChildrenApplied")["message"]
    assert "run-train-1" not in [job["metadata"]["name"] for job in run.children("jobs")]
    gpu_cluster.admin.delete(quota)
    assert len(run.running("train")) == 2
    now = gpu_cluster.admin.get(f"{group}/run-train-1")
    assert now["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    assert len(run.children("services")) == 1


def test_an_object_of_another_owner_is_never_changed(run, gpu_cluster):
    jobs = f"/apis/batch/v1/namespaces/{run.namespace}/jobs"
    container = {"name": "mine", "image": "mine"}
    theirs = gpu_cluster.admin.post(
        jobs,
        {
            "metadata": {"name": "run-download-1"},
            "spec": {
                "suspend": True,
                "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            },
        },
    )
    run.create()
    eventually(lambda: run.condition("ChildrenApplied").get("status") == "False")
    assert "not this resource's" in run.condition("ChildrenApplied")["message"]
    now = gpu_cluster.admin.get(f"{jobs}/run-download-1")
    assert now["spec"] == theirs["spec"]
    assert now["metadata"].get("labels") == theirs["metadata"].get("labels")
    assert "ownerReferences" not in now["metadata"]
    gpu_cluster.admin.delete(f"{jobs}/run-download-1", {"propagationPolicy": "Background"})
    run.running("download")


def test_time_to_live_and_cleanup(run, gpu_cluster):
    run.create(ttlSecondsAfterFinished=4, cleanupPolicy="All")
    for stage in STAGES:
        run.finish(stage)
    run.reaches(phase="Succeeded")
    eventually(lambda: run.children("jobs") == [], 20)
    eventually(lambda: not exists(gpu_cluster.admin, f"{run.path}/run"), 20)


def test_progress_is_read_from_the_log(run, gpu_cluster):
    run.create()
    lead = run.to_training()[0]
    gpu_cluster.write_pod_log(
        run.namespace,
        lead,
        "\n".join(
            [
                "Traceback of nothing",
                '{"event":"progress","stage":"train","iteration":40,"iterations":100,"loss":0.25,'
                '"seconds_per_iteration":2.0,"eta_seconds":120,"checkpoint":30}',
                '{"event":"checkpoint","stage":"train","iteration":40,"path":"checkpoints/x.pt"}',
            ]
        ),
    )
    eventually(
        lambda: run.status.get("progress", {}).get("iteration") == 40, what=lambda: run.status
    )
    status = run.status
    assert status["progress"]["text"] == "40/100"
    assert status["progress"]["eta"] == "2m00s"
    assert status["checkpoint"]["path"] == "checkpoints/x.pt"
    shown = gpu_cluster.kubectl("get", "v2w", "-n", run.namespace, "-o", "wide").stdout
    assert "40/100" in shown
    assert "0.25" in shown


def test_samples_are_made_alongside_training(run, gpu_cluster):
    def saved(*iterations):
        lines = [
            f'{{"event":"checkpoint","stage":"train","iteration":{i},"path":"x.pt"}}'
            for i in iterations
        ]
        gpu_cluster.write_pod_log(run.namespace, training[0], "\n".join(lines))

    def rows():
        return {r["iteration"]: (r["state"], r["done"]) for r in run.status.get("samples", [])}

    run.create(inference={"samples": [{"input": "a.mp4"}] * 3, "everyCheckpoint": True})
    training = run.to_training()
    saved(25)
    (sampler,) = run.running("samples", 25)
    assert run.condition("SamplesMade")["reason"] == "Sampling"
    reported = {
        "event": "samples",
        "stage": "samples",
        "checkpoint": "iter_000000025",
        "iteration": 25,
        "done": 2,
        "total": 3,
    }
    gpu_cluster.write_pod_log(run.namespace, sampler, json.dumps(reported))
    saved(50, 75)
    eventually(lambda: rows() == {25: ("Running", 2)}, what=rows)
    eventually(lambda: run.status["checkpoint"]["iteration"] == 75)
    for more in ((), ("--attempt", "25")):
        code, out, _ = v2w_in(gpu_cluster, run, "logs", "--stage", "samples", *more)
        assert (code, out.strip()) == (0, json.dumps(reported))
    gpu_cluster.finish_pod(run.namespace, sampler)
    (sampler,) = run.running("samples", 75)  # the newest; 50 was passed over
    eventually(lambda: rows() == {25: ("Succeeded", 3), 75: ("Running", 0)}, what=rows)
    assert [p["metadata"]["name"] for p in run.pods("train")] == training  # untouched
    run.finish("train")
    eventually(lambda: run.condition("Progressing").get("reason") == "WaitingForSamples")
    gpu_cluster.finish_pod(run.namespace, sampler, 2)
    run.finish("inference")
    status = run.reaches(phase="Succeeded")
    assert [r["state"] for r in status["samples"]] == ["Succeeded", "Failed"]
    code, out, _ = v2w_in(gpu_cluster, run)
    assert code == 0
    assert "iter_000000025 Succeeded   3/3 samples" in out


def v2w_in(cluster, run, *command):
    """``v2w COMMAND`` (``status``) of the resource."""
    words = command or ("status",)
    argv = [sys.executable, "-m", "video2world_operator.cli", words[0], "run", "-n", run.namespace]
    argv += words[1:]
    env = {**os.environ, "KUBECONFIG": str(cluster.write_kubeconfig(cluster.admin))}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_later_stages_that_a_worker_reports_as_done_are_skipped(run, gpu_cluster):
    run.create()
    (pod,) = run.running("download")
    eventually(lambda: run.stage("latents").get("inputsHash"))
    reported = [
        json.dumps(
            {
                "event": "skipped",
                "stage": s,
                "inputsHash": run.stage(s)["inputsHash"],
                "message": f"{s} noted",
            }
        )
        for s in ("dataset", "embeddings", "latents")
    ]
    gpu_cluster.write_pod_log(run.namespace, pod, "\n".join(reported))
    gpu_cluster.finish_pod(run.namespace, pod)
    run.running("train")
    assert run.stage("latents")["message"] == "done before on this volume; latents noted"
    states = {e["name"]: e["state"] for e in run.status["stages"]}
    assert states["dataset"] == states["embeddings"] == states["latents"] == "Skipped"
    assert {j["metadata"]["name"] for j in run.children("jobs")} == {
        "run-download-1",
        "run-train-1",
    }


HANGS = {
    "metadata": {"annotations": {"fake.video2world.dev/hangs": "true"}},
    "spec": {"terminationGracePeriodSeconds": 1},
}


def test_a_pod_stuck_on_its_node_is_force_deleted(run, gpu_cluster):
    run.create(stages={"train": {"podTemplate": HANGS}})
    first, _second = run.to_training()
    gpu_cluster.finish_pod(run.namespace, first, 1)
    run.running("train", 2)
    status = run.reaches(attempt=2)
    assert status.get("chargedRestarts", 0) == 0  # a node that does not answer costs nothing
    events = gpu_cluster.admin.get(f"/api/v1/namespaces/{run.namespace}/events")["items"]
    assert "PodForceDeleted" in {e["reason"] for e in events}


def test_a_stage_whose_only_pod_is_stuck_on_its_node_continues(run, gpu_cluster):
    """Its Job alone would wait forever for the pod, whose finalizer the Job itself holds."""
    run.create(stages={"download": {"podTemplate": HANGS}})
    (pod,) = run.running("download")
    gpu_cluster.kubectl("delete", "pod", pod, "-n", run.namespace, "--wait=false")
    run.running("download", 2)
    status = run.reaches(restarts=1)
    assert status.get("chargedRestarts", 0) == 0
    assert "node-" in run.stage("download")["message"]


@pytest.mark.parametrize("away", [False, True])
def test_stuck_pods_of_a_deleted_resource_are_force_deleted(run, gpu_cluster, operator, away):
    run.create(stages={"train": {"podTemplate": HANGS}})
    first, second = run.to_training()
    if away:
        operator.kill()
    run.delete()
    if away:
        eventually(lambda: all("deletionTimestamp" in p["metadata"] for p in run.children("pods")))
        time.sleep(3)  # grace and bound are over
        assert {p["metadata"]["name"] for p in run.children("pods")} == {first, second}
        operator.start()
    eventually(lambda: run.children("pods") == [])


def test_killing_the_operator_at_any_stage_changes_nothing(run, gpu_cluster, operator):
    run.create()
    for stage in STAGES:
        run.running(stage)
        operator.kill()
        run.finish(stage)
        operator.start()
    status = run.reaches(phase="Succeeded")
    assert [(e["state"], e["attempt"]) for e in status["stages"]] == [("Succeeded", 1)] * 6
    assert status["restarts"] == 0


def test_events_while_the_operator_was_down_are_noticed(run, gpu_cluster, operator):
    run.create()
    pods = run.to_training()
    operator.kill()
    gpu_cluster.finish_pod(run.namespace, pods[0], 1)
    eventually(lambda: not run.pods("train"))
    operator.start()
    run.running("train", 2)
    assert run.reaches(attempt=2)["attempts"][0]["reason"] == "Crashed"


@pytest.fixture
def extra_nodes(gpu_cluster):
    """Nodes that a test adds by name; they go with it, as others count on four."""
    added = []

    def add(name, **labels):
        gpu_cluster.add_node(name, labels=labels)
        added.append(name)

    yield add
    for name in added:
        gpu_cluster.admin.delete(f"/api/v1/nodes/{name}")


def test_a_lost_node_is_not_counted_as_a_restart(run, gpu_cluster, extra_nodes):
    extra_nodes("doomed", mine=run.namespace)
    patch = {"spec": {"terminationGracePeriodSeconds": 1}}
    run.create(
        training={"nodes": 1},
        stages={"train": {"podTemplate": patch, "nodeSelector": {"mine": run.namespace}}},
    )
    for stage in ("download", "dataset", "embeddings", "latents"):
        run.finish(stage)
    eventually(lambda: run.pods("train"))
    gpu_cluster.lose_node("doomed")
    extra_nodes("spare", mine=run.namespace)
    status = run.reaches(150, attempt=2)
    assert status["attempts"][0]["reason"] == "NodeLost"
    assert status.get("chargedRestarts", 0) == 0
    eventually(lambda: run.pods("train", 2))


def test_the_training_gang_starts_completely_or_not_at_all(run, gpu_cluster, extra_nodes):
    """Five nodes of eight GPUs are requested and four exist: no pod may hold any meanwhile."""
    run.create(
        model={"size": "2B"},
        training={"nodes": 5, "gpusPerNode": 8, "contextParallelSize": 2},
        stages={
            s: {"resources": {"limits": {"nvidia.com/gpu": 0}}}
            for s in ("embeddings", "latents", "inference")
        },
    )
    for stage in ("download", "dataset", "embeddings", "latents"):
        run.finish(stage)
    eventually(lambda: len(run.pods("train", phase="Pending")) == 5)
    eventually(lambda: run.condition("GangScheduled")["status"] == "True", what=lambda: run.status)
    assert run.condition("GangScheduled")["reason"] == "Native"
    eventually(
        lambda: run.condition("PodsStarted").get("reason") == "Unschedulable",
        what=lambda: run.status,
    )
    assert run.pods("train") == []
    extra_nodes("fifth")
    eventually(lambda: len(run.pods("train")) == 5)
    run.delete()
    eventually(lambda: not run.children("pods"))


def test_two_resources_on_one_pvc_do_the_same_work_once(run, gpu_cluster):
    claims = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    gpu_cluster.admin.post(claims, {"metadata": {"name": "shared"}, "spec": spec})
    run.create(storage={"claimName": "shared", "subPath": "team"})
    run.running("download")
    time.sleep(1)  # creation times have seconds
    second = Resource(gpu_cluster, run.namespace, "second")
    second.create(storage={"claimName": "shared", "subPath": "team"})
    eventually(lambda: second.condition("Progressing").get("reason") == "Waiting")
    assert "run" in second.status["message"]
    assert second.children("jobs") == []
    run.finish("download")
    second.running("download")  # whose worker will find it done


def test_an_existing_pvc_that_cannot_be_shared_is_refused_before_anything_starts(run, gpu_cluster):
    claims = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims"
    run.create(storage={"claimName": "mine"})
    eventually(lambda: run.condition("VolumeReady").get("reason") == "ClaimMissing")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    gpu_cluster.admin.post(claims, {"metadata": {"name": "mine"}, "spec": spec})
    eventually(lambda: run.condition("VolumeReady").get("reason") == "ClaimNotShared")
    assert "ReadWriteMany" in run.status["message"]
    assert run.children("jobs") == []


def test_every_pod_passes_the_restricted_profile(run, gpu_cluster):
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    gpu_cluster.admin.patch(f"/api/v1/namespaces/{run.namespace}", {"metadata": {"labels": label}})
    run.create()
    for stage in STAGES:
        run.finish(stage)
    run.reaches(phase="Succeeded")


def test_only_the_training_job_has_the_queue_label(run, gpu_cluster):
    run.create(scheduling={"queueName": "team"})
    run.to_training()
    label = "kueue.x-k8s.io/queue-name"
    queued = [
        j["metadata"]["name"] for j in run.children("jobs") if label in j["metadata"]["labels"]
    ]
    assert queued == ["run-train-1"]
    assert not [p for p in run.children("pods") if label in p["metadata"]["labels"]]


def test_v2w_and_kubectl_v2w_against_the_cluster(run, gpu_cluster, tmp_path):
    kubeconfig = gpu_cluster.write_kubeconfig(gpu_cluster.admin, run.namespace)
    bin_folder = Path(sys.executable).parent
    paths = f"{bin_folder}:{gpu_cluster.binaries['kubectl'].parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "PATH": paths}

    def v2w(*arguments):
        done = subprocess.run(
            arguments,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    code, _, error = v2w("v2w", "status", "run")
    assert (code, "no resource of this name" in error) == (2, True)
    run.create()
    lead = run.to_training()[0]
    line = '{"event":"progress","stage":"train","iteration":7,"iterations":100,"loss":0.5}'
    gpu_cluster.write_pod_log(run.namespace, lead, f"hello from rank 0\n{line}")
    eventually(lambda: run.status.get("progress"))
    code, shown, _ = v2w("kubectl", "v2w", "status", "run")
    assert code == 0
    assert "run: Running  Stage train is running (attempt 1)." in shown
    assert "7/100  loss 0.5000" in shown
    assert "hello from rank 0" in v2w("v2w", "logs", "run", "--stage", "train")[1]
    code, _, error = v2w("v2w", "logs", "run", "--rank", "9")
    assert (code, "rank 9" in error) == (2, True)
    assert v2w("v2w", "suspend", "run")[:2] == (
        0,
        "run: suspending: saving a checkpoint, then releasing GPUs\n",
    )
    run.reaches(phase="Suspended")
    assert v2w("v2w", "suspend", "run")[1] == "run: already suspended\n"
    assert v2w("v2w", "resume", "run")[1] == "run: resuming\n"
    run.running("train", 2)
    assert "no checkpoint yet" in v2w("v2w", "checkpoints", "run")[1]
    assert "attempt 1: Suspended" in v2w("v2w", "status", "run")[1]


def test_deleting_the_pvc_of_a_run_makes_all_stages_run_again(run, gpu_cluster):
    run.create()
    run.finish("download")
    run.running("dataset")
    path = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims/run-data"
    first = gpu_cluster.admin.get(path)["metadata"]["uid"]
    gpu_cluster.admin.delete(path)
    run.finish("dataset")
    run.reaches(stage="embeddings")
    eventually(
        lambda: run.condition("VolumeReady").get("reason") == "ClaimDeleted",
        what=lambda: run.status,
    )
    assert "Claim run-data is being deleted, and its data too" in run.status["message"]
    assert "then delete the finished Jobs" in run.status["message"]
    assert [j["metadata"]["name"] for j in run.children("jobs")] == [
        "run-dataset-1",
        "run-download-1",
    ]
    asked = f"/apis/batch/v1/namespaces/{run.namespace}/jobs"
    for job in ("run-download-1", "run-dataset-1"):
        gpu_cluster.admin.delete(f"{asked}/{job}?propagationPolicy=Background")
    run.running("download", 2)
    assert gpu_cluster.admin.get(path)["metadata"]["uid"] != first
    assert run.condition("ContentKept")["reason"] == "ContentLost"
    assert "claim run-data was deleted" in run.status["message"]
    events = gpu_cluster.admin.get(f"/api/v1/namespaces/{run.namespace}/events")["items"]
    assert [e["reason"] for e in events if e["involvedObject"]["kind"] == KIND] == ["ContentLost"]
    for stage, attempt in zip(STAGES, (2, 2, 1, 1, 1, 1), strict=True):
        run.finish(stage, attempt)
    run.reaches(phase="Succeeded")
    assert run.condition("ContentKept")["status"] == "True"


def test_a_user_s_pvc_that_is_deleted_and_created_again(run, gpu_cluster):
    claims = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims"
    asked = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": "mine"}, "spec": asked}
    gpu_cluster.admin.post(claims, claim)
    run.create(storage={"claimName": "mine", "size": None})
    run.running("download")
    gpu_cluster.admin.delete(f"{claims}/mine")
    run.finish("download")
    run.reaches(stage="dataset")
    eventually(lambda: run.condition("VolumeReady").get("reason") == "ClaimDeleted")
    job = f"/apis/batch/v1/namespaces/{run.namespace}/jobs/run-download-1"
    gpu_cluster.admin.delete(f"{job}?propagationPolicy=Background")
    eventually(
        lambda: run.condition("VolumeReady").get("reason") == "ClaimMissing",
        seconds=PVC_SECONDS + 30,
        what=lambda: run.status,
    )
    assert run.children("persistentvolumeclaims") == []  # nothing empty is put in its place
    gpu_cluster.admin.post(claims, claim)
    run.running("dataset")


def test_an_image_that_is_corrected_before_any_pod_has_started(run, gpu_cluster):
    run.create(stages={"download": {"nodeSelector": {"no": "such"}}})
    eventually(lambda: run.pods("download", phase="Pending"), what=lambda: run.status)
    run.patch(stages={"download": {"nodeSelector": None}}, images={"preprocess": "mine:2"})
    run.running("download", 2)
    (pod,) = run.pods("download", 2)
    assert pod["spec"]["containers"][0]["image"] == "mine:2"
    assert run.status.get("chargedRestarts", 0) == 0
