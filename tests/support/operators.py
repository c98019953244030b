"""Run the operator as a process against a test cluster, and drive its resources."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from control_plane import Api, ApiError, Cluster
from control_plane.processes import free_port
from video2world_operator.api.constants import GROUP, PLURAL, VERSION
from video2world_operator.codegen.rbac import manifests
from video2world_operator.controller.rbac import ACCOUNT
from video2world_operator.kube.auth import Connection, from_kubeconfig
from video2world_operator.plan.labels import RESOURCE_LABEL

__all__ = ["Operator", "Resource", "apply", "connection", "eventually", "exists", "grant"]
__all__ += ["set_quota"]

_PLACES = {
    "ServiceAccount": "/api/v1/namespaces/{0}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{0}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{0}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}


def eventually(probe: Callable[[], Any], seconds: float = 60, what: Callable[[], Any] = str) -> Any:
    """Return the first truthy result of ``probe``; fail with the last one after ``seconds``."""
    until = time.monotonic() + seconds
    while not (seen := probe()):
        assert time.monotonic() < until, f"not within {seconds} s; last seen: {seen} {what()}"
        time.sleep(0.1)
    return seen


def exists(api: Api, path: str) -> bool:
    """Return whether there is an object at ``path``."""
    try:
        api.get(path)
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


def apply(api: Api, manifest: dict[str, Any]) -> None:
    """Apply one of the kinds in manifests/rbac.yaml."""
    metadata = manifest["metadata"]
    path = _PLACES[manifest["kind"]].format(metadata.get("namespace", ""))
    api.patch(f"{path}/{metadata['name']}?fieldManager=test&force=true", manifest, "apply")


def grant(cluster: Cluster, own: str, served: Sequence[str] = ()) -> Api:
    """Create the operator's account with exactly the rights of manifests/rbac.yaml."""
    if not exists(cluster.admin, f"/api/v1/namespaces/{own}"):
        cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": own}})
    for manifest in manifests(own, served):
        apply(cluster.admin, manifest)
    return cluster.service_account(own, ACCOUNT)


def connection(api: Api) -> Callable[[], Awaitable[Connection]]:
    """Return a function that logs in as the user of ``api``."""

    async def connect() -> Connection:
        return await from_kubeconfig(api.kubeconfig())

    return connect


class Operator:
    """``python -m video2world_operator`` with a kubeconfig.

    ``module`` runs instead of it; ``environment`` extends that of this process. As a context
    manager it is restarted like its pod when it has lost its lease, as happens on a busy machine;
    any other exit is left for the test to see.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *flags: str,
        log: Path,
        module: str = "video2world_operator",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._kept = self._wanted = False
        self._port = free_port()
        self._argv = [
            *(sys.executable, "-m", module),
            *("--port", str(self._port), "--poll-seconds", "1", *flags),
        ]
        self._env = {**os.environ, "KUBECONFIG": str(kubeconfig), **(environment or {})}
        self.log, self._launched_at = log, 0  # so many bytes into the log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self._kept = True
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept = False
        self.kill()

    def _keep(self) -> None:
        while self._kept:
            if self._wanted and not self.alive and not self.crashed:
                self.launch()
            time.sleep(0.5)

    def start(self, state: str = "leading") -> None:
        """Start the process and wait until it is in ``state``."""
        self.launch()
        eventually(
            lambda: self.probe("readyz")[1].startswith(state) or not self.alive, 60, self.tail
        )
        assert self.alive, self.tail()

    def launch(self) -> None:
        """Start the process."""
        self._wanted = True
        with self.log.open("ab") as stream:
            self._launched_at = stream.tell()
            self.process = subprocess.Popen(
                self._argv, env=self._env, stdout=stream, stderr=subprocess.STDOUT
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def crashed(self) -> bool:
        """Whether the process ended by itself, for another reason than a lost lease."""
        said = self.log.read_bytes()[self._launched_at :]
        return self._wanted and not self.alive and b"the process ends" not in said

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._wanted = False
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Stop it with SIGTERM, and return its exit code."""
        assert self.process is not None
        self._wanted = False
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def probe(self, name: str) -> tuple[int, str]:
        """Return status and text of a health probe; status 0 without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{name}", timeout=5) as got:
                return got.status, got.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-4000:]


def set_quota(cluster: Cluster, namespace: str, hard: dict[str, str]) -> str:
    """Create a quota, wait until it is in effect, and return its path."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    cluster.admin.post(quotas, {"metadata": {"name": "few"}, "spec": {"hard": hard}})
    path = f"{quotas}/few"
    eventually(lambda: "hard" in cluster.admin.get(path).get("status", {}))
    return path


class Resource:
    """A Video2WorldPostTrain in a cluster, with its children."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "run") -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"

    @staticmethod
    def body(name: str = "run", **spec: Any) -> dict[str, Any]:
        """Return a Tiny run of two nodes with one sample; ``spec`` overrides it, one level deep."""
        base: dict[str, Any] = {
            "model": {"size": "Tiny"},
            "dataset": {"agibot": {"path": "datasets/agibot"}},
            "training": {"iterations": 100, "nodes": 2, "restartBackoffSeconds": 1},
            "inference": {"samples": [{"input": "val/videos/a.mp4"}]},
            "storage": {"size": "1Gi"},
        }
        merged = {
            k: base.get(k, {}) | v if isinstance(v, dict) else v for k, v in (base | spec).items()
        }
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": name},
            "spec": merged,
        }

    def create(self, **spec: Any) -> Self:
        """Create it."""
        self.cluster.admin.post(self.path, self.body(self.name, **spec))
        return self

    def patch(self, **spec: Any) -> None:
        """Merge into its spec."""
        self.cluster.admin.patch(f"{self.path}/{self.name}", {"spec": spec})

    def delete(self) -> None:
        """Delete it."""
        self.cluster.admin.delete(f"{self.path}/{self.name}")

    @property
    def object(self) -> dict[str, Any]:
        """The object at the API server."""
        found: dict[str, Any] = self.cluster.admin.get(f"{self.path}/{self.name}")
        return found

    @property
    def status(self) -> dict[str, Any]:
        """Its status, empty at first."""
        return self.object.get("status") or {}

    def condition(self, kind: str) -> dict[str, Any]:
        """Return one condition; empty if there is none."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def stage(self, name: str) -> dict[str, Any]:
        """Return one stage of its status; empty if there is none yet."""
        return next((e for e in self.status.get("stages", []) if e["name"] == name), {})

    def children(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind (jobs, pods, services, ...) with its label."""
        group = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        selector = f"labelSelector={RESOURCE_LABEL}%3D{self.name}"
        path = f"{group}/namespaces/{self.namespace}/{kind}?{selector}"
        items: list[dict[str, Any]] = self.cluster.admin.get(path)["items"]
        return items

    def pods(self, stage: str, attempt: int = 1, phase: str = "Running") -> list[dict[str, Any]]:
        """Return the pods of an attempt that are in a phase and not being deleted, by index."""
        found = [
            pod
            for pod in self.children("pods")
            if pod["metadata"]["labels"][f"{GROUP}/stage"] == stage
            and pod["metadata"]["labels"][f"{GROUP}/attempt"] == str(attempt)
            and pod["status"]["phase"] == phase
            and "deletionTimestamp" not in pod["metadata"]
        ]
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    def running(self, stage: str, attempt: int = 1) -> list[str]:
        """Wait until all pods of an attempt run, and return their names."""
        count = 2 if stage == "train" else 1

        def all_run() -> list[str] | None:
            pods = self.pods(stage, attempt)
            return [p["metadata"]["name"] for p in pods] if len(pods) == count else None

        names: list[str] = eventually(all_run, what=lambda: self.status)
        return names

    def finish(self, stage: str, attempt: int = 1, exit_code: int = 0) -> None:
        """Wait until the stage's pods run, then end them."""
        for pod in self.running(stage, attempt):
            self.cluster.finish_pod(self.namespace, pod, exit_code)

    def to_training(self) -> list[str]:
        """Finish every stage before training, and return the names of the running training pods."""
        for stage in ("download", "dataset", "embeddings", "latents"):
            self.finish(stage)
        return self.running("train")

    def reaches(self, seconds: float = 60, **fields: Any) -> dict[str, Any]:
        """Wait until the status has these values."""

        def there() -> dict[str, Any] | None:
            status = self.status
            return status if all(status.get(k) == v for k, v in fields.items()) else None

        found: dict[str, Any] = eventually(there, seconds, lambda: self.status)
        return found
