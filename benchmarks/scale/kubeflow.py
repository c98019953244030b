"""Kubeflow's operators as systems of the scale benchmark: training-operator v1 and Trainer v2."""

from __future__ import annotations

import base64
import re
import ssl
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from control_plane import Cluster, binaries
from control_plane.processes import Process, free_port
from operators import eventually

from .systems import NAMESPACE, System, Work

__all__ = ["TOOLS", "Trainer", "TrainingOperator"]

PEERS = Path(__file__).parents[1] / "peers"
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
KUBEFLOW = "kubeflow"  # namespace in which training-operator looks for its Secret
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # hard-coded in the peers
RATE = (500, 1000)  # requests per second and burst of the peers: above what the machine can serve


class _Peer(System):
    """A system of Go binaries with administrator rights."""

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
        self._configure(folder)

    @abstractmethod
    def _configure(self, folder: Path) -> None:
        """Install CRDs and write the configuration."""

    @abstractmethod
    def _flags(self, name: str) -> list[str]:
        """Return the flags of the tool ``name``."""

    def _install_crd(self, tool: str, path: str) -> None:
        self.cluster.install_definition(binaries.module_folder(TOOLS[tool]) / path)

    def _install_webhooks(self, tool: str, path: str, name: str, of_pods: str = "") -> None:
        """Install the webhooks of one of the peer's manifests, reached on loopback.

        Webhooks for pods apply only to pods with the label ``of_pods``, as in the peer's overlays.
        """
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
            eventually(partial(_get, url), 120, self._last_lines)

    def _last_lines(self) -> str:
        return "\n".join(f"{one.name}: {one.log_tail()}" for one in self.started)

    def pids(self) -> list[int]:
        return [process.pid for process in self.started if process.alive()]

    def scrape(self) -> list[str]:
        texts = [_get(f"http://127.0.0.1:{port}/metrics") for port in self.ports.values()]
        return [text for text in texts if text]


class TrainingOperator(_Peer):
    """Kubeflow training-operator v1: PyTorchJob, whose pods it creates itself."""

    name = "training-operator"
    title = "Kubeflow training-operator v1 (PyTorchJob)"
    collection = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
    tools = ("training-operator",)
    restarts_group = False

    def _configure(self, folder: Path) -> None:
        self._install_crd("training-operator", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml")
        base = f"/api/v1/namespaces/{KUBEFLOW}/secrets"
        self.cluster.admin.post(base, {"metadata": {"name": "training-operator-webhook-cert"}})
        # The operator writes its certificate into this object and needs it to exist. Its webhooks,
        # which only validate, are left out: its Service cannot be resolved here.
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
    """Kubeflow Trainer v2: TrainJob, through a JobSet and its Job."""

    name = "trainer"
    title = "Kubeflow Trainer v2 (TrainJob) with JobSet"
    collection = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
    tools = ("jobset", "trainer-controller-manager")

    def _configure(self, folder: Path) -> None:
        crds = "config/components/crd/bases"
        self._install_crd("jobset", f"{crds}/jobset.x-k8s.io_jobsets.yaml")
        for plural in ("trainjobs", "trainingruntimes", "clustertrainingruntimes"):
            path = f"manifests/base/crds/trainer.kubeflow.org_{plural}.yaml"
            self._install_crd("trainer-controller-manager", path)
        self._install_webhooks(
            "jobset",
            "config/components/webhook/manifests.yaml",
            "jobset",
            "jobset.sigs.k8s.io/jobset-name",
        )
        path = "manifests/base/webhook/manifests.yaml"
        self._install_webhooks("trainer-controller-manager", path, "validator.trainer.kubeflow.org")
        common = {"kind": "Configuration", "leaderElection": {"leaderElect": False}}
        files: dict[str, dict[str, Any]] = {
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
            config: dict[str, Any] = common | own
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
                "backoffLimit": 0,  # one failed pod restarts the group, as for the others
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
        gpus = {"nvidia.com/gpu": str(work.gpus)}
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
                    "resourcesPerNode": {"limits": gpus, "requests": gpus},
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


def _container(name: str, count: int) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(count)}
    resources = {"limits": gpus, "requests": gpus}
    command = ["torchrun", "train.py"]
    return {"name": name, "image": "pytorch", "command": command, "resources": resources}


def _condition(body: Mapping[str, Any], kind: str) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _get(url: str, token: str | None = None) -> str:
    """Return the page at ``url``; empty without a successful response."""
    unverified = ssl._create_unverified_context() if url.startswith("https") else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=5, context=unverified) as got:
            return str(got.read().decode())
    except OSError:
        return ""
