"""Gangs by Volcano and coscheduling, where the cluster serves their PodGroups."""

from __future__ import annotations

import pytest

from control_plane import ApiError
from operators import Operator, Resource, eventually, grant

WAYS = {
    "Volcano": ("scheduling.volcano.sh", "v1beta1"),
    "Coscheduling": ("scheduling.x-k8s.io", "v1alpha1"),
}


def define(cluster, group, version):
    """PodGroup as that project's definition serves it; its schema is not needed here."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"podgroups.{group}",
            # groups under k8s.io ask for it; the project itself has it, too
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "PodGroup", "plural": "podgroups", "singular": "podgroup"},
            "versions": [{"name": version, "served": True, "storage": True,
                          "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    try:
        cluster.admin.post(path, body)
    except ApiError as error:
        if error.code != 409:
            raise
    eventually(lambda: _served(cluster, group, version))


def _served(cluster, group, version):
    try:
        return bool(cluster.admin.get(f"/apis/{group}/{version}/podgroups"))
    except ApiError:
        return False


@pytest.mark.parametrize("way", WAYS)
def test_the_group_is_made_and_the_pods_are_in_it(gpu_cluster, gpu_namespace, tmp_path, way):
    group, version = WAYS[way]
    define(gpu_cluster, group, version)
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    flags = ("--namespaces", gpu_namespace, "--own-namespace", gpu_namespace)
    with Operator(gpu_cluster.write_kubeconfig(api), *flags, log=tmp_path / "log"):
        run = Resource(gpu_cluster, gpu_namespace).create(scheduling={"gang": way})
        for stage in ("download", "dataset", "embeddings", "latents"):
            run.finish(stage)
        eventually(lambda: len(pods := run.children("pods")) and any(
            "-train-" in p["metadata"]["name"] for p in pods))  # fmt: skip
        assert run.condition("GangScheduled")["reason"] == way
    path = f"/apis/{group}/{version}/namespaces/{gpu_namespace}/podgroups/run-train-1"
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
