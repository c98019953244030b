"""Faults on a node: training goes on from its last checkpoint, or the status says what to do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from control_plane import ApiError
from control_plane.node import NAME
from on_node import NAMESPACE, OPERATOR, apply, demo
from operators import Resource, eventually, exists

EVERY = 25  # iterations between checkpoints
LENGTH = {"iterations": 150, "checkpoint": {"everyIterations": EVERY, "keep": 2}}
STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference", "evaluation"]


@pytest.fixture(scope="module")
def data(node, volume):
    """The folder of the claim that the demo's data lies on; runs the demo if nobody has."""
    demo_run = Resource(node, NAMESPACE, "demo")
    if not exists(node.admin, f"{demo_run.path}/demo"):
        volume("demo-data")
        apply(node, demo("demo", training={"iterations": 4}))
    demo_run.reaches(phase="Succeeded", seconds=600)
    return node.folder / "volumes" / "demo-data"


@pytest.fixture
def train(node, data):
    """``train(name)`` starts a run on the demo's data and waits until it is under way."""

    def start(name, iteration=10, **spec):
        spec = {"training": LENGTH, "storage": {"claimName": "demo-data"}} | spec
        run = apply(node, demo(name, **spec))
        eventually(lambda: reached(run) >= iteration, 200, lambda: shown(node, run))
        return run

    yield start
    for run in node.admin.get(Resource(node, NAMESPACE).path)["items"]:
        if run["metadata"]["name"] != "demo":
            Resource(node, NAMESPACE, run["metadata"]["name"]).delete()


def reached(run):
    return (run.status.get("progress") or {}).get("iteration", 0)


def shown(node, run):
    pods = node.kubectl("get", "pods", "-A", "-o", "wide").stdout
    events = node.kubectl("get", "events", "-n", NAMESPACE).stdout[-3000:]
    return f"{run.status}\n{pods}\n{events}"


def lost(run, record, fault):
    """Iterations done in the first attempt that the second did again."""
    first, second = run.status["attempts"][:2]
    again = max(0, first["endIteration"] - second["startIteration"])
    record.setdefault("iterations_lost", {})[fault] = again
    return again


def processes(**wanted):
    """Ids of the processes whose environment has these variables."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                pairs = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if all(f"{key}={value}".encode() in pairs for key, value in wanted.items()):
                found.append(int(entry.name))
    return found


def test_killed_in_the_middle_of_a_checkpoint(node, train, data, record):
    run = train("killed", iteration=EVERY + 1)
    folder = data / "checkpoints/posttraining/video2world/killed/checkpoints"
    rank = eventually(lambda: processes(V2W_RESOURCE="killed", V2W_STAGE="train", RANK="0"))
    until = time.monotonic() + 120
    while not list(folder.rglob(".partial-*")):
        assert time.monotonic() < until, shown(node, run)
        time.sleep(0.001)
    for pid in rank:
        os.kill(pid, signal.SIGKILL)
    status = run.reaches(phase="Succeeded", seconds=300)
    first = status["attempts"][0]
    assert (first["reason"], first["charged"]) == ("Crashed", True)
    assert "137" in first["message"] or "SIGKILL" in first["message"] or "-9" in first["message"]
    assert status["attempts"][1]["startIteration"] >= EVERY
    assert lost(run, record, "killed in a checkpoint") <= EVERY
    assert not list(folder.rglob(".partial-*"))


def test_a_pod_deleted(node, train, record):
    run = train("deleted")
    pod = run.pods("train")[1]["metadata"]["name"]
    node.kubectl("delete", "pod", "-n", NAMESPACE, pod, "--wait=false")
    status = run.reaches(phase="Succeeded", seconds=300)
    first = status["attempts"][0]
    assert (first["reason"], first["charged"]) == ("PodDeleted", False)
    assert lost(run, record, "pod deleted") == 0
    assert status.get("chargedRestarts", 0) == 0


def test_the_node_is_drained(node, train, record):
    run = train("drained")
    pods = "--pod-selector=video2world.dev/stage=train"
    node.kubectl("drain", NAME, pods, "--delete-emptydir-data", "--force", "--timeout=90s")
    waiting = eventually(
        lambda: (
            found
            if (found := run.condition("PodsStarted")).get("reason") == "Unschedulable"
            else None
        ),
        60,
        lambda: shown(node, run),
    )
    assert "unschedulable" in waiting["message"].lower()
    node.kubectl("uncordon", NAME)
    status = run.reaches(phase="Succeeded", seconds=300)
    first = status["attempts"][0]
    assert (first["reason"], first["charged"]) == ("Evicted", False)
    assert lost(run, record, "node drained") == 0


def exit_code(node, path):
    """Exit code of a pod's container, as text; empty while it runs."""
    try:
        pod = node.admin.get(path)
    except ApiError as error:
        if error.code != 404:
            raise
        return "gone"
    states = [c["state"] for c in pod["status"].get("containerStatuses", [])]
    return "".join(str(one["terminated"]["exitCode"]) for one in states if "terminated" in one)


def test_an_evicted_pod_saves_within_its_grace_period(node, train, data, record):
    """By the eviction API, as kubectl drain and others call it; with an automatic interval."""
    training = LENGTH | {"checkpoint": {"everyIterations": "Auto", "keep": 2}}
    run = train("evicted", training=training)
    victim = run.pods("train")[1]
    name, grace = victim["metadata"]["name"], victim["spec"]["terminationGracePeriodSeconds"]
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
    asked = time.monotonic()
    node.admin.post(f"{path}/eviction", {"metadata": {"name": name, "namespace": NAMESPACE}})
    code = eventually(lambda: exit_code(node, path), grace, lambda: shown(node, run))
    seconds = time.monotonic() - asked
    record["eviction"] = {"seconds_until_saved": round(seconds, 1), "grace_seconds": grace}
    assert code in ("143", "gone")
    assert seconds < grace
    status = run.reaches(phase="Succeeded", seconds=300)
    first, second = status["attempts"]
    assert (first["reason"], first["charged"]) == ("Evicted", False)
    assert second["startIteration"] == first["endIteration"] > 0
    assert lost(run, record, "evicted") == 0
    assert status.get("chargedRestarts", 0) == 0
    assert status["failures"]["count"] == 0  # nothing was lost
    assert status["progress"]["checkpointInterval"] >= 1
    assert "a failure every" in status["progress"]["checkpointIntervalReason"]


def test_out_of_memory(node, train, data):
    limits = {"resources": {"requests": {"memory": "150Mi"}, "limits": {"memory": "150Mi"}}}
    training = LENGTH | {"maxRestarts": 0}
    run = train("starved", iteration=0, stages={"train": limits}, training=training)
    status = run.reaches(phase="Failed", seconds=120)
    failed = run.condition("Failed")
    assert "spec.stages.train.resources.limits.memory" in failed["message"], status


def test_an_image_that_is_missing(node, train):
    run = train("imageless", iteration=0, images={"trainer": "ghcr.io/video2world/none:9"})
    waiting = eventually(
        lambda: (
            found
            if (found := run.condition("PodsStarted")).get("status") == "False"
            and "ghcr.io/video2world/none:9" in found["message"]
            else None
        ),
        90,
        lambda: shown(node, run),
    )
    assert "spec.images" in waiting["message"]


def test_a_secret_that_is_missing(node, train):
    secret = {"huggingFaceTokenSecret": {"name": "no-such-secret", "key": "token"}}
    other = demo("")["spec"]["dataset"]["agibot"] | {"camera": "hand_left_color"}  # not split yet
    run = train("tokenless", iteration=0, credentials=secret, dataset={"agibot": other})
    waiting = eventually(
        lambda: (
            found
            if (found := run.condition("PodsStarted")).get("status") == "False"
            and "no-such-secret" in found["message"]
            else None
        ),
        90,
        lambda: shown(node, run),
    )
    assert "Secret" in waiting["message"] or "secret" in waiting["message"]


def test_a_volume_that_is_full(node, volume):
    volume("full-data", mebibytes=16)
    run = apply(node, demo("full", training=LENGTH | {"maxRestarts": 0}))
    status = run.reaches(phase="Failed", seconds=300)
    message = run.condition("Failed")["message"]
    assert "spec.storage.size" in message, status
    run.delete()


def test_the_operator_is_killed_in_every_stage(node, volume):
    """Both operators go, without a grace period, as soon as a stage runs: nothing is made twice."""
    volume("orphan-data")
    training = {"iterations": 20, "clipsPerWindow": 1, "warmupIterations": 5}
    run = apply(node, demo("orphan", training=training))
    until = time.monotonic() + 400
    for stage in STAGES:
        while run.stage(stage).get("state") not in ("Running", "Succeeded"):
            assert time.monotonic() < until, shown(node, run)
            time.sleep(0.2)
        # not by signal: kubelet would wait longer and longer before it starts them again
        label = "app.kubernetes.io/name=video2world-operator"
        node.kubectl("delete", "pod", "-n", OPERATOR, "-l", label, "--force", "--grace-period=0")
    status = run.reaches(phase="Succeeded", seconds=300)
    outcomes = [(e["name"], e["state"], e["attempt"]) for e in status["stages"]]
    assert outcomes == [(stage, "Succeeded", 1) for stage in STAGES]
    jobs = sorted(job["metadata"]["name"] for job in run.children("jobs"))
    assert jobs == sorted(f"orphan-{stage}-1" for stage in STAGES)
    assert status["restarts"] == 0
    run.delete()
