"""Gangs by Volcano and coscheduling, where the cluster serves their PodGroups; what is served."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from control_plane import ApiError
from operators import Operator, Resource, connection, eventually, exists, grant
from video2world_operator.api.validation import parse
from video2world_operator.cli.main import main
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.discovery import discover
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.cluster_facts import cluster_facts

SUPPORT = Path(__file__).parents[1] / "support"
WAYS = {
    "Volcano": ("scheduling.volcano.sh", "v1beta1"),
    "Coscheduling": ("scheduling.x-k8s.io", "v1alpha1"),
}


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def define(cluster, group, *versions, kind="PodGroup"):
    """A kind as a project's definition serves it; its schema is not needed here."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    plural = f"{kind.lower()}s"
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            # groups under k8s.io ask for it; the project itself has it, too
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": version == versions[0],
                    "schema": {"openAPIV3Schema": schema},
                }
                for version in versions
            ],
        },
    }
    try:
        cluster.admin.post(CRDS, body)
    except ApiError as error:
        if error.code != 409:
            raise
    eventually(lambda: _served(cluster, f"/apis/{group}/{versions[-1]}/{plural}"))


def _served(cluster, path):
    try:
        return bool(cluster.admin.get(path))
    except ApiError:
        return False


# What Kubernetes itself serves.
OF_KUBERNETES = {api: "v1" for api in OptionalApi if api.group == "resource.k8s.io"}
SERVED = {
    "nothing": ([], Capabilities()),
    "Kueue of today": (
        [("kueue.x-k8s.io", "LocalQueue", "v1beta2")],
        Capabilities({OptionalApi.LOCAL_QUEUE: "v1beta2"}),
    ),
    "Kueue of then": (
        [("kueue.x-k8s.io", "LocalQueue", "v1")],
        Capabilities({OptionalApi.LOCAL_QUEUE: "v1"}),
    ),
    "Kueue of before": (
        [("kueue.x-k8s.io", "LocalQueue", "v1beta1", "v1beta2")],
        Capabilities({OptionalApi.LOCAL_QUEUE: "v1beta2"}),
    ),
    "Kueue without queues": ([("kueue.x-k8s.io", "Cohort", "v1beta1")], Capabilities()),
    "Volcano": (
        [("scheduling.volcano.sh", "PodGroup", "v1beta1", "v2")],
        Capabilities({OptionalApi.VOLCANO_POD_GROUP: "v1beta1"}),
    ),
    "Volcano of then": (
        [("scheduling.volcano.sh", "PodGroup", "v2")],
        Capabilities({OptionalApi.VOLCANO_POD_GROUP: "v2"}),
    ),
    "Volcano without groups": ([("scheduling.volcano.sh", "Queue", "v1beta1")], Capabilities()),
    "coscheduling": (
        [("scheduling.x-k8s.io", "PodGroup", "v1alpha1")],
        Capabilities({OptionalApi.COSCHEDULING_POD_GROUP: "v1alpha1"}),
    ),
    "coscheduling of then": (
        [("scheduling.x-k8s.io", "PodGroup", "v1alpha2")],
        Capabilities({OptionalApi.COSCHEDULING_POD_GROUP: "v1alpha2"}),
    ),
    "two of them": (
        [
            ("scheduling.volcano.sh", "PodGroup", "v1beta1"),
            ("kueue.x-k8s.io", "LocalQueue", "v1beta1"),
        ],
        Capabilities(
            {OptionalApi.VOLCANO_POD_GROUP: "v1beta1", OptionalApi.LOCAL_QUEUE: "v1beta1"}
        ),
    ),
    "elastic quotas": ([("scheduling.x-k8s.io", "ElasticQuota", "v1alpha1")], Capabilities()),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_a_cluster_serves(cluster, namespace, name):
    """By version and resource: a group alone says nothing."""
    kinds, more = SERVED[name]
    expected = Capabilities({**OF_KUBERNETES, **more.versions})
    api = grant(cluster, namespace, [namespace])

    async def ask():
        async with ApiClient(connection(api)) as client:
            return await discover(client)

    try:
        for group, kind, *versions in kinds:
            define(cluster, group, *versions, kind=kind)
        eventually(lambda: asyncio.run(ask()) == expected, what=lambda: asyncio.run(ask()))
    finally:
        remove(cluster, kinds)


def remove(cluster, kinds):
    for group, kind, *_ in kinds:
        path = f"{CRDS}/{kind.lower()}s.{group}"
        if exists(cluster.admin, path):
            cluster.admin.delete(path)
        eventually(lambda path=path: not exists(cluster.admin, path))


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2", "v1"])
def test_preflight_lists_the_queues_in_the_version_that_is_served(cluster, namespace, version):
    kueue = [("kueue.x-k8s.io", "LocalQueue", version)]
    manifest = Resource.body(scheduling={"queueName": "team"})
    manifest["metadata"]["namespace"] = namespace
    plan = make_plan(parse(manifest))

    async def queues():
        async with ApiClient(connection(cluster.admin)) as client:
            return (await cluster_facts(client, namespace, plan, manifest)).queues

    assert asyncio.run(queues()) is None
    try:
        define(cluster, *kueue[0][:1], version, kind="LocalQueue")
        path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues"
        cluster.admin.post(
            path,
            {
                "apiVersion": f"kueue.x-k8s.io/{version}",
                "kind": "LocalQueue",
                "metadata": {"name": "team"},
            },
        )
        assert asyncio.run(queues()) == {"team": ""}
    finally:
        remove(cluster, kueue)


def test_an_api_installed_later_is_used_in_the_version_that_is_served(
    gpu_cluster, gpu_namespace, tmp_path
):
    """Here one that the operator has never been tested with."""
    group, path = "scheduling.x-k8s.io", f"namespaces/{gpu_namespace}/podgroups/run-train-1"
    remove(gpu_cluster, [(group, "PodGroup")])
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    flags = ("--namespaces", gpu_namespace, "--own-namespace", gpu_namespace)
    with Operator(
        gpu_cluster.write_kubeconfig(api),
        *flags,
        log=tmp_path / "log",
        module="impatient_operator",
        environment={"PYTHONPATH": os.fspath(SUPPORT)},
    ) as operator:
        run = Resource(gpu_cluster, gpu_namespace).create(scheduling={"gang": "Coscheduling"})
        try:
            define(gpu_cluster, group, "v1alpha2")
            for stage in ("download", "dataset", "embeddings", "latents"):
                run.finish(stage)
            made = f"/apis/{group}/v1alpha2/{path}"
            eventually(lambda: exists(gpu_cluster.admin, made), what=operator.tail)
            assert run.condition("GangScheduled")["reason"] == "Coscheduling"
            assert f"{group}/v1alpha2" in json.dumps(gpu_cluster.admin.get(made))
        finally:
            remove(gpu_cluster, [(group, "PodGroup")])


@pytest.mark.parametrize("way", WAYS)
def test_the_group_is_made_and_the_pods_are_in_it(
    gpu_cluster, gpu_namespace, tmp_path, monkeypatch, capsys, way
):
    group, version = WAYS[way]
    define(gpu_cluster, group, version)
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    flags = ("--namespaces", gpu_namespace, "--own-namespace", gpu_namespace)
    with Operator(gpu_cluster.write_kubeconfig(api), *flags, log=tmp_path / "log"):
        run = Resource(gpu_cluster, gpu_namespace).create(scheduling={"gang": way})
        for stage in ("download", "dataset", "embeddings", "latents"):
            run.finish(stage)
        eventually(
            lambda: (
                len(pods := run.children("pods"))
                and any("-train-" in p["metadata"]["name"] for p in pods)
            )
        )
        condition = run.condition("GangScheduled")
        assert (condition["status"], condition["reason"]) == ("Unknown", way)
        if way == "Volcano":  # of which there is nothing but the definition
            eventually(lambda: run.condition("GangScheduled")["status"] == "False")
            assert run.condition("GangScheduled")["reason"] == "SchedulerMissing"
            user = gpu_cluster.write_kubeconfig(gpu_cluster.admin, gpu_namespace)
            monkeypatch.setenv("KUBECONFIG", os.fspath(user))
            main(["explain", "run"])
            assert "No scheduler has acted on PodGroup run-train-1" in capsys.readouterr().out
        path = f"/apis/{group}/{version}/namespaces/{gpu_namespace}/podgroups/run-train-1"
        gpu_cluster.admin.patch(path, {"status": {"phase": "Pending"}})
        eventually(lambda: run.condition("GangScheduled")["status"] == "True")
    made = gpu_cluster.admin.get(path)
    assert made["spec"]["minMember"] == 2
    assert made["metadata"]["ownerReferences"][0]["uid"] == run.object["metadata"]["uid"]
    pods = [p for p in run.children("pods") if "-train-" in p["metadata"]["name"]]
    for pod in pods:
        if way == "Volcano":
            assert pod["spec"]["schedulerName"] == "volcano"
            assert pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "run-train-1"
        else:
            label = pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"]
            assert label == "run-train-1"
