"""Least privilege: the operator uses exactly the rights in manifests/rbac.yaml."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import yaml

from operators import Operator, Resource, apply, connection, eventually, exists, grant, set_quota
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.codegen.rbac import PATH
from video2world_operator.controller.rbac import (
    ACCOUNT,
    CLUSTER_WIDE,
    NAMESPACED,
    OWN_NAMESPACE,
    missing_rights,
    policy_rules,
)
from video2world_operator.kube.client import ApiClient
from video2world_operator.plan.labels import EVICTION_COST_ANNOTATION
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi

STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]
EVERY = [(n, v) for n, rule in enumerate(NAMESPACED) if rule.api is None for v in rule.verbs]


def lacking(api, own, namespaces):
    """Return what the check at the start finds missing."""

    served = Capabilities({OptionalApi.NATIVE_POD_GROUP: "v1beta1"})

    async def ask():
        async with ApiClient(connection(api)) as client:
            return await missing_rights(client, own, namespaces, served)

    return asyncio.run(ask())


def role(namespace, table):
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": ACCOUNT, "namespace": namespace},
        "rules": policy_rules(table),
    }


def test_the_manifest_has_the_rules_of_the_table():
    documents = list(yaml.safe_load_all(PATH.read_text()))
    (role_,) = [d for d in documents if d["kind"] == "ClusterRole"]
    assert role_["rules"] == policy_rules((*NAMESPACED, *CLUSTER_WIDE))
    assert not [r for r in role_["rules"] if "secrets" in r["resources"]]
    assert not [r for r in role_["rules"] if "*" in (*r["verbs"], *r["resources"])]


@pytest.mark.parametrize(("number", "verb"), EVERY, ids=lambda v: str(v))
def test_each_missing_right_is_named(cluster, namespace, number, verb):
    api = grant(cluster, namespace, [namespace])
    rule = NAMESPACED[number]
    without = replace(rule, verbs=tuple(v for v in rule.verbs if v != verb))
    table = [r for r in (*NAMESPACED[:number], without, *NAMESPACED[number + 1 :]) if r.verbs]
    apply(cluster.admin, role(namespace, table))
    expected = [f"{verb} {rule.resource} in {namespace}"]
    eventually(lambda: lacking(api, namespace, [namespace]) == expected, 20)


def test_with_all_rights_nothing_is_missing(cluster, namespace):
    api = grant(cluster, namespace, [namespace])
    eventually(lambda: lacking(api, namespace, [namespace]) == [], 20)


def test_a_missing_right_sets_a_condition_which_clears_once_it_is_granted(
    cluster, namespace, tmp_path
):
    api = grant(cluster, namespace, [namespace])
    poor = [r for r in NAMESPACED if r.resource != "pods/log"]
    apply(cluster.admin, role(namespace, poor))
    eventually(lambda: lacking(api, namespace, [namespace]), 20)
    run = Resource(cluster, namespace).create()
    flags = ("--namespaces", namespace, "--own-namespace", namespace)
    operator = Operator(cluster.write_kubeconfig(api), *flags, log=tmp_path / "log")
    try:
        operator.start("unauthorized")
        code, text = operator.probe("readyz")
        assert (code, "get pods/log" in text) == (503, True)
        eventually(lambda: run.condition("OperatorAuthorized").get("status") == "False")
        assert "get pods/log" in run.condition("OperatorAuthorized")["message"]
        assert run.children("jobs") == []
        apply(cluster.admin, role(namespace, NAMESPACED))
        eventually(lambda: run.condition("OperatorAuthorized").get("status") == "True", 60)
        eventually(lambda: run.children("jobs"))
    finally:
        operator.kill()


def test_roles_alone_are_enough_and_no_verb_is_unused(gpu_cluster, gpu_namespace, tmp_path):
    """One namespace, Roles only; in the audit log every verb is used, and nothing is refused."""
    namespace = gpu_namespace
    api = grant(gpu_cluster, namespace, [namespace])
    hangs = {"metadata": {"annotations": {"fake.video2world.dev/hangs": "true"}}}
    hangs["spec"] = {"terminationGracePeriodSeconds": 1}
    flags = ("--namespaces", namespace, "--own-namespace", namespace)
    flags += ("--termination-bound-seconds", "1", "--stuck-after-seconds", "1")
    log = tmp_path / "log"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}
    served = f"namespaces/{namespace}"
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    somebodys = f"/apis/batch/v1/{served}/jobs/run-download-1"
    left = {  # by another one of the name
        f"/api/v1/{served}/persistentvolumeclaims/run-data": wanted,
        f"/apis/scheduling.k8s.io/v1beta1/{served}/podgroups/run-train-1": {
            "schedulingPolicy": {"gang": {"minCount": 2}}
        },
        f"/api/v1/{served}/services/run-train": {"ports": [{"port": 80}]},
    }
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "run", "uid": "gone"}
    stale = {"ownerReferences": [owner | {"controller": True}], "finalizers": ["test.example/held"]}
    for path, spec in {somebodys: {"suspend": True, "template": template}, **left}.items():
        folder, _, name = path.rpartition("/")
        metadata = {"name": name} | ({} if path == somebodys else stale)
        gpu_cluster.admin.post(folder, {"metadata": metadata, "spec": spec})
    with Operator(gpu_cluster.write_kubeconfig(api), *flags, log=log) as operator:
        run = Resource(gpu_cluster, namespace).create(
            ttlSecondsAfterFinished=1,
            stages={"train": {"podTemplate": hangs}},
            scheduling={"gang": "Auto"},
        )

        def reported(path, whose):
            what = f"{path.rpartition('/')[2]}: {whose} name"
            eventually(
                lambda: what in run.condition("ChildrenApplied").get("message", ""),
                what=lambda: run.status,
            )

        def goes(path):
            reported(path, "the one of the last resource of this")
            gpu_cluster.admin.patch(path, {"metadata": {"finalizers": None}})

        claim, *of_training = left
        goes(claim)
        reported(somebodys, "an object of this")
        quota = set_quota(gpu_cluster, namespace, {"pods": "0"})
        gpu_cluster.admin.delete(somebodys)
        eventually(lambda: "exceeded quota" in run.condition("PodsStarted").get("message", ""))
        gpu_cluster.admin.delete(quota)
        for stage in STAGES[:4]:
            run.finish(stage)
        for path in of_training:
            goes(path)
        lead = run.running("train")[0]
        # that of a minute would take a minute; the operator corrects it
        cost = {"metadata": {"annotations": {EVICTION_COST_ANNOTATION: "3600"}}}
        job = f"/apis/batch/v1/{served}/jobs/run-train-1"
        gpu_cluster.admin.patch(job, cost)
        eventually(
            lambda: (
                gpu_cluster.admin.get(job)["metadata"]["annotations"][EVICTION_COST_ANNOTATION]
                == "0"
            )
        )
        gpu_cluster.finish_pod(namespace, lead, 1)
        run.finish("train", 2)
        run.finish("inference")
        eventually(lambda: not exists(gpu_cluster.admin, f"{run.path}/run"))
        assert operator.alive, operator.tail()
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    used, refused = set(), []
    for event in gpu_cluster.audit(user):
        about = event.get("objectRef", {})
        name = about.get("resource", "") + (
            f"/{about['subresource']}" if "subresource" in about else ""
        )
        if event["responseStatus"]["code"] == 403:
            refused.append((event["verb"], name, about.get("namespace")))
        used.add((about.get("apiGroup", ""), name, event["verb"]))
    assert refused == []
    granted = {
        (rule.group, rule.resource, verb)
        for rule in (*NAMESPACED, *OWN_NAMESPACE)
        for verb in rule.verbs
        if rule.api in (None, OptionalApi.NATIVE_POD_GROUP)
    }
    assert granted - used == set()
