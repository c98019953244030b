"""Evictions on the real API server: their cost is announced, and what saved loses nothing."""

import asyncio
import json

import pytest

from operators import Operator, Resource, connection, eventually, grant
from video2world_common.checkpoint_interval import seconds_between_failures
from video2world_operator.kube import client
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.labels import EVICTION_COST_ANNOTATION, HASH_ANNOTATION

GPUS = 16
WHY = "saves cost 0.74 s, a failure every 131d23h expected (the longest, 1h00m)"


@pytest.fixture
def account(gpu_cluster):
    """The operator's account, with the rights of manifests/rbac.yaml."""
    return grant(gpu_cluster, "video2world-system")


@pytest.fixture
def run(gpu_cluster, gpu_namespace, account, tmp_path):
    """A 2B run in training on two nodes of eight GPUs."""
    kubeconfig = gpu_cluster.write_kubeconfig(account)
    flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
    with Operator(kubeconfig, *flags, log=tmp_path / "log"):
        run = Resource(gpu_cluster, gpu_namespace)
        training = {"checkpoint": {"everyIterations": "Auto"}, "iterations": 10_000}
        run.create(model={"size": "2B"}, training=training)
        run.to_training()
        yield run


def expected(run, attempt):
    """The seconds between failures that the trainer of an attempt expects."""
    jobs = {job["metadata"]["name"]: job for job in run.children("jobs")}
    container = jobs[f"run-train-{attempt}"]["spec"]["template"]["spec"]["containers"][0]
    values = {one["name"]: one.get("value") for one in container["env"]}
    return values["V2W_SECONDS_BETWEEN_FAILURES"]


def annotate(run, account, uid, value):
    """Annotate the first train Job as the operator does."""

    async def call():
        async with ApiClient(connection(account)) as api:
            values = {EVICTION_COST_ANNOTATION: value}
            path = path_of("batch/v1", "Job", run.namespace, "run-train-1")
            await client.annotate(api, path, uid, values)

    asyncio.run(call())


def train_job(run):
    (job,) = (one for one in run.children("jobs") if one["metadata"]["name"] == "run-train-1")
    return job["metadata"]


def test_the_cost_is_announced_and_an_eviction_that_saved_is_no_failure(run, gpu_cluster, account):
    names = run.running("train")
    before = expected(run, 1)
    assert before == f"{seconds_between_failures(GPUS):.0f}"
    annotate(run, account, train_job(run)["uid"], "3600")
    with pytest.raises(ApiError) as refused:
        annotate(run, account, "another", "7200")
    assert refused.value.code == 422
    assert HASH_ANNOTATION in train_job(run)["annotations"]
    # the operator corrects it: less than an hour of one GPU is announced as 0
    eventually(lambda: train_job(run)["annotations"][EVICTION_COST_ANNOTATION] == "0")

    progress = {
        "event": "progress",
        "stage": "train",
        "iteration": 400,
        "iterations": 10_000,
        "seconds_per_iteration": 10.1,
        "checkpoint_interval": 356,
        "checkpoint_interval_reason": WHY,
    }
    saved = {"event": "checkpoint", "stage": "train", "iteration": 400, "path": "a/model.pt"}
    gpu_cluster.write_pod_log(run.namespace, names[0], json.dumps(progress))
    shown = eventually(lambda: run.status.get("progress"))
    assert (shown["checkpointInterval"], shown["checkpointIntervalReason"]) == (356, WHY)
    cost = eventually(lambda: run.status.get("evictionCost"))
    assert cost["gpus"] == GPUS

    lines = f"{json.dumps(progress)}\n{json.dumps(saved)}"
    gpu_cluster.write_pod_log(run.namespace, names[0], lines)
    time = eventually(lambda: run.status.get("checkpoint"))["time"]
    eventually(lambda: run.status["evictionCost"]["since"] == time)

    pod = f"/api/v1/namespaces/{run.namespace}/pods/{names[1]}"
    metadata = {"name": names[1], "namespace": run.namespace}
    gpu_cluster.admin.post(f"{pod}/eviction", {"metadata": metadata})
    run.running("train", 2)
    first = run.status["attempts"][0]
    assert (first["reason"], first["charged"], first["endIteration"]) == ("Evicted", False, 400)
    assert run.status["failures"]["count"] == 0
    assert run.status["failures"]["deviceSeconds"] > 0
    assert expected(run, 2) == before
