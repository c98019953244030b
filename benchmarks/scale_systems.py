"""The operators that the scale benchmark measures: ours, and the two of Kubeflow."""

from __future__ import annotations

import re
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tools")]

from control_plane import Cluster, binaries, fake_nodes  # noqa: E402
from control_plane.processes import Process, free_port  # noqa: E402
from operators import Operator, Resource, eventually, grant  # noqa: E402

__all__ = [
    "NAMESPACE",
    "PEERS",
    "TOOLS",
    "Cluster",
    "Ours",
    "System",
    "Trainer",
    "TrainingOperator",
    "Work",
    "binaries",
    "fake_nodes",
]

PEERS = Path(__file__).parent / "peers"
TOOLS = {
    tool.name: tool
    for tool in (
        binaries.Tool(
            "training-operator",
            "training-operator",
            "github.com/kubeflow/training-operator/cmd/training-operator.v1",
            "github.com/kubeflow/training-operator",
            PEERS,
        ),
        binaries.Tool(
            "trainer-controller-manager",
            "trainer",
            "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
            "github.com/kubeflow/trainer/v2",
            PEERS,
        ),
        binaries.Tool("jobset", "jobset", "sigs.k8s.io/jobset", "sigs.k8s.io/jobset", PEERS),
    )
}
NAMESPACE = "bench"
OWN = "video2world-system"
KUBEFLOW = "kubeflow"  # where training-operator looks for its Secret
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # fixed in the peers
STAGE_SECONDS = "1"  # of each of our stages but training
RATE = (500, 1000)  # requests a second, and burst, of the peers: more than the machine carries


@dataclass(frozen=True)
class Work:
    """One resource: so many training pods of so many GPUs each."""

    name: str
    nodes: int
    gpus: int


class System(ABC):
    """One operator in a cluster: installed, started, killed, and asked for its figures."""

    name = ""
    title = ""
    collection = ""  # of its resources in the namespace
    accounts: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}  # of its binaries

    @abstractmethod
    def install(self, cluster: Cluster, folder: Path) -> None:
        """Definitions, rights, configuration."""

    @abstractmethod
    def launch(self) -> None:
        """Start its processes."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL to all of them."""

    @abstractmethod
    def ready(self) -> None:
        """Return once it works."""

    def close(self) -> None:
        """End it for good."""
        self.kill()

    @abstractmethod
    def pids(self) -> list[int]:
        """Its processes."""

    @abstractmethod
    def scrape(self) -> list[str]:
        """What its processes tell Prometheus."""

    @abstractmethod
    def body(self, work: Work) -> dict[str, Any]:
        """The resource that asks for this work."""

    @abstractmethod
    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """See :class:`.scale_seen.Naming`."""

    @abstractmethod
    def resource_of(self, pod: str) -> str:
        """See :class:`.scale_seen.Naming`."""

    @abstractmethod
    def succeeded(self, body: Mapping[str, Any]) -> bool:
        """Whether a resource has come to its good end."""

    def busy(self) -> dict[str, float]:
        """Queue depth now, and reconciliations with their seconds so far."""
        depth = count = seconds = 0.0
        for text in self.scrape():
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name in ("workqueue_depth", "video2world_queue_depth"):
                        depth += sample.value
                    elif sample.name in _LATENCIES and sample.labels.get("le") is None:
                        if sample.name.endswith("_count"):
                            count += sample.value
                        elif sample.name.endswith("_sum"):
                            seconds += sample.value
        return {"depth": depth, "count": count, "seconds": seconds}

    def latency(self) -> dict[str, float]:
        """Seconds of a reconciliation: mean, and the bucket bounds of p50 and p99."""
        buckets: dict[float, float] = {}
        for text in self.scrape():
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name in _LATENCIES and "le" in sample.labels:
                        bound = float(sample.labels["le"])
                        buckets[bound] = buckets.get(bound, 0) + sample.value
        total = buckets.get(float("inf"), 0)
        found = {"count": total}
        for name, share in (("p50_at_most", 0.5), ("p99_at_most", 0.99)):
            bound = next((b for b in sorted(buckets) if buckets[b] >= share * total), 0.0)
            found[name] = bound if bound != float("inf") else -1
        return found


_LATENCIES = {
    f"{name}{suffix}"
    for name in (
        "video2world_reconcile_duration_seconds",
        "controller_runtime_reconcile_time_seconds",
    )
    for suffix in ("_bucket", "_count", "_sum")
}


class Ours(System):
    """Video2World Operator, with the rights of manifests/rbac.yaml."""

    name = "video2world"
    title = "Video2World Operator"
    collection = f"/apis/video2world.dev/v1alpha1/namespaces/{NAMESPACE}/video2worldposttrains"
    accounts = frozenset({f"system:serviceaccount:{OWN}:video2world-operator"})

    def install(self, cluster: Cluster, folder: Path) -> None:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        cluster.add_volumes(1)
        claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
        wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        cluster.admin.post(claims, {"metadata": {"name": "shared"}, "spec": wanted})
        flags = ("--own-namespace", OWN, "--poll-seconds", "10", "--pod-uid", "bench")
        flags += ("--lease-seconds", "120")  # a busy machine must not end it; the peers have none
        kubeconfig = cluster.write_kubeconfig(grant(cluster, OWN))
        # kept, as its pod would be: where the machine is too busy to renew its lease it ends
        self.operator = Operator(kubeconfig, *flags, log=folder / "operator.log", kept=True)
        self._entered = False

    def launch(self) -> None:
        if self._entered:
            self.operator.launch()
        else:
            self.operator.__enter__()
            self._entered = True

    def kill(self) -> None:
        self.operator.kill()

    def close(self) -> None:
        self.operator.__exit__()

    def ready(self) -> None:
        eventually(lambda: self.operator.probe("readyz")[1] == "leading", 60, self.operator.tail)

    def pids(self) -> list[int]:
        process = self.operator.process
        return [process.pid] if process is not None and self.operator.alive else []

    def scrape(self) -> list[str]:
        return [self.operator.probe("metrics")[1]]

    def lost_leases(self) -> int:
        """How often it ended because the machine was too busy for its lease."""
        return self.operator.log.read_text().count("; the process ends")

    def body(self, work: Work) -> dict[str, Any]:
        quick = {"metadata": {"annotations": {"fake.video2world.dev/seconds": STAGE_SECONDS}}}
        stages = ("download", "dataset", "embeddings", "latents", "inference")
        tiny = work.gpus < 8
        size = "Tiny" if tiny else "2B"
        training = {"nodes": work.nodes, "gpusPerNode": work.gpus, "iterations": 1000}
        training |= {"maxRestarts": 100, "restartBackoffSeconds": 0}
        if tiny:
            training["device"] = "GPU"
        return Resource.body(
            work.name,
            model={"size": size, "weights": f"w-{work.name}.pt"},
            training=training,
            dataset={"agibot": {"path": "data", "name": work.name}},
            storage={"claimName": "shared", "subPath": work.name, "size": None},
            stages={stage: {"podTemplate": quick} for stage in stages},
        )

    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        if labels.get("video2world.dev/stage") != "train":
            return None
        return labels["video2world.dev/resource"], labels["video2world.dev/attempt"]

    def resource_of(self, pod: str) -> str:
        found = re.fullmatch(r"(.+)-train-\d+-\d+-\w+", pod)
        return found[1] if found else ""

    def succeeded(self, body: Mapping[str, Any]) -> bool:
        return bool((body.get("status") or {}).get("phase") == "Succeeded")


class _Peer(System):
    """A system of Go binaries with the rights of an administrator."""

    tools: tuple[str, ...] = ()

    def install(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.paths = {name: binaries.ready(TOOLS[name]) for name in self.tools}
        self.versions = {name: TOOLS[name].version for name in self.tools}
        self.started: list[Process] = []
        cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": KUBEFLOW}})
        served = cluster.authority.issue(self.name, hosts=("127.0.0.1",))
        CERTIFICATES.mkdir(parents=True, exist_ok=True)
        (CERTIFICATES / "tls.crt").write_text(served.certificate)
        (CERTIFICATES / "tls.key").write_text(served.key)
        (CERTIFICATES / "ca.crt").write_text(cluster.authority.certificate)
        self.users, self.configs = {}, {}
        for name in self.tools:
            account = {"metadata": {"name": name}}
            base = f"/api/v1/namespaces/{KUBEFLOW}"
            cluster.admin.post(f"{base}/serviceaccounts", account)
            subject = {"kind": "ServiceAccount", "name": name, "namespace": KUBEFLOW}
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}
            cluster.admin.post(
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                {
                    "metadata": {"name": name},
                    "roleRef": role | {"name": "cluster-admin"},
                    "subjects": [subject],
                },
            )
            self.users[name] = cluster.service_account(KUBEFLOW, name)
            self.configs[name] = cluster.write_kubeconfig(self.users[name])
        self.accounts = frozenset(f"system:serviceaccount:{KUBEFLOW}:{name}" for name in self.tools)
        self.ports = {name: free_port() for name in self.tools}
        self.probes = {name: free_port() for name in self.tools}
        self.hooks = {name: free_port() for name in self.tools}
        self._define(folder)

    @abstractmethod
    def _define(self, folder: Path) -> None:
        """Definitions and configuration."""

    @abstractmethod
    def _flags(self, name: str) -> list[str]:
        """Of the tool ``name``."""

    def _definition(self, tool: str, path: str) -> None:
        self.cluster.install_definition(binaries.module_folder(TOOLS[tool]) / path)

    def _webhooks(self, tool: str, path: str, name: str, of_pods: str = "") -> None:
        """The webhooks in a manifest of the peer's, reached on loopback; those of pods only for
        pods that bear the label ``of_pods``, as the peer's own overlays have it."""
        text = (binaries.module_folder(TOOLS[tool]) / path).read_text()
        for manifest in yaml.safe_load_all(text):
            for hook in manifest["webhooks"]:
                path = hook["clientConfig"]["service"]["path"]
                hook["clientConfig"] = {
                    "url": f"https://127.0.0.1:{self.hooks[tool]}{path}",
                    "caBundle": _base64(self.cluster.authority.certificate),
                }
                if hook["rules"][0]["resources"] == ["pods"]:
                    exists = {"key": of_pods, "operator": "Exists"}
                    hook["objectSelector"] = {"matchExpressions": [exists]}
            manifest["metadata"]["name"] = name
            plural = manifest["kind"].lower() + "s"
            self.cluster.admin.post(f"/apis/admissionregistration.k8s.io/v1/{plural}", manifest)

    def launch(self) -> None:
        for name in self.tools:
            flags = [f"--kubeconfig={self.configs[name]}", *self._flags(name)]
            self.started.append(self.cluster.run(name, self.paths[name], *flags))

    def kill(self) -> None:
        for process in self.started:
            process.stop(grace=0)
        self.started.clear()

    def ready(self) -> None:
        for name in self.tools:
            url = f"http://127.0.0.1:{self.probes[name]}/readyz"
            eventually(lambda url=url: _get(url), 120, lambda: self._words())

    def _words(self) -> str:
        return "\n".join(f"{one.name}: {one.last_words()}" for one in self.started)

    def pids(self) -> list[int]:
        return [process.pid for process in self.started if process.alive()]

    def scrape(self) -> list[str]:
        texts = [_get(f"http://127.0.0.1:{port}/metrics") for port in self.ports.values()]
        return [text for text in texts if text]


class TrainingOperator(_Peer):
    """Kubeflow training-operator v1: PyTorchJob, whose pods it makes itself."""

    name = "training-operator"
    title = "Kubeflow training-operator v1 (PyTorchJob)"
    collection = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
    tools = ("training-operator",)

    def _define(self, folder: Path) -> None:
        self._definition("training-operator", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml")
        base = f"/api/v1/namespaces/{KUBEFLOW}/secrets"
        self.cluster.admin.post(base, {"metadata": {"name": "training-operator-webhook-cert"}})
        # It writes certificates of its own for this one, and needs that it is there. Its webhooks,
        # which only validate, are left out: nobody resolves its Service here.
        kind = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
        empty = {"metadata": {"name": "validator.training-operator.kubeflow.org"}}
        self.cluster.admin.post(kind, empty)

    def _flags(self, name: str) -> list[str]:
        return [
            "--enable-scheme=pytorchjob",
            "--controller-threads=16",
            f"--kube-api-qps={RATE[0]}",
            f"--kube-api-burst={RATE[1]}",
            f"--metrics-bind-address=127.0.0.1:{self.ports[name]}",
            f"--health-probe-bind-address=127.0.0.1:{self.probes[name]}",
            f"--webhook-server-port={self.hooks[name]}",
            "--zap-log-level=error",
        ]

    def body(self, work: Work) -> dict[str, Any]:
        pod = {"spec": {"containers": [_container("pytorch", work.gpus)]}}

        def replicas(count: int) -> dict[str, Any]:
            return {"replicas": count, "restartPolicy": "ExitCode", "template": pod}

        roles = {"Master": replicas(1)}
        if work.nodes > 1:
            roles["Worker"] = replicas(work.nodes - 1)
        return {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": work.name},
            "spec": {"pytorchReplicaSpecs": roles, "runPolicy": {"backoffLimit": 100}},
        }

    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        name = labels.get("training.kubeflow.org/job-name")
        return (name, "") if name else None

    def resource_of(self, pod: str) -> str:
        found = re.fullmatch(r"(.+)-(?:master|worker)-\d+", pod)
        return found[1] if found else ""

    def succeeded(self, body: Mapping[str, Any]) -> bool:
        return _condition(body, "Succeeded")


class Trainer(_Peer):
    """Kubeflow Trainer v2: TrainJob, by way of a JobSet and its Job."""

    name = "trainer"
    title = "Kubeflow Trainer v2 (TrainJob) with JobSet"
    collection = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
    tools = ("jobset", "trainer-controller-manager")

    def _define(self, folder: Path) -> None:
        crds = "config/components/crd/bases"
        self._definition("jobset", f"{crds}/jobset.x-k8s.io_jobsets.yaml")
        for plural in ("trainjobs", "trainingruntimes", "clustertrainingruntimes"):
            path = f"manifests/base/crds/trainer.kubeflow.org_{plural}.yaml"
            self._definition("trainer-controller-manager", path)
        self._webhooks(
            "jobset",
            "config/components/webhook/manifests.yaml",
            "jobset",
            "jobset.sigs.k8s.io/jobset-name",
        )
        path = "manifests/base/webhook/manifests.yaml"
        self._webhooks("trainer-controller-manager", path, "validator.trainer.kubeflow.org")
        common = {"kind": "Configuration", "leaderElection": {"leaderElect": False}}
        files = {
            "jobset": {
                "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                "internalCertManagement": {"enable": False},
            },
            "trainer-controller-manager": {
                "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
                "certManagement": {"enable": False},
                "controller": {"groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 16}},
            },
        }
        for name, own in files.items():
            config = common | own
            config["clientConnection"] = {"qps": RATE[0], "burst": RATE[1]}
            config["webhook"] = {"port": self.hooks[name], "host": "127.0.0.1"}
            config["health"] = {"healthProbeBindAddress": f"127.0.0.1:{self.probes[name]}"}
            config["metrics"] = {"bindAddress": f"127.0.0.1:{self.ports[name]}"}
            if name != "jobset":
                config["metrics"]["secureServing"] = False
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        self.folder = folder

    def _flags(self, name: str) -> list[str]:
        return [f"--config={self.folder / name}.yaml", "--zap-log-level=error"]

    def ready(self) -> None:
        super().ready()
        runtimes = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
        job = {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,  # one pod down restarts the group, as with the others
                "template": {"spec": {"containers": [{"name": "node", "image": "pytorch"}]}},
            },
        }
        self.cluster.admin.patch(
            f"{runtimes}/torch-distributed?fieldManager=bench",
            {
                "apiVersion": "trainer.kubeflow.org/v1alpha1",
                "kind": "ClusterTrainingRuntime",
                "metadata": {
                    "name": "torch-distributed",
                    "labels": {"trainer.kubeflow.org/framework": "torch"},
                },
                "spec": {
                    "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
                    "template": {
                        "spec": {
                            "failurePolicy": {"maxRestarts": 100},
                            "replicatedJobs": [{"name": "node", "template": job}],
                        }
                    },
                },
            },
            "apply",
        )

    def scrape(self) -> list[str]:
        token = self.users["jobset"].token
        jobset = _get(f"https://127.0.0.1:{self.ports['jobset']}/metrics", token)
        trainer = _get(f"http://127.0.0.1:{self.ports['trainer-controller-manager']}/metrics")
        return [text for text in (jobset, trainer) if text]

    def body(self, work: Work) -> dict[str, Any]:
        room = {"nvidia.com/gpu": str(work.gpus)}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": work.name},
            "spec": {
                "runtimeRef": {"name": "torch-distributed"},
                "trainer": {
                    "image": "pytorch",
                    "command": ["torchrun", "train.py"],
                    "numNodes": work.nodes,
                    "resourcesPerNode": {"limits": room, "requests": room},
                },
            },
        }

    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        name = labels.get("jobset.sigs.k8s.io/jobset-name")
        return (name, labels.get("jobset.sigs.k8s.io/restart-attempt", "0")) if name else None

    def resource_of(self, pod: str) -> str:
        found = re.fullmatch(r"(.+)-node-0-\d+-\w+", pod)
        return found[1] if found else ""

    def succeeded(self, body: Mapping[str, Any]) -> bool:
        return _condition(body, "Complete")


def _container(name: str, gpus: int) -> dict[str, Any]:
    room = {"nvidia.com/gpu": str(gpus)}
    resources = {"limits": room, "requests": room}
    command = ["torchrun", "train.py"]
    return {"name": name, "image": "pytorch", "command": command, "resources": resources}


def _condition(body: Mapping[str, Any], kind: str) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


def _get(url: str, token: str | None = None) -> str:
    """What is there; empty while nobody answers well."""
    import ssl

    trusting = ssl._create_unverified_context() if url.startswith("https") else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=5, context=trusting) as got:
            return str(got.read().decode())
    except OSError:
        return ""
