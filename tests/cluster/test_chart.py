"""The chart, with helm on the real API server: install, upgrade, use, uninstall."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from control_plane import binaries
from operators import Operator, Resource, eventually, exists
from repository import ROOT
from video2world_operator.api.validation import load_resource
from video2world_operator.plan.plan import make_plan

CHART = ROOT / "charts" / "video2world-operator"
SAMPLE = CHART.parents[1] / "manifests" / "samples" / "posttrain.yaml"
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
            capture_output=True,
            text=True,
            check=False,
            env=homes,
        )
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


def test_namespaced_mode_creates_roles_only(cluster, namespace, helm, tmp_path):
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
    done = helm(
        "template", "v2w", str(CHART), "--kube-version", "1.34.0", "--set", value, check=False
    )
    assert done.returncode != 0
    assert words in done.stderr


HOSTILE = [
    "x\n      hostNetwork: true",
    "x}, {name: y",
    "x: y",
    "{{ .Release.Name }}",
    "x #",
    "&a",
    "x'\"",
]
# Values that stand in the templates as bare text; all others go through toYaml or quote.
BARE = [
    "image.repository",
    "image.tag",
    "image.digest",
    "image.pullPolicy",
    "serviceAccount.name",
    "priorityClassName",
    "watchNamespaces[0]",
    "metrics.serviceMonitor.interval",
    "networkPolicy.apiServerPorts[0]",
    "replicas",
]


# As a cluster with the Prometheus operator answers.
MONITORED = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
MONITORING = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in MONITORED]


def rendered(helm, values, tmp_path, check=True):
    """What the chart makes of ``values``, or None where they are refused."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm(
        "template",
        "v2w",
        str(CHART),
        "--kube-version",
        "1.34.0",
        *MONITORING,
        "--values",
        str(tmp_path / "values.yaml"),
        check=check,
    )
    return [m for m in yaml.safe_load_all(done.stdout) if m] if done.returncode == 0 else None


def nested(path, value):
    for part in reversed(path.split(".")):
        key, listed, _ = part.partition("[")
        value = {key: [value] if listed else value}
    return value


@pytest.mark.parametrize("path", BARE)
def test_a_hostile_value_of_unquoted_text_is_refused(helm, helm_binary, path, tmp_path):
    if "helm4" in str(helm_binary):
        pytest.skip("the schema is the same for both: once is enough")
    on = {"networkPolicy": {"enabled": True}, "metrics": {"serviceMonitor": {"enabled": True}}}
    for text in HOSTILE:
        values = nested(path, text)
        for key, more in on.items():
            values[key] = {**more, **values.get(key, {})}
        assert rendered(helm, values, tmp_path, check=False) is None, text


def test_a_hostile_value_elsewhere_stays_a_value(helm, tmp_path):
    hostile = {f"k{number}": text for number, text in enumerate(HOSTILE)}
    toleration = [{"key": text, "operator": "Exists"} for text in HOSTILE]
    values = {
        "podAnnotations": hostile,
        "nodeSelector": hostile,
        "tolerations": toleration,
        "serviceAccount": {"annotations": hostile},
        "metrics": {"dashboards": {"enabled": True, "labels": hostile}},
    }
    plain, made = rendered(helm, {}, tmp_path), rendered(helm, values, tmp_path)
    named = [(one["kind"], one["metadata"]["name"]) for one in plain]
    assert sorted([*named, ("ConfigMap", f"{NAME}-dashboards")]) == sorted(
        (one["kind"], one["metadata"]["name"]) for one in made
    )
    by_kind = {one["kind"]: one for one in made}
    template = by_kind["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"] == hostile
    assert template["spec"]["nodeSelector"] == hostile
    assert template["spec"]["tolerations"] == toleration
    assert hostile.items() <= by_kind["ConfigMap"]["metadata"]["labels"].items()
    assert "hostNetwork" not in template["spec"]


ANY = "anybody"


def flows(policy):
    """What a NetworkPolicy lets through, as (direction, peer, protocol, port)."""
    spec, found = policy["spec"], set()
    assert spec["policyTypes"] == ["Ingress", "Egress"]  # what no rule names is kept out
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in spec[direction]:
            assert rule["ports"]  # none would mean all of them
            assert rule.get(side) != []
            for port in rule["ports"]:
                for peer in rule.get(side, [ANY]):
                    peer = peer if peer == ANY else json.dumps(peer)
                    found.add((direction, peer, port["protocol"], port["port"]))
    return found


def test_the_network_policy_allows_what_docs_security_md_lists(helm, tmp_path):
    def policy(**more):
        made = rendered(helm, {"networkPolicy": {"enabled": True, **more}}, tmp_path)
        (one,) = [one for one in made if one["kind"] == "NetworkPolicy"]
        deployment = next(one for one in made if one["kind"] == "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        return one

    dns = {("egress", ANY, "UDP", 53), ("egress", ANY, "TCP", 53)}
    server = {("egress", ANY, "TCP", port) for port in (443, 6443)}
    assert flows(policy()) == dns | server
    # with their addresses, nothing else is allowed
    api = {"ipBlock": {"cidr": "10.0.0.1/32"}}
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    prometheus = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    tight = policy(
        apiServerPorts=[6443], apiServerTo=[api], dnsTo=[names], metricsFrom=[prometheus]
    )
    assert flows(tight) == {
        ("egress", json.dumps(names), "UDP", 53),
        ("egress", json.dumps(names), "TCP", 53),
        ("egress", json.dumps(api), "TCP", 6443),
        ("ingress", json.dumps(prometheus), "TCP", "probes"),
    }
    reported = (CHART.parents[1] / "docs" / "security.md").read_text()
    for value in ("apiServerTo", "dnsTo", "metricsFrom", "apiServerPorts"):
        assert f"networkPolicy.{value}" in reported


def test_monitoring_is_optional(helm):
    def kinds(*flags):
        done = helm("template", "v2w", str(CHART), "--kube-version", "1.34.0", *MONITORING, *flags)
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    ours = ("ServiceMonitor", "ConfigMap", "PodMonitor", "PrometheusRule")
    assert not [one for one in kinds() if one["kind"] in ours]
    parts = ("serviceMonitor", "dashboards", "podMonitor", "alerts")
    flags = [f"metrics.{part}.enabled=true" for part in parts]
    made = {one["kind"]: one for one in kinds(*(part for one in flags for part in ("--set", one)))}
    service, monitor = made["Service"], made["ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert made["PrometheusRule"]["spec"] == yaml.safe_load(
        (CHART / "files" / "alerts.yaml").read_text()
    )
    pods = made["PodMonitor"]["spec"]
    (job,) = [
        m for m in make_plan(load_resource(SAMPLE)).stage("train").manifests if m["kind"] == "Job"
    ]
    labels = job["spec"]["template"]["metadata"]["labels"]
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    assert pods["selector"]["matchLabels"].items() <= (labels | index).items()
    (port,) = job["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert pods["podMetricsEndpoints"][0]["port"] == port["name"]
    boards = [json.loads(text) for text in made["ConfigMap"]["data"].values()]
    asked = re.findall(r"video2world_\w+", json.dumps(boards))
    assert asked
    docs = CHART.parents[1] / "docs"
    reported = "".join(
        (docs / name).read_text() for name in ("reference/metrics.md", "watching.md")
    )
    for name in asked:  # the operator has all that the dashboard asks for
        assert f"`{name.removesuffix('_bucket')}`" in reported


SETTINGS = {
    "ServiceMonitor": "metrics.serviceMonitor.enabled",
    "PodMonitor": "metrics.podMonitor.enabled",
    "PrometheusRule": "metrics.alerts.enabled",
}


@pytest.mark.parametrize("kind", MONITORED)
def test_monitoring_is_of_the_version_that_the_cluster_serves(helm, kind):
    """The known one if there are several, another if only that is served."""

    def version(*served, check=True):
        flags = [f"--api-versions=monitoring.coreos.com/{one}" for one in served]
        flags += ["--kube-version=1.34.0", f"--set={SETTINGS[kind]}=true"]
        done = helm("template", "v2w", str(CHART), *flags, check=check)
        if done.returncode:
            return done.stderr
        (made,) = [m for m in yaml.safe_load_all(done.stdout) if m and m["kind"] == kind]
        return made["apiVersion"]

    assert version(f"v2/{kind}", f"v1/{kind}") == "monitoring.coreos.com/v1"
    assert version(f"v2/{kind}") == "monitoring.coreos.com/v2"
    refusal = version("v1/Probe", check=False)  # the group alone says nothing
    assert f"{SETTINGS[kind]}: the cluster does not serve the kind {kind}" in refusal
    assert f"--api-versions monitoring.coreos.com/v1/{kind}" in refusal
