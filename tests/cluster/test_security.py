"""The API server's verdict on our pods, and on what a tenant adds to them."""

from __future__ import annotations

import pytest
import yaml

from control_plane import ApiError
from repository import ROOT
from video2world_operator.api.validation import load_resource, parse
from video2world_operator.plan.plan import make_plan

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
LEVELS = ("enforce", "warn", "audit")


@pytest.fixture
def restricted(cluster, namespace):
    """A namespace that admits pods of the restricted level only."""
    labels = {f"pod-security.kubernetes.io/{level}": "restricted" for level in LEVELS}
    cluster.admin.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
    return namespace


def admit(cluster, namespace, template):
    """Ask the API server for a pod of ``template``, as a dry run; returns its refusal or ''."""
    pod = {"metadata": {"generateName": "asked-", **template.get("metadata", {})}}
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    try:
        cluster.admin.post(path, pod | {"spec": template["spec"]})
    except ApiError as error:
        if error.code == 403:
            return str(error)
        raise
    return ""


def templates(plan):
    """Yield stage and pod template of every Job of a plan, and of the sampler."""
    stages = [(stage.name, stage.job) for stage in plan.stages]
    if plan.resource.spec.inference.samples:
        stages.append(("samples", plan.sampling(500)[0]))
    return [(name, job["spec"]["template"]) for name, job in stages]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_stage_of_every_sample_is_admitted(cluster, restricted, path):
    plan = make_plan(load_resource(path), restricted)
    for name, template in templates(plan):
        assert admit(cluster, restricted, template) == "", name


def test_the_operator_s_own_pods_are_admitted(cluster, restricted):
    documents = yaml.safe_load_all((ROOT / "manifests" / "operator.yaml").read_text())
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    template["spec"].pop("serviceAccountName")  # of another namespace
    assert admit(cluster, restricted, template) == ""


@pytest.mark.parametrize(
    ("patch", "word"),
    [
        ({"hostNetwork": True}, "host namespaces"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}, "runAsNonRoot"),
        (
            {
                "containers": [
                    {"name": "train", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}
                ]
            },
            "SYS_ADMIN",
        ),
    ],
    ids=["host network", "host path", "root", "capability"],
)
def test_a_tenant_s_additions_are_admitted_or_refused_as_in_any_pod(
    cluster, restricted, patch, word
):
    body = yaml.safe_load((ROOT / "manifests" / "samples" / "posttrain.yaml").read_text())
    body["spec"]["stages"] = {"train": {"podTemplate": {"spec": patch}}}
    template = make_plan(parse(body), restricted).stage("train").job["spec"]["template"]
    refusal = admit(cluster, restricted, template)
    assert "violates PodSecurity" in refusal
    assert word in refusal
