"""The chart, with helm on the real API server: install, upgrade, use, uninstall."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from control_plane import binaries
from operators import Operator, Resource, eventually, exists

CHART = Path(__file__).parents[2] / "charts" / "video2world-operator"
CRD = (
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/video2worldposttrains.video2world.dev"
)
NAME = "v2w-video2world-operator"


@pytest.fixture(params=["helm", "helm4"])
def helm_binary(request):
    """Helm 3, and Helm 4."""
    return binaries.find(request.param)[request.param]


@pytest.fixture
def helm(cluster, helm_binary, namespace, tmp_path):
    """helm as the administrator in the test's namespace; the release goes with the test."""

    def run(*arguments, check=True):
        homes = {f"HELM_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        homes["HOME"] = str(tmp_path)  # of kubectl's cache
        done = subprocess.run(
            [helm_binary, "--kubeconfig", cluster.kubeconfig, "--namespace", namespace, *arguments],
            capture_output=True, text=True, check=False, env=homes,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    yield run
    run("uninstall", "v2w", check=False)


def install(helm, chart=CHART, *more):
    """Install or upgrade; the cluster has the definition already, which the release takes over."""
    return helm("upgrade", "--install", "v2w", str(chart), "--take-ownership", *more)


def test_lint(helm):
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART)).stdout


def test_install_use_upgrade_and_uninstall(cluster, namespace, helm, tmp_path):
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.admin.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": label}})
    notes = install(helm).stdout
    assert f"rollout status deployment/{NAME}" in notes
    apps = f"/apis/apps/v1/namespaces/{namespace}"
    pods = f"/api/v1/namespaces/{namespace}/pods"
    eventually(lambda: len(cluster.admin.get(pods)["items"]) == 2)  # they pass the profile
    template = cluster.admin.get(f"{apps}/deployments/{NAME}")["spec"]["template"]["spec"]
    assert template["serviceAccountName"] == NAME
    assert cluster.admin.get(CRD)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

    # the operator with the account that the chart made
    account = cluster.service_account(namespace, NAME)
    kubeconfig = cluster.write_kubeconfig(account, namespace)
    with Operator(kubeconfig, "--namespaces", namespace, log=tmp_path / "log") as operator:
        run = Resource(cluster, namespace).create()
        eventually(lambda: run.children("jobs"), what=operator.tail)

    # a definition with one field more is upgraded, and the resource stays
    newer = tmp_path / "chart"
    shutil.copytree(CHART, newer)
    definition = yaml.safe_load((newer / "files" / "crd.yaml").read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["novelty"] = {"type": "string", "maxLength": 10}
    (newer / "files" / "crd.yaml").write_text(yaml.safe_dump(definition))
    install(helm, newer, "--set", "operator.pollSeconds=5")
    eventually(lambda: "novelty" in json.dumps(cluster.admin.get(CRD)))
    assert run.object["spec"]["model"] == {"size": "Tiny"} | run.object["spec"]["model"]
    environment = cluster.admin.get(f"{apps}/deployments/{NAME}")["spec"]["template"]["spec"][
        "containers"
    ][0]["env"]
    assert {"name": "V2W_POLL_SECONDS", "value": "5"} in environment
    install(helm)  # back again

    helm("uninstall", "v2w")
    assert exists(cluster.admin, CRD)
    assert run.object["metadata"]["name"] == "run"
    assert len(run.children("persistentvolumeclaims")) == 1
    for path in (
        f"{apps}/deployments/{NAME}",
        f"/api/v1/namespaces/{namespace}/serviceaccounts/{NAME}",
        f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{NAME}",
        f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{NAME}",
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{NAME}-leader",
        f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{NAME}",
    ):
        assert not exists(cluster.admin, path), path


def test_namespaced_mode_makes_roles_only(cluster, namespace, helm, tmp_path):
    served = f"watchNamespaces={{{namespace}}}"
    install(helm, CHART, "--set", served, "--set", "networkPolicy.enabled=true")
    roles = "/apis/rbac.authorization.k8s.io/v1"
    assert not exists(cluster.admin, f"{roles}/clusterroles/{NAME}")
    assert exists(cluster.admin, f"{roles}/namespaces/{namespace}/roles/{NAME}")
    account = cluster.service_account(namespace, NAME)
    kubeconfig = cluster.write_kubeconfig(account, namespace)
    with Operator(kubeconfig, "--namespaces", namespace, log=tmp_path / "log"):
        run = Resource(cluster, namespace).create()
        eventually(lambda: run.children("jobs"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("replicas=-1", "replicas"),
        ("replcas=1", "replcas"),
        ("image.digest=latest", "digest"),
        ("operator.leaseSeconds=1", "leaseSeconds"),
        ("watchNamespaces={UPPER}", "watchNamespaces"),
    ],
)
def test_wrong_values_are_refused(helm, value, words):
    done = helm("template", "v2w", str(CHART), "--kube-version", "1.34.0", "--set", value,
                check=False)  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr


def test_monitoring_comes_on_request(helm):
    def kinds(*flags):
        done = helm("template", "v2w", str(CHART), "--kube-version", "1.34.0", *flags)
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    assert not [one for one in kinds() if one["kind"] in ("ServiceMonitor", "ConfigMap")]
    flags = ("metrics.serviceMonitor.enabled=true", "metrics.dashboards.enabled=true")
    made = {one["kind"]: one for one in kinds(*(part for one in flags for part in ("--set", one)))}
    service, monitor = made["Service"], made["ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    boards = [json.loads(text) for text in made["ConfigMap"]["data"].values()]
    asked = re.findall(r"video2world_\w+", json.dumps(boards))
    assert asked
    told = (CHART.parents[1] / "docs/reference/metrics.md").read_text()
    for name in asked:  # the operator has all that the dashboard asks for
        assert f"`{name.removesuffix('_bucket')}`" in told
