"""Install, start, kill and query an operator under test; here, this project's own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from control_plane import Cluster
from operators import Operator, Resource, eventually, grant

from . import ROOT

__all__ = ["NAMESPACE", "Cluster", "System", "Video2WorldOperator", "Work"]

NAMESPACE = "bench"
OPERATOR_NAMESPACE = "video2world-system"
STAGE_SECONDS = "1"  # of each of our stages except training


@dataclass(frozen=True)
class Work:
    """One resource: ``nodes`` training pods of ``gpus`` GPUs each."""

    name: str
    nodes: int
    gpus: int


class System(ABC):
    """An operator in a cluster that can be installed, started, killed and queried."""

    name = ""
    title = ""
    collection = ""  # of its resources in the namespace
    accounts: frozenset[str] = frozenset()
    restarts_group = True  # whether a failed pod restarts its group, not only itself

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}  # of its binaries

    @abstractmethod
    def install(self, cluster: Cluster, folder: Path) -> None:
        """Install CRDs, RBAC and configuration."""

    @abstractmethod
    def launch(self) -> None:
        """Start its processes."""

    @abstractmethod
    def kill(self) -> None:
        """Kill its processes with SIGKILL."""

    @abstractmethod
    def ready(self) -> None:
        """Return once it is ready."""

    def close(self) -> None:
        """Stop it for good."""
        self.kill()

    @abstractmethod
    def pids(self) -> list[int]:
        """Return the PIDs of its processes."""

    @abstractmethod
    def scrape(self) -> list[str]:
        """Return the metrics pages of its processes."""

    @abstractmethod
    def body(self, work: Work) -> dict[str, Any]:
        """Return the manifest of a resource for this work."""

    @abstractmethod
    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """See :class:`.audit_log.Naming`."""

    @abstractmethod
    def resource_of(self, pod: str) -> str:
        """See :class:`.audit_log.Naming`."""

    @abstractmethod
    def succeeded(self, body: Mapping[str, Any]) -> bool:
        """Return whether a resource has succeeded."""

    def queue(self) -> dict[str, float]:
        """Return the queue depth, and number and seconds of reconciliations so far."""
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
        """Return the number of reconciliations and the bucket bounds of p50 and p99 in s."""
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


class Video2WorldOperator(System):
    """Video2World Operator, with the rights of manifests/rbac.yaml."""

    name = "video2world"
    title = "Video2World Operator"
    collection = f"/apis/video2world.dev/v1alpha1/namespaces/{NAMESPACE}/video2worldposttrains"
    accounts = frozenset({f"system:serviceaccount:{OPERATOR_NAMESPACE}:video2world-operator"})

    def install(self, cluster: Cluster, folder: Path) -> None:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        cluster.add_volumes(1)
        claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
        wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        cluster.admin.post(claims, {"metadata": {"name": "shared"}, "spec": wanted})
        flags = (
            *("--own-namespace", OPERATOR_NAMESPACE, "--poll-seconds", "10", "--pod-uid", "bench"),
            *("--lease-seconds", "120"),  # must outlast a busy machine; the peers have no lease
        )
        kubeconfig = cluster.write_kubeconfig(grant(cluster, OPERATOR_NAMESPACE))
        # restarted, as its pod would be, when it loses its lease on a busy machine
        self.operator = Operator(kubeconfig, *flags, log=folder / "operator.log")
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
        """Return how often it exited because it lost its lease."""
        return self.operator.log.read_text().count("; the process ends")

    def body(self, work: Work) -> dict[str, Any]:
        quick = {"metadata": {"annotations": {"fake.video2world.dev/seconds": STAGE_SECONDS}}}
        stages = ("download", "dataset", "embeddings", "latents", "inference")
        tiny = work.gpus < 8
        size = "Tiny" if tiny else "2B"
        training: dict[str, Any] = {
            "nodes": work.nodes,
            "gpusPerNode": work.gpus,
            "iterations": 1000,
        }
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
