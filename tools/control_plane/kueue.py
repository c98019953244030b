"""Run Kueue's manager beside a cluster, set up as its release is: CRDs, webhooks, certificates."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from . import binaries
from .api import ApiError
from .cluster import Cluster
from .processes import free_port

__all__ = ["API", "NAMESPACE", "VERSIONS", "Kueue"]

VERSIONS = {"newest": "kueue", "previous": "kueue-previous"}
API = "kueue.x-k8s.io/v1beta2"
NAMESPACE = "kueue-system"
_SERVICE = "kueue-webhook-service"  # Kueue names its webhook configurations by it
_SECRET = "kueue-webhook-server-cert"  # pragma: allowlist secret
_GROUPS = ("batch", "kueue.x-k8s.io")  # whose objects the configured webhooks see
_CONFIGURATION: dict[str, Any] = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta2",
    "kind": "Configuration",
    "namespace": NAMESPACE,
    "metrics": {"bindAddress": "0"},
    "leaderElection": {"leaderElect": False},  # a killed manager's successor works at once
    "clientConnection": {"qps": 300, "burst": 500},
    "manageJobsWithoutQueueName": False,
    "integrations": {"frameworks": ["batch/job"]},
}
_PLURALS = {
    "AdmissionCheck": "admissionchecks",
    "ClusterQueue": "clusterqueues",
    "LocalQueue": "localqueues",
    "MultiKueueCluster": "multikueueclusters",
    "MultiKueueConfig": "multikueueconfigs",
    "ResourceFlavor": "resourceflavors",
    "Workload": "workloads",
    "WorkloadPriorityClass": "workloadpriorityclasses",
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # large CRDs are a megabyte


class Kueue:
    """Kueue's manager for a running cluster. Use as a context manager, inside the cluster's.

    It manages Jobs that name a queue, and issues its own certificates, as a default installation
    does. The API server reaches its webhooks through a Service with an external name, since no
    network leads to cluster IPs here.

    Args:
        cluster: the cluster to manage.
        version: ``newest`` or ``previous``, see tools/kueue and tools/kueue_previous.
        gates: feature gates that differ from the version's defaults.
        configuration: fields of Kueue's configuration that override the test's.

    Raises:
        Unavailable: the manager can neither be found nor built.
        RuntimeError: it did not come up; the text ends with its last lines.
    """

    def __init__(
        self,
        cluster: Cluster,
        version: str = "newest",
        *,
        gates: Mapping[str, bool] | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        tool = binaries.ALL[VERSIONS[version]]
        self.version = tool.version
        self.cluster, self._binary = cluster, binaries.ready(tool)
        self._files = binaries.installed_files(tool)
        self._folder = cluster.folder / "kueue"
        self._health, self._webhooks = free_port(), free_port()
        # on-demand visibility of queues listens on a fixed port and serves an aggregated API
        self._gates = {"VisibilityOnDemand": False, **(gates or {})}
        self._write_files(configuration or {})
        self._install()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "kueue" in self.cluster.components.running:
            self.stop()

    def start(self) -> None:
        """Start the manager, after a stop; return when it is ready and its webhooks answer."""
        gates = ",".join(f"{name}={str(on).lower()}" for name, on in self._gates.items())
        components, folder = self.cluster.components, self._folder
        environment = ("env", f"KUBECONFIG={folder / 'kubeconfig'}")
        flags = (f"--config={folder / 'config.yaml'}", f"--feature-gates={gates}")
        components.start_command("kueue", (*environment, self._binary, *flags))
        components.wait("Kueue's certificate", self._mount_certificate)
        components.wait("Kueue", self._check_ready)
        components.wait("Kueue's webhooks", self._check_webhooks)

    def stop(self, grace: float = 0) -> None:
        """Stop the manager with SIGKILL, or with SIGTERM if there is a ``grace`` in seconds."""
        self.cluster.components.stop("kueue", grace)

    # ------------------------------------------------------------------ queues

    def path(self, kind: str, name: str = "", namespace: str = "") -> str:
        """Return the path of an object of Kueue's, or of all of a kind."""
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"/apis/{API}{within}/{_PLURALS[kind]}" + (f"/{name}" if name else "")

    def create(self, kind: str, name: str, spec: Any, namespace: str = "") -> dict[str, Any]:
        """Create an object of Kueue's."""
        made: dict[str, Any] = self.cluster.admin.post(
            self.path(kind, namespace=namespace),
            {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec},
        )
        return made

    def add_queue(
        self,
        namespace: str,
        name: str = "gpus",
        *,
        gpus: int,
        pods: int = 1000,
        cohort: str = "",
        flavor_labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> str:
        """Create a LocalQueue in ``namespace`` with a ClusterQueue and a ResourceFlavor of its own.

        Args:
            namespace: where the LocalQueue is.
            name: name of the LocalQueue.
            gpus: the quota of ``nvidia.com/gpu``; that of CPU and memory is ample.
            pods: the quota of pods.
            cohort: the cohort that the ClusterQueue lends to and borrows from. Its queues then
                share one flavor.
            flavor_labels: labels of the nodes of the flavor.
            spec: more fields of the ClusterQueue's spec.

        Returns:
            the name of the ClusterQueue, and of the flavor if there is no cohort.
        """
        queue, flavor = f"{namespace}-{name}", cohort or f"{namespace}-{name}"
        try:
            self.create("ResourceFlavor", flavor, {"nodeLabels": dict(flavor_labels or {})})
        except ApiError as error:
            if error.code != 409:
                raise
        quota = {"nvidia.com/gpu": gpus, "pods": pods, "cpu": 100_000, "memory": "1000Ti"}
        resources = [{"name": key, "nominalQuota": value} for key, value in quota.items()]
        group = {
            "coveredResources": list(quota),
            "flavors": [{"name": flavor, "resources": resources}],
        }
        body = {"namespaceSelector": {}, "resourceGroups": [group], **spec}
        self.create("ClusterQueue", queue, body | ({"cohortName": cohort} if cohort else {}))
        self.create("LocalQueue", name, {"clusterQueue": queue}, namespace)
        return queue

    def set_quota(self, queue: str, gpus: int) -> None:
        """Change the GPU quota of a ClusterQueue that ``add_queue`` created."""
        where = "/spec/resourceGroups/0/flavors/0/resources/0/nominalQuota"
        change = [{"op": "replace", "path": where, "value": str(gpus)}]
        self.cluster.admin.patch(self.path("ClusterQueue", queue), change, "json")

    def set_stop_policy(self, queue: str, policy: str) -> None:
        """Set ``None``, ``Hold`` or ``HoldAndDrain`` as the stop policy of a ClusterQueue."""
        self.cluster.admin.patch(self.path("ClusterQueue", queue), {"spec": {"stopPolicy": policy}})

    def workloads(self, namespace: str) -> list[dict[str, Any]]:
        """Return the Workloads of a namespace."""
        found: list[dict[str, Any]] = self.cluster.admin.get(
            self.path("Workload", namespace=namespace)
        )["items"]
        return found

    # ------------------------------------------------------------------ installation

    def _write_files(self, overrides: Mapping[str, Any]) -> None:
        certificates = self._folder / "certificates"
        certificates.mkdir(parents=True, mode=0o700)
        configuration = _CONFIGURATION | {
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health}"},
            "webhook": {
                "host": "127.0.0.1",
                "port": self._webhooks,
                "certDir": str(certificates),
            },
            **overrides,
        }
        (self._folder / "config.yaml").write_text(json.dumps(configuration))
        user = self.cluster.user("kueue", "system:masters")
        user.write_kubeconfig(self._folder / "kubeconfig")

    def _install(self) -> None:
        metadata = {"namespace": NAMESPACE}
        service = {"type": "ExternalName", "externalName": "127.0.0.1"}
        self._apply("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace"}, NAMESPACE)
        within = f"/api/v1/namespaces/{NAMESPACE}"
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
        self._apply(f"{within}/services", body | {"spec": service}, _SERVICE)
        # Kueue fills in the Secret, but does not create it
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        self._apply(f"{within}/secrets", body, _SECRET)
        definitions = self._definitions()
        for definition in definitions:
            self._apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for definition in definitions:
            served = f"/apis/{API}/{definition['spec']['names']['plural']}"
            self.cluster.components.wait(served, partial(self.cluster.admin.get, served))
        webhooks = self._files / "config/components/webhook/manifests.yaml"
        for body in yaml.load_all(webhooks.read_text(), _LOADER):
            body["metadata"]["name"] = f"kueue-{body['metadata']['name']}"
            body["webhooks"] = [
                webhook | {"clientConfig": self._client(webhook["clientConfig"])}
                for webhook in body["webhooks"]
                if {group for rule in webhook["rules"] for group in rule["apiGroups"]} <= {*_GROUPS}
            ]
            plural = f"{body['kind'].lower()}s"
            self._apply(f"/apis/admissionregistration.k8s.io/v1/{plural}", body)

    def _definitions(self) -> list[dict[str, Any]]:
        """Return the CRDs, with the conversion webhooks that the release's kustomization adds."""
        folder = self._files / "config/components/crd"
        plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
        patches = [_load(folder / patch["path"]) for patch in plan["patches"]]
        conversions = {p["metadata"]["name"]: p["spec"]["conversion"] for p in patches}
        made = [_load(folder / name) for name in plan["resources"]]
        for definition in made:
            if conversion := conversions.get(definition["metadata"]["name"]):
                webhook = conversion["webhook"]
                webhook["clientConfig"] = self._client(webhook["clientConfig"])
                definition["spec"]["conversion"] = conversion
        return made

    def _client(self, client: Mapping[str, Any]) -> dict[str, Any]:
        where = {"namespace": NAMESPACE, "name": _SERVICE, "port": self._webhooks}
        return {"service": client["service"] | where}

    def _apply(self, path: str, body: dict[str, Any], name: str = "") -> None:
        body["metadata"] = {"name": name} | body.get("metadata", {})
        url = f"{path}/{body['metadata']['name']}?fieldManager=install&force=true"
        self.cluster.admin.patch(url, body, "apply")

    # ------------------------------------------------------------------ start

    def _mount_certificate(self) -> None:
        """Write the Secret's files where a kubelet would mount them; raise until it has them."""
        secret = self.cluster.admin.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{_SECRET}")
        files = secret.get("data") or {}
        if "tls.crt" not in files:
            raise OSError("the certificate has not been issued yet")
        for name in ("ca.crt", "tls.key", "tls.crt"):
            path = self._folder / "certificates" / name
            path.touch(mode=0o600)
            path.write_bytes(base64.b64decode(files[name]))

    def _check_ready(self) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/readyz", timeout=5):
            pass

    def _check_webhooks(self) -> None:
        """Raise until the API server trusts and reaches the webhooks, also that of conversion."""
        body = {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
        self.cluster.admin.post(f"{self.path('ResourceFlavor')}?dryRun=All", body | {"spec": {}})


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), _LOADER)  # noqa: S506
    return found
