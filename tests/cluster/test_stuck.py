"""A stage that makes no progress is never reported as fine: on a real API server, case by case."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from control_plane import Cluster
from operators import Operator, Resource, eventually, exists, grant, set_quota
from video2world_operator.api.constants import GROUP
from video2world_operator.cli.main import main

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
NOW = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def operator(gpu_cluster, tmp_path_factory):
    """One operator for the whole cluster."""
    kubeconfig = gpu_cluster.write_kubeconfig(grant(gpu_cluster, "video2world-system"))
    log = tmp_path_factory.mktemp("operator") / "log"
    flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
    with Operator(kubeconfig, *flags, "--stuck-after-seconds", "3", log=log) as running:
        yield running
        assert not running.crashed, running.tail()


class Place:
    """The namespace of one case."""

    def __init__(self, cluster: Cluster, case: str) -> None:
        asked = {"metadata": {"generateName": f"stuck-{case}-"}}
        self.cluster = cluster
        self.name = cluster.admin.post("/api/v1/namespaces", asked)["metadata"]["name"]
        self.base = f"/api/v1/namespaces/{self.name}"
        eventually(lambda: exists(cluster.admin, f"{self.base}/serviceaccounts/default"))
        self.run = Resource(cluster, self.name, "r")

    def limit_range(self, **limit: Any) -> None:
        body = {"metadata": {"name": "lr"}, "spec": {"limits": [{"type": "Container", **limit}]}}
        self.cluster.admin.post(f"{self.base}/limitranges", body)

    def pod_security(self) -> None:
        label = {"pod-security.kubernetes.io/enforce": "baseline"}
        self.cluster.admin.patch(self.base, {"metadata": {"labels": label}})

    def admission_policy(self) -> None:
        """Refuse pods without a label."""
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
        }
        check = {"expression": "has(object.metadata.labels.team)", "message": "name your team"}
        self._policy("Validating", rule, {"validations": [check]})

    def mutate(self, group: str, resource: str, expression: str) -> None:
        """Change what is created, as a webhook would."""
        rule = {
            "apiGroups": [group],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": [resource],
        }
        change = {
            "patchType": "ApplyConfiguration",
            "applyConfiguration": {"expression": expression},
        }
        self._policy("Mutating", rule, {"mutations": [change], "reinvocationPolicy": "Never"})

    def _policy(self, kind: str, rule: dict[str, Any], spec: dict[str, Any]) -> None:
        path = f"{ADMISSION}/{kind.lower()}admissionpolic"
        spec |= {"matchConstraints": {"resourceRules": [rule]}, "failurePolicy": "Fail"}
        self.cluster.admin.post(f"{path}ies", {"metadata": {"name": self.name}, "spec": spec})
        here = {"matchLabels": {"kubernetes.io/metadata.name": self.name}}
        bound = {"policyName": self.name, "matchResources": {"namespaceSelector": here}}
        if kind == "Validating":
            bound["validationActions"] = ["Deny"]
        metadata = {"metadata": {"name": self.name}, "spec": bound}
        self.cluster.admin.post(f"{path}ybindings", metadata)
        self._until_enforced(kind)

    def _until_enforced(self, kind: str) -> None:
        """A policy takes effect a moment after it was created: ask by dry runs."""
        pod = {
            "metadata": {"generateName": "x-"},
            "spec": {"containers": [{"name": "x", "image": "x"}]},
        }
        job = {
            "metadata": {"generateName": "x-"},
            "spec": {"template": {"spec": {**pod["spec"], "restartPolicy": "Never"}}},
        }

        def changed() -> bool:
            batch = f"/apis/batch/v1/namespaces/{self.name}/jobs?dryRun=All"
            try:
                made = self.cluster.admin.post(f"{self.base}/pods?dryRun=All", pod)
                jobs = self.cluster.admin.post(batch, job)
            except Exception as error:
                return "denied" in str(error)
            return len(made["spec"]["containers"]) > 1 or any(
                key in jobs["spec"] for key in ("managedBy", "ttlSecondsAfterFinished")
            )

        eventually(changed)

    def job(self, name: str) -> str:
        return f"/apis/batch/v1/namespaces/{self.name}/jobs/{name}"

    def orphan(self) -> None:
        """Leave a train Job of an earlier resource of this name behind."""
        label = {f"{GROUP}/resource": "r", f"{GROUP}/stage": "train", f"{GROUP}/attempt": "2"}
        container = {"name": "train", "image": "x"}
        template = {
            "metadata": {"labels": label},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
        job = {"metadata": {"name": "r-train-2", "labels": label}, "spec": {"template": template}}
        self.cluster.admin.post(self.job("")[:-1], job)
        eventually(lambda: self.run.pods("train", 2))

    def suspend_job(self) -> None:
        eventually(lambda: exists(self.cluster.admin, self.job("r-download-1")))
        self.cluster.admin.patch(self.job("r-download-1"), {"spec": {"suspend": True}})

    def end_worker(self, code: int, stage: str = "download") -> None:
        """End the worker's container alone: the injected one runs on."""
        (pod,) = eventually(lambda: self.run.pods(stage))
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", **NOW}
        states = [
            {
                "name": c["name"],
                "image": "x",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": ended} if c["name"] == stage else {"running": {}},
            }
            for c in pod["spec"]["containers"]
        ]
        path = f"{self.base}/pods/{pod['metadata']['name']}/status"
        self.cluster.admin.patch(path, {"status": {"containerStatuses": states}})


@dataclass
class Case:
    """``before`` prepares the namespace, ``spec`` is the resource's, ``after`` follows it.

    ``message`` must be in status.message, ``explained`` in what v2w explain prints.
    """

    message: tuple[str, ...]
    explained: tuple[str, ...]
    reason: str = "NoProgress"
    before: Callable[[Place], Any] = lambda place: None
    spec: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Place], Any] = lambda place: None


NO_POD = "Job r-download-1 cannot create its pod: FailedCreate: Error creating: "
MEMORY = "spec.stages.download.resources.limits.memory"
CASES = {
    "limit-range": Case(
        (NO_POD, "maximum memory usage per Container is 1Gi", MEMORY, "No progress since 20"),
        ("A LimitRange of the namespace sets the maximum of memory", MEMORY, "no progress for"),
        before=lambda place: place.limit_range(max={"memory": "1Gi"}),
        spec={"stages": {"download": {"resources": {"limits": {"memory": "4Gi"}}}}},
    ),
    "limit-range-defaults": Case(
        (NO_POD, "must be less than or equal to memory limit", MEMORY),
        ("a LimitRange of the namespace sets a default", MEMORY),
        before=lambda place: place.limit_range(
            default={"memory": "512Mi"}, defaultRequest={"memory": "256Mi"}
        ),
    ),
    "quota": Case(
        (NO_POD, "exceeded quota: few", "ask for a higher quota"),
        ("quota few is exceeded: requested pods=1",),
        before=lambda place: set_quota(place.cluster, place.name, {"pods": "0"}),
    ),
    "quota-of-limits": Case(
        (NO_POD, "failed quota: few: must specify", "spec.stages.download.resources"),
        ("quota few only admits pods that specify limits.cpu",),
        before=lambda place: set_quota(place.cluster, place.name, {"limits.cpu": "100"}),
    ),
    "pod-security": Case(
        (NO_POD, "violates PodSecurity", "spec.stages.download.podTemplate"),
        ("Pod Security level does not allow the pod", "hostNetwork"),
        before=Place.pod_security,
        spec={"stages": {"download": {"podTemplate": {"spec": {"hostNetwork": True}}}}},
    ),
    "priority-class": Case(
        (NO_POD, "no PriorityClass with name high", "spec.scheduling.priorityClassName"),
        ("There is no priority class high",),
        spec={"scheduling": {"priorityClassName": "high"}},
    ),
    "service-account": Case(
        (NO_POD, "There is no service account", "serviceAccountName"),
        ("There is no service account", "nobody"),
        spec={"stages": {"download": {"podTemplate": {"spec": {"serviceAccountName": "nobody"}}}}},
    ),
    "admission-policy": Case(
        (NO_POD, "name your team", "spec.stages.download.podTemplate"),
        ("admission policy stuck-admission-policy", "refuses it: name your team"),
        before=Place.admission_policy,
    ),
    "not-our-job": Case(
        ("Job r-download-1 has no pod: it is managed by the controller kueue.x-k8s.io/multikueue",),
        ("spec.managedBy", "no progress for"),
        before=lambda place: place.mutate(
            "batch", "jobs", "Object{spec: Object.spec{managedBy: 'kueue.x-k8s.io/multikueue'}}"
        ),
    ),
    "no-such-scheduler": Case(
        (
            "No scheduler has considered pod r-download-1-",
            "schedulerName is my-scheduler. Install my-scheduler",
            "No progress since",
        ),
        ("schedulerName is my-scheduler; no progress for", "Install my-scheduler"),
        spec={"scheduling": {"schedulerName": "my-scheduler"}},
    ),
    "suspended-by-hand": Case(
        ("Its Job was suspended by someone else: kubectl describe job r-download-1",),
        ("suspended by someone else", "kubectl patch job r-download-1"),
        "JobSuspended",
        after=Place.suspend_job,
    ),
    "orphan": Case(
        (
            "Waiting for pod r-train-2-",
            "of an earlier resource of this name: kubectl delete job r-train-2",
        ),
        ("kubectl delete job r-train-2",),
        "EarlierPods",
        before=Place.orphan,
    ),
}
ISTIO = (
    "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'istio-proxy', "
    "image: 'istio/proxyv2:1'}]}}"
)
SIDECARS = {0: "ends-well", 1: "ends-badly", 2: "ends-by-the-users-error"}


@pytest.fixture(scope="module")
def places(gpu_cluster, operator):
    """Every case at once, as each takes its time."""
    gpu_cluster.add_volumes(len(CASES) + len(SIDECARS))
    made = {name: Place(gpu_cluster, name) for name in (*CASES, *SIDECARS.values())}
    for name, case in CASES.items():
        case.before(made[name])
        made[name].run.create(**case.spec)
    for name in SIDECARS.values():
        made[name].mutate("", "pods", ISTIO)
        made[name].run.create()
    yield made
    for place in made.values():
        gpu_cluster.admin.delete(place.base)
        for kind in ("validating", "mutating"):
            for plural in ("policies", "policybindings"):
                path = f"{ADMISSION}/{kind}admission{plural}/{place.name}"
                if exists(gpu_cluster.admin, path):
                    gpu_cluster.admin.delete(path)


@pytest.fixture
def explain(gpu_cluster, monkeypatch, capsys):
    """What v2w explain prints."""

    def ask(place: Place) -> str:
        config = gpu_cluster.write_kubeconfig(gpu_cluster.admin, place.name)
        monkeypatch.setenv("KUBECONFIG", os.fspath(config))
        assert main(["explain", "r"]) == 0
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize("name", CASES)
def test_what_is_known_is_shown(name, places, explain):
    case, place = CASES[name], places[name]
    case.after(place)
    eventually(
        lambda: all(words in place.run.status.get("message", "") for words in case.message),
        60,
        lambda: place.run.status,
    )
    started = place.run.condition("PodsStarted")
    assert (started["status"], started["reason"]) == ("False", case.reason)
    shown = place.cluster.kubectl("get", "v2w", "-n", place.name, "-o", "wide").stdout
    assert case.message[0] in shown
    told = explain(place)
    assert "no problems found" not in told
    for words in case.explained:
        assert words in told, told


@pytest.mark.parametrize("code", SIDECARS)
def test_a_sidecar_does_not_outlive_its_worker(code, places, gpu_cluster):
    place = places[SIDECARS[code]]
    run = place.run
    (pod,) = eventually(lambda: run.pods("download"))
    assert {c["name"] for c in pod["spec"]["containers"]} == {"download", "istio-proxy"}
    name = pod["metadata"]["name"]
    place.end_worker(code)
    if code == 0:
        run.reaches(stage="dataset")
        assert run.stage("download")["state"] == "Succeeded"
        eventually(lambda: run.pods("dataset"))
    elif code == 2:
        status = run.reaches(phase="Failed")
        assert run.condition("Failed")["reason"] == "UserError"
        assert name in status["message"]
    else:
        eventually(lambda: [p for p in run.pods("download") if p["metadata"]["name"] != name])
        assert run.status["phase"] == "Running"
    eventually(lambda: not exists(gpu_cluster.admin, f"{place.base}/pods/{name}"))
    events = gpu_cluster.admin.get(f"{place.base}/events")["items"]
    (told,) = [e["message"] for e in events if e["reason"] == "SidecarEnded"]
    assert f"The worker of pod {name} has ended (exit code {code})" in told
    assert "container istio-proxy is still running" in told
    assert "spec.stages.download.podTemplate" in told


def test_events_are_read_seldom(places, gpu_cluster):
    """Of a stuck resource every half minute, and of one that is not stuck never."""
    stuck, fine = places["quota"], places["ends-well"]
    time.sleep(1)
    user = "system:serviceaccount:video2world-system:video2world-operator"
    about = [
        e["objectRef"] for e in gpu_cluster.audit(user) if e["verb"] == "list" and "objectRef" in e
    ]
    places_of = [a["namespace"] for a in about if a["resource"] == "events"]
    assert 1 <= places_of.count(stuck.name) <= 6
    assert places_of.count(fine.name) == 0
