"""Claims for devices on a real control plane: allocated, released, and what is reported if not."""

from __future__ import annotations

import json
import os

import pytest

from operators import Operator, Resource, apply, eventually, grant
from video2world_operator.cli.main import main
from video2world_operator.controller.rbac import ACCOUNT, NAMESPACED, policy_rules

CLASS = "gpu.nvidia.com"
RESOURCE_API = "/apis/resource.k8s.io/v1"
IS_GPU = f"device.driver == '{CLASS}' && device.attributes['{CLASS}'].type == 'gpu'"
LARGE = f"device.capacity['{CLASS}'].memory.compareTo(quantity('40Gi')) >= 0"
CLAIMS = [{"name": "gpus", "resourceClaimTemplateName": "one-gpu"}]
TRAINING = {"device": "GPU", "resourceClaims": CLAIMS}
BEFORE = ("dataset", "embeddings", "latents")


@pytest.fixture(scope="module")
def operator(gpu_cluster, tmp_path_factory):
    """One operator for the whole cluster."""
    kubeconfig = gpu_cluster.write_kubeconfig(grant(gpu_cluster, "video2world-system"))
    log = tmp_path_factory.mktemp("operator") / "log"
    flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
    with Operator(kubeconfig, *flags, "--stuck-after-seconds", "2", log=log) as running:
        yield running


@pytest.fixture
def devices(gpu_cluster, gpu_namespace):
    """Creates DeviceClass, templates and ResourceSlices; nothing of it is left to other tests."""

    class Devices:
        def add_class(self, *expressions):
            selectors = [{"cel": {"expression": e}} for e in expressions]
            body = {"metadata": {"name": CLASS}, "spec": {"selectors": selectors}}
            gpu_cluster.admin.post(f"{RESOURCE_API}/deviceclasses", body)

        def add_template(self, name="one-gpu", count=1):
            request = {"name": "gpus", "exactly": {"deviceClassName": CLASS, "count": count}}
            body = {
                "metadata": {"name": name},
                "spec": {"spec": {"devices": {"requests": [request]}}},
            }
            path = f"{RESOURCE_API}/namespaces/{gpu_namespace}/resourceclaimtemplates"
            gpu_cluster.admin.post(path, body)

        def claims(self):
            path = f"{RESOURCE_API}/namespaces/{gpu_namespace}/resourceclaims"
            return gpu_cluster.admin.get(path)["items"]

    yield Devices()
    for kind in ("resourceslices", "deviceclasses"):
        for one in gpu_cluster.admin.get(f"{RESOURCE_API}/{kind}")["items"]:
            gpu_cluster.admin.delete(f"{RESOURCE_API}/{kind}/{one['metadata']['name']}")


def skip_to_training(run):
    """End the download, whose worker reports that the other stages before training are done."""
    (pod,) = run.running("download")
    eventually(lambda: run.stage("latents").get("inputsHash"))
    events = [
        {"event": "skipped", "stage": name, "inputsHash": run.stage(name)["inputsHash"]}
        for name in BEFORE
    ]
    run.cluster.write_pod_log(run.namespace, pod, "\n".join(map(json.dumps, events)))
    run.cluster.finish_pod(run.namespace, pod)


@pytest.fixture
def v2w(gpu_cluster, gpu_namespace, operator, monkeypatch, capsys):
    """Calls v2w as the administrator; what it printed."""
    config = gpu_cluster.write_kubeconfig(gpu_cluster.admin, gpu_namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(config))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens there

    def call(*arguments, code=0):
        assert main(arguments) == code
        return capsys.readouterr().out

    return call


def test_a_group_gets_its_devices_and_returns_them(
    gpu_cluster, gpu_namespace, devices, v2w, tmp_path
):
    for node in ("node-0", "node-3"):
        gpu_cluster.publish_devices(node, 1)
    devices.add_class(IS_GPU, LARGE)
    devices.add_template()
    run = Resource(gpu_cluster, gpu_namespace)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run.body(training=TRAINING)))
    checked = v2w("preflight", "-f", str(file), "--cluster")
    assert "a pod claims 1 gpu.nvidia.com devices, 2 are published" in checked
    assert f"counted as if true, since only the scheduler evaluates it: {LARGE}" in checked
    assert "there is room for just 2 pods" in checked

    run.create(training=TRAINING)
    skip_to_training(run)
    names = run.running("train")
    assert run.condition("PreflightPassed")["status"] == "True"
    pods = run.pods("train")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-0", "node-3"}
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["claims"] == [{"name": "gpus"}]
        assert "limits" not in container["resources"]
    allocated = [one["status"]["allocation"]["devices"]["results"] for one in devices.claims()]
    assert sorted((r["pool"], r["device"]) for (r,) in allocated) == [
        ("node-0", "gpu-0"),
        ("node-3", "gpu-0"),
    ]
    eventually(lambda: run.status["attempts"][0].get("heldGPUSeconds", 0) > 0)
    for name in names:
        gpu_cluster.finish_pod(gpu_namespace, name)
    run.finish("inference")  # by a limit of nvidia.com/gpu
    run.reaches(phase="Succeeded")
    eventually(lambda: not [c for c in devices.claims() if c.get("status", {}).get("allocation")])
    asked = {
        (about["resource"], event["verb"], event["responseStatus"]["code"])
        for event in gpu_cluster.audit(f"system:serviceaccount:video2world-system:{ACCOUNT}")
        if (about := event.get("objectRef", {})).get("apiGroup") == "resource.k8s.io"
        and "resource" in about
    }
    assert asked == {
        ("resourceclaimtemplates", "get", 200),
        ("deviceclasses", "list", 200),
        ("resourceslices", "list", 200),
    }


def test_what_keeps_a_claim_from_being_satisfied_is_named_until_it_is_fixed(
    gpu_cluster, gpu_namespace, devices, v2w
):
    def explained(*words):
        eventually(
            lambda: all(word in v2w("explain", "run") for word in words),
            40,
            lambda: v2w("explain", "run"),
        )

    def reported(text):
        eventually(lambda: text in run.condition("PodsStarted")["message"], what=lambda: run.status)

    run = Resource(gpu_cluster, gpu_namespace).create(training=TRAINING)
    missing = f"there is no ResourceClaimTemplate one-gpu in namespace {gpu_namespace}"
    explained(f"claims for train: {missing}", "create it, or correct spec.training.resourceClaims")
    assert run.condition("PreflightPassed")["reason"] == "ChecksFailed"
    skip_to_training(run)
    explained("There is no ResourceClaimTemplate one-gpu in namespace", "the pod starts by itself")
    reported("There is no ResourceClaimTemplate one-gpu in namespace")

    devices.add_template()
    explained("There is no DeviceClass gpu.nvidia.com, which the claims of stage train ask for")
    reported("device class gpu.nvidia.com does not exist")

    gpu_cluster.publish_devices("node-1", 1)
    devices.add_class(IS_GPU)
    explained("Not enough devices are free for the claims of stage train", "cannot allocate all")

    gpu_cluster.publish_devices("node-2", 1)
    run.running("train")
    eventually(lambda: run.condition("PodsStarted")["status"] == "True")


def test_an_unknown_class_is_reported_before_training(gpu_cluster, gpu_namespace, devices, v2w):
    devices.add_template()
    run = Resource(gpu_cluster, gpu_namespace).create(training=TRAINING)
    eventually(lambda: run.condition("PreflightPassed").get("status") == "False")
    said = run.condition("PreflightPassed")["message"]
    assert "there is no DeviceClass gpu.nvidia.com, which ResourceClaimTemplate one-gpu" in said
    assert "install the DRA driver that provides it" in said
    assert said.split(";")[0] in v2w("explain", "run")


def test_without_the_rights_the_operator_works_and_checks_less(cluster, namespace, tmp_path):
    """Roles of an earlier release, and so no right to look at devices."""
    api = grant(cluster, namespace, [namespace])
    before = policy_rules([rule for rule in NAMESPACED if not rule.for_checks])
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": before}
    apply(cluster.admin, role | {"metadata": {"name": ACCOUNT, "namespace": namespace}})
    flags = ("--namespaces", namespace, "--own-namespace", namespace)
    with Operator(cluster.write_kubeconfig(api), *flags, log=tmp_path / "log"):
        run = Resource(cluster, namespace).create(training=TRAINING)
        eventually(lambda: run.children("jobs"))
        eventually(lambda: run.condition("PreflightPassed").get("status") == "True")
    refused = {
        event["objectRef"]["resource"]
        for event in cluster.audit(f"system:serviceaccount:{namespace}:{ACCOUNT}")
        if event["responseStatus"]["code"] == 403
    }
    assert refused == {"resourceclaimtemplates", "deviceclasses", "resourceslices"}
