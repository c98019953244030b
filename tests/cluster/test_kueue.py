"""The operator beside a real Kueue: waiting, admission, preemption, eviction, and what blocks."""

from __future__ import annotations

import json
import re

import pytest

from control_plane import Cluster
from control_plane.fake_nodes import HANGS
from control_plane.kueue import Kueue
from operators import Operator, Resource, eventually, grant
from repository import ROOT
from video2world_operator.cli.main import main

CRD = ROOT / "manifests" / "crd.yaml"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
EARLIER = ("download", "dataset", "embeddings", "latents")


def start(version, tmp_path_factory):
    """Yield a cluster of six 8-GPU nodes, its Kueue, and the operator with its own rights."""
    with Cluster(nodes=6) as cluster:
        cluster.install_definition(CRD)
        for name, value in (("low", 10), ("high", 1000)):
            body = {"metadata": {"name": name}, "value": value}
            cluster.admin.post("/apis/scheduling.k8s.io/v1/priorityclasses", body)
        with Kueue(cluster, version) as kueue:
            kubeconfig = cluster.write_kubeconfig(grant(cluster, "video2world-system"))
            log = tmp_path_factory.mktemp("operator") / "log"
            flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
            flags += ("--elastic-after-seconds", "4")
            with Operator(kubeconfig, *flags, log=log) as operator:
                yield kueue, operator


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    yield from start("newest", tmp_path_factory)


@pytest.fixture(scope="module")
def previous(tmp_path_factory):
    yield from start("previous", tmp_path_factory)


def namespace_like(kueue, name):
    """Create a namespace with volumes for three resources, and return it."""
    kueue.cluster.add_volumes(3)
    kueue.cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
    path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    kueue.cluster.components.wait(path, lambda: kueue.cluster.admin.get(path))
    return name


def namespace_of(kueue, request):
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return namespace_like(kueue, name[5:35].strip("-"))


@pytest.fixture
def kueue(newest, request):
    """The newest Kueue, and a namespace; all namespaces of the test are deleted."""
    found, operator = newest
    namespace = namespace_of(found, request)
    yield found, namespace
    assert not operator.crashed, operator.tail()
    if "kueue" not in found.cluster.processes:
        found.start()
    for one in found.cluster.admin.get("/api/v1/namespaces")["items"]:
        if one["metadata"]["name"].startswith(namespace):
            found.cluster.admin.delete(f"/api/v1/namespaces/{one['metadata']['name']}")


def trains(kueue, namespace, name="run", queue="gpus", priority="", **training):
    """Create a run of two nodes with eight GPUs each in this queue, and bring it to training."""
    scheduling = {"queueName": queue} | ({"priorityClassName": priority} if priority else {})
    run = Resource(kueue.cluster, namespace, name)
    training = {"nodes": 2, "iterations": 100, "gpusPerNode": 8, "device": "GPU"} | training
    run.create(scheduling=scheduling, training=training)
    for stage in EARLIER:
        run.finish(stage)
    run.reaches(stage="train")
    return run


def waits(run, *texts, reason="Queued"):
    """Wait until the run reports that it waits in its queue, and why; return the message."""

    def said():
        condition = run.condition("PodsStarted")
        message = condition.get("message", "")
        return condition.get("reason") == reason and all(t in message for t in texts) and message

    message = eventually(said, what=lambda: run.condition("PodsStarted"))
    assert run.status["message"] == message
    return message


def explained(run, tmp_path, monkeypatch, capsys):
    """Return what ``v2w explain`` prints."""
    kubeconfig = run.cluster.write_kubeconfig(run.cluster.admin, run.namespace)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    main(["explain", run.name])
    return capsys.readouterr().out


def written(run, tmp_path):
    """Write the run's resource to a file, and return its path."""
    path = tmp_path / "run.yaml"
    body = run.object
    path.write_text(
        json.dumps(
            {key: body[key] for key in ("apiVersion", "kind", "spec")}
            | {"metadata": {"name": run.name}}
        )
    )
    return path


def finish_rest(run):
    """End the stages after training."""
    run.finish("inference")
    run.reaches(phase="Succeeded")


def test_a_run_waits_for_quota_is_admitted_and_frees_it(kueue):
    """Every GPU stage waits for quota, and no other: Tiny on CPUs queues only to train."""
    kueue, namespace = kueue
    kueue.add_queue(namespace, gpus=17)
    first = trains(kueue, namespace)
    first.running("train")
    second = trains(kueue, namespace, "second")
    waits(second, "waits in queue gpus", "insufficient unused quota for nvidia.com/gpu")
    assert second.children("pods") == [] or not second.pods("train")
    first.finish("train")
    second.running("train")
    assert second.status["restarts"] == 0
    assert second.condition("GangScheduled")["reason"] == "Kueue"
    assert second.condition("GangScheduled")["status"] == "True"
    labelled = {
        job["metadata"]["labels"]["video2world.dev/stage"]: QUEUE_LABEL in job["metadata"]["labels"]
        for job in second.children("jobs")
    }
    assert labelled == {
        "download": False,
        "dataset": False,
        "embeddings": True,
        "latents": True,
        "train": True,
    }
    second.finish("train")
    finish_rest(first)
    finish_rest(second)
    finished = [
        {c["type"]: c["status"] for c in one["status"]["conditions"]}["Finished"]
        for one in kueue.workloads(namespace)
    ]
    assert finished == ["True"] * 8


def preempted(kueue, namespace):
    """Let a high-priority run preempt one that saves its checkpoint, and let that one resume."""
    kueue.add_queue(namespace, gpus=17, preemption={"withinClusterQueue": "LowerPriority"})
    low = trains(kueue, namespace, "low", priority="low")
    lead = low.running("train")[0]
    line = '{"event":"progress","stage":"train","iteration":40,"iterations":100,"loss":0.5}'
    kueue.cluster.write_pod_log(namespace, lead, line)
    eventually(lambda: low.status.get("progress", {}).get("iteration") == 40)
    for pod in low.pods("train"):  # saving takes its time
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
        kueue.cluster.admin.patch(path, {"metadata": {"annotations": {HANGS: "true"}}})
    high = trains(kueue, namespace, "high", priority="high")
    high.running("train")
    waits(low, "insufficient unused quota", "evicted: Preempted to accommodate")
    saving = [p for p in low.children("pods") if "-train-" in p["metadata"]["name"]]
    assert [p["metadata"]["deletionGracePeriodSeconds"] for p in saving] == [60, 60]
    for pod in saving:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
        kueue.cluster.admin.patch(path, {"metadata": {"annotations": {HANGS: None}}})
    eventually(lambda: not [p for p in low.children("pods") if "-train-" in p["metadata"]["name"]])
    high.finish("train")
    low.running("train")
    status = low.status
    assert (status["restarts"], status.get("chargedRestarts", 0), status["attempt"]) == (0, 0, 1)
    first, second = status["attempts"]
    assert (first["reason"], first["charged"], first["endIteration"]) == ("Preempted", False, 40)
    assert "endTime" not in second
    low.finish("train")
    finish_rest(low)


def test_a_higher_priority_preempts_and_the_run_resumes(kueue):
    preempted(*kueue)


def test_a_cohort_lends_quota_and_takes_it_back(kueue):
    """A run borrows from another namespace's queue, until a run there needs its own."""
    kueue, namespace = kueue
    reclaim = {"reclaimWithinCohort": "Any"}
    kueue.add_queue(namespace, gpus=1, cohort=namespace)
    borrower = trains(kueue, namespace)
    waits(borrower, "maximum capacity")  # nothing to borrow yet
    other = namespace_like(kueue, f"{namespace}-other")
    kueue.add_queue(other, gpus=17, cohort=namespace, preemption=reclaim)
    borrower.running("train")
    owner = trains(kueue, other)
    owner.running("train")
    waits(borrower, "due to reclamation within the cohort")
    assert borrower.status["restarts"] == 0
    owner.finish("train")
    borrower.running("train")
    assert [a.get("reason") for a in borrower.status["attempts"]] == ["Preempted", None]


def test_a_lost_node_evicts_the_run_which_queues_again(kueue):
    """Its next attempt takes the place of the lost one: the quota of a failed Job is free."""
    kueue, namespace = kueue
    kueue.add_queue(namespace, gpus=17)
    run = trains(kueue, namespace)
    run.running("train")
    node = run.pods("train")[0]["spec"]["nodeName"]
    taint = {"key": "node.kubernetes.io/broken", "effect": "NoExecute"}
    path = f"/api/v1/nodes/{node}"
    kueue.cluster.admin.patch(path, {"spec": {"taints": [taint]}})
    try:
        run.running("train", 2)
    finally:
        kueue.cluster.admin.patch(path, {"spec": {"taints": None}})
    status = run.reaches(restarts=1)
    assert status["attempts"][0]["reason"] == "NodeLost"
    assert status.get("chargedRestarts", 0) == 0
    run.finish("train", 2)
    finish_rest(run)


def test_a_missing_queue_is_named_and_can_be_corrected(kueue, tmp_path, monkeypatch, capsys):
    kueue, namespace = kueue
    run = Resource(kueue.cluster, namespace).create(scheduling={"queueName": "typo"})
    eventually(lambda: run.condition("PreflightPassed").get("status") == "False")
    assert "typo is not in this namespace" in run.condition("PreflightPassed")["message"]
    for stage in EARLIER:  # on CPUs, so that they need no queue
        run.finish(stage)
    assert "queueName" in waits(run, "LocalQueue typo doesn't exist")
    said = explained(run, tmp_path, monkeypatch, capsys)
    assert "The Kueue queue in spec.scheduling.queueName does not exist" in said
    assert f"kubectl get localqueues -n {namespace}" in said
    kueue.add_queue(namespace, gpus=0)
    run.patch(suspend=True)
    run.reaches(phase="Suspended")
    run.patch(suspend=False, scheduling={"queueName": "gpus"})
    run.finish("train", 2)
    finish_rest(run)
    assert run.status.get("chargedRestarts", 0) == 0


def test_a_stopped_queue_is_named_and_drained(kueue, tmp_path, monkeypatch, capsys):
    kueue, namespace = kueue
    queue = kueue.add_queue(namespace, gpus=17)
    run = trains(kueue, namespace)
    run.running("train")
    kueue.set_stop_policy(queue, "HoldAndDrain")
    waits(run, queue)
    eventually(lambda: not run.pods("train"))
    assert "spec.stopPolicy" in explained(run, tmp_path, monkeypatch, capsys)
    kueue.set_stop_policy(queue, "Hold")
    main(["preflight", "-f", str(written(run, tmp_path)), "--cluster"])
    assert "gpus admits nothing" in capsys.readouterr().out
    kueue.set_stop_policy(queue, "None")
    run.running("train")
    first, second = run.status["attempts"]
    assert (first["reason"], first["number"], second["number"]) == ("Evicted", 1, 1)
    assert run.status["restarts"] == 0


def test_a_flavor_that_fits_no_node_is_named(kueue, tmp_path, monkeypatch, capsys):
    kueue, namespace = kueue
    queue = kueue.add_queue(namespace, gpus=8, flavor_labels={"gpu": "none-has-it"})
    stages = {
        s: {"resources": {"limits": {"nvidia.com/gpu": 0}}} for s in ("embeddings", "latents")
    }
    run = Resource(kueue.cluster, namespace).create(
        scheduling={"queueName": "gpus"},
        training={"nodes": 2, "gpusPerNode": 8, "device": "GPU"},
        stages=stages,
    )
    run.finish("download")
    run.finish("dataset")
    waits(run, f"Kueue assigned flavor {queue}", reason="Unschedulable")
    said = explained(run, tmp_path, monkeypatch, capsys)
    assert f"No node has the labels of flavor {queue}" in said


def test_kueue_may_be_killed(kueue, tmp_path, monkeypatch, capsys):
    """No Job can be created meanwhile, and running pods continue."""
    kueue, namespace = kueue
    kueue.add_queue(namespace, gpus=34)
    first = trains(kueue, namespace)
    first.running("train")
    second = Resource(kueue.cluster, namespace, "second").create(scheduling={"queueName": "gpus"})
    second.running("download")
    kueue.stop()
    second.finish("download")
    eventually(lambda: second.condition("ChildrenApplied").get("status") == "False")
    said = explained(second, tmp_path, monkeypatch, capsys)
    assert "The cluster's admission webhook mjob.kb.io does not answer" in said
    assert len(first.pods("train")) == 2
    kueue.start()
    second.running("dataset")
    first.finish("train")
    finish_rest(first)
    assert first.status["restarts"] == second.status["restarts"] == 0


@pytest.mark.slow
def test_the_previous_version(previous, request):
    """Waits, is preempted, resumes; a missing queue is named."""
    kueue, operator = previous
    namespace = namespace_of(kueue, request)
    preempted(kueue, namespace)
    lost = Resource(kueue.cluster, namespace, "lost").create(scheduling={"queueName": "missing"})
    eventually(lambda: lost.condition("PreflightPassed").get("status") == "False")
    assert "missing is not in this namespace" in lost.condition("PreflightPassed")["message"]
    assert not operator.crashed, operator.tail()


def test_an_elastic_group_takes_the_quota_there_is_and_grows_with_it(kueue):
    """A smaller Job is admitted; more quota, and the next checkpoint, bring the larger one."""
    kueue, namespace = kueue
    queue = kueue.add_queue(namespace, gpus=17)
    run = trains(kueue, namespace, nodes=4, minNodes=1)
    small = eventually(
        lambda: len(pods := run.pods("train", 2)) == 2 and pods, what=lambda: run.status
    )
    records = run.status["attempts"]
    assert [(r["nodes"], r.get("reason")) for r in records] == [(4, "GroupShrunk"), (2, None)]
    assert run.status["groupSize"]["message"] == "2 of 4 nodes could be had for 4 s"
    kueue.set_quota(queue, 32)
    iteration = 0

    def saves_until_it_grows():
        nonlocal iteration
        iteration += 10
        event = {"event": "checkpoint", "stage": "train", "iteration": iteration}
        text = json.dumps(event | {"path": f"iter_{iteration}.pt"}) + "\n"
        kueue.cluster.write_pod_log(namespace, small[0]["metadata"]["name"], text)
        return run.status["groupSize"]["running"] == 4

    eventually(saves_until_it_grows, what=lambda: run.status)
    eventually(lambda: len(run.pods("train", 3)) == 4, what=lambda: run.status)
    assert run.status.get("chargedRestarts", 0) == 0
