"""Run a control plane: start and stop it, create users, add fake nodes, and inject faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from . import binaries, components, fake_nodes
from .api import Api
from .certificates import Authority
from .processes import Components, Keeper, Process
from .store import Store

BASE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
WITH_NODES = (*BASE, "kube-scheduler", "kwok")


class Cluster:
    """etcd, kube-apiserver and kube-controller-manager on free loopback ports, RBAC on.

    Args:
        nodes: number of fake nodes (KWOK) with 8 GPUs each to start with. None: no kube-scheduler
            and no kwok, pods stay Pending.
        job_seconds: how long the fake nodes run a Job's pod before it succeeds; None: until
            ``finish_pod`` ends it.
        native_gang: serve the native PodGroup API (scheduling.k8s.io/v1beta1), which is off by
            default.
        lease_seconds: duration of a node's lease; long for many nodes, because each renews its own.
        audited: rules of the audit log that precede those of AUDIT_POLICY.
        address: address that the API server listens on and advertises to pods, which cannot reach
            127.0.0.1.
        readable_store: store everything as JSON, so that ``store`` can read every object's states.
        roomy: let the API server use up to 8 GiB of memory instead of collecting garbage often.
        worker_logs: lines that containers print on the fake nodes, by container name;
            ``write_pod_log`` overrides them for a pod.

    Raises:
        Unavailable: a binary can neither be found nor built.
        RuntimeError: a process did not come up; the text ends with its last lines.
    """

    def __init__(
        self,
        *,
        nodes: int | None = None,
        job_seconds: float | None = None,
        native_gang: bool = False,
        lease_seconds: int = 20,
        audited: Sequence[dict[str, Any]] = (),
        address: str = "127.0.0.1",
        readable_store: bool = False,
        roomy: bool = False,
        worker_logs: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._settings = components.Settings(
            with_nodes=nodes is not None,
            job_seconds=job_seconds,
            native_gang=native_gang,
            lease_seconds=lease_seconds,
            audited=audited,
            address=address,
            readable_store=readable_store,
            roomy=roomy,
            worker_logs=worker_logs or {},
        )
        self.address = address
        self.binaries = binaries.find(*self._needed())
        self.folder = Path(tempfile.mkdtemp(prefix="v2w-cluster-"))
        self.components = Components(Keeper(self.folder), self.binaries)
        try:
            self.authority = Authority()
            components.write_files(self.folder, self.authority, self._settings)
            self._start()
            for index in range(nodes or 0):
                self.add_node(f"node-{index}")
        except BaseException:
            self.close()
            raise

    def _needed(self) -> tuple[str, ...]:
        """Return the names of the required binaries."""
        return WITH_NODES if self._settings.with_nodes else BASE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything and remove the folder."""
        self.components.close()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig file."""
        return self.folder / "admin.kubeconfig"

    def user(self, name: str, *groups: str) -> Api:
        """Return a user with a client certificate, and the rights that RBAC grants it."""
        return Api(self.server, self.authority.certificate, self.authority.issue(name, groups))

    def service_account(self, namespace: str, name: str) -> Api:
        """Return an existing service account, with a token valid for a day."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"spec": {"expirationSeconds": 86400}}
        token = self.admin.post(path, request)["status"]["token"]
        return Api(self.server, self.authority.certificate, token=token)

    def write_kubeconfig(self, api: Api, namespace: str = "default") -> Path:
        """Write a kubeconfig file for this user; it is removed with the cluster."""
        handle, path = tempfile.mkstemp(suffix=".kubeconfig", dir=self.folder)
        os.close(handle)
        return api.write_kubeconfig(Path(path), namespace)

    def kubectl(
        self,
        *arguments: str | Path,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator or with another kubeconfig.

        Raises:
            RuntimeError: it failed and ``check`` is set.
        """
        user = f"--kubeconfig={kubeconfig or self.kubeconfig}"
        done = subprocess.run(
            [self.binaries["kubectl"], user, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KUBECACHEDIR": str(self.folder / "kubectl-cache")},
        )
        if check and done.returncode:
            shown = " ".join(str(one) for one in arguments)
            raise RuntimeError(f"kubectl {shown} ended with {done.returncode}: {done.stderr}")
        return done

    def install_definition(self, path: Path) -> None:
        """Apply the CustomResourceDefinition in this YAML file and wait until it is served."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # large CRDs are a megabyte
        definition = yaml.load(path.read_text(), loader)  # noqa: S506
        base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        url = f"{base}/{definition['metadata']['name']}"
        self.admin.patch(f"{url}?fieldManager=control-plane", definition, "apply")
        spec = definition["spec"]
        served = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        self.components.wait(served, lambda: self.admin.get(served))

    def audit(self, user: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the audit events so far, oldest first, optionally of one user only."""
        with (self.folder / "audit.log").open() as log:
            for line in log:
                if not line.endswith("\n"):
                    return  # still being written
                event: dict[str, Any] = json.loads(line)
                if user is None or event["user"]["username"] == user:
                    yield event

    @property
    def processes(self) -> dict[str, int]:
        """PIDs of the running components by name."""
        return {name: process.pid for name, process in self.components.running.items()}

    @property
    def store(self) -> Store:
        """Access to etcd, which has every state of every object."""
        return Store(self._ports.etcd)

    def add_node(self, name: str, gpus: int = 8, labels: dict[str, str] | None = None) -> None:
        """Add a fake node with this many ``nvidia.com/gpu``."""
        if not self._settings.with_nodes:
            raise ValueError("this cluster was started without nodes=...: no scheduler, no kwok")
        self.admin.post("/api/v1/nodes", fake_nodes.node(name, gpus, labels or {}))

    def publish_devices(self, node: str, count: int, driver: str = "gpu.nvidia.com") -> None:
        """Publish this many GPUs of a node, in place of those published before."""
        path = "/apis/resource.k8s.io/v1/resourceslices"
        body = fake_nodes.devices(node, count, driver)
        self.admin.patch(f"{path}/{body['metadata']['name']}?fieldManager=dra", body, "apply")

    def lose_node(self, name: str) -> None:
        """Stop the node's fake kubelet: NotReady after some 30 s; its pods no longer end."""
        path = f"/api/v1/nodes/{name}"
        self.admin.patch(path, {"metadata": {"labels": {fake_nodes.MANAGED: None}}})

    def find_node(self, name: str) -> None:
        """Start the node's fake kubelet again."""
        path = f"/api/v1/nodes/{name}"
        self.admin.patch(path, {"metadata": {"labels": {fake_nodes.MANAGED: "kwok"}}})

    def add_volumes(self, count: int) -> None:
        """Add volumes for PVCs without a storage class, of any access mode.

        There is no provisioner, and a volume is bound to one PVC only.
        """
        for _ in range(count):
            self.admin.post("/api/v1/persistentvolumes", fake_nodes.VOLUME)

    def finish_pod(self, namespace: str, name: str, exit_code: int = 0) -> None:
        """End a running pod on a fake node with this exit code."""
        annotations = {fake_nodes.EXIT_CODE: str(exit_code)}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.admin.patch(path, {"metadata": {"annotations": annotations}})

    def write_pod_log(self, namespace: str, name: str, text: str) -> None:
        """Append complete lines to the log of this pod on a fake node."""
        path = self.folder / "pod-logs" / namespace / f"{name}.log"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            kind = f"/apis/kwok.x-k8s.io/v1alpha1/namespaces/{namespace}/logs"
            self.admin.post(kind, fake_nodes.pod_log(namespace, name, path))
        with path.open("a") as log:
            log.write(fake_nodes.log_lines(text))

    def run(self, name: str, binary: Path, *flags: str | Path) -> Process:
        """Start another process that ends with the cluster at the latest."""
        return self.components.keeper.start(name, [binary, *flags])

    def stop_api_server(self, grace: float = 10) -> None:
        """Stop the API server with SIGTERM, or with SIGKILL if ``grace`` is 0."""
        self.components.stop("kube-apiserver", grace)

    def start_api_server(self) -> None:
        """Start the API server; return when it is ready."""
        self._run("kube-apiserver")
        self.components.wait("the API server", lambda: self.admin.get("/readyz"))

    @contextmanager
    def etcd_paused(self) -> Iterator[None]:
        """Suspend etcd inside the block: writes hang until the API server gives up on them."""
        self.components.running["etcd"].signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.components.running["etcd"].signal(signal.SIGCONT)

    def stop(self, name: str, grace: float = 0) -> None:
        """Stop kube-controller-manager, kube-scheduler or kwok for good."""
        self.components.stop(name, grace)

    def _start(self) -> None:
        self._ports = components.Ports()
        self.server = f"https://{self.address}:{self._ports.api}"
        self.admin = self.user("admin", "system:masters")
        self.admin.write_kubeconfig(self.kubeconfig)
        self._run("etcd")
        self.start_api_server()
        for name in ("kube-controller-manager", "kube-scheduler", "kwok"):
            groups = ("system:masters",) if name == "kwok" else ()
            user = name if name == "kwok" else f"system:{name}"
            self.user(user, *groups).write_kubeconfig(self.folder / f"{name}.kubeconfig")
        self._run("kube-controller-manager")
        if self._settings.with_nodes:
            self._run("kube-scheduler")
            self.install_definition(self.folder / "kwok-logs-crd.yaml")
            self._run("kwok")
        self.components.wait("the default service account", lambda: self.admin.get(_ACCOUNT))

    def _run(self, component: str) -> None:
        flags = components.flags(component, self.folder, self._ports, self._settings)
        environment = components.environment(component, self._settings)
        self.components.start(component, *flags, environment=environment)


_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
