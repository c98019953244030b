"""One control plane: its keys, its processes, its users, and the faults it can be made to have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from . import binaries, fake_nodes
from .api import Api, ApiError
from .certificates import Authority, signing_key
from .processes import Keeper, Process, free_port
from .store import Store

BASE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
WITH_NODES = (*BASE, "kube-scheduler", "kwok")
START_SECONDS = 300.0  # a busy machine with two cores needs 30, one that is ten times too busy 150

# Every request by anyone but the control plane itself, without bodies: who used which verb on what.
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": [
                "system:apiserver",
                "system:kube-controller-manager",
                "system:kube-scheduler",
                "system:anonymous",
                "kwok",
            ],
        },
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}


class Cluster:
    """etcd, kube-apiserver and kube-controller-manager on free loopback ports, RBAC on.

    Args:
        nodes: number of fake nodes (KWOK) of 8 GPUs each to start with; any number but None also
            starts kube-scheduler and kwok. Without them pods stay Pending.
        job_seconds: how long the fake nodes run a pod of a Job before it succeeds; None: until
            ``finish_pod`` says how it ends.
        native_gang: serve the native PodGroup API (scheduling.k8s.io/v1beta1), as a cluster
            whose administrator turned it on.
        lease_seconds: how long a node's lease holds; with many nodes, long, as each renews it.
        audited: rules of the audit log that go before those of AUDIT_POLICY.
        address: where the API server listens and is told of to pods; 127.0.0.1 is no way for pods.
        readable_store: store everything in JSON, so that ``store`` shows every object's states.
        roomy: let the API server take up to 8 GiB of memory rather than collect its garbage often.
        worker_logs: what every container of a name prints, in lines, on the fake nodes; what
            ``write_pod_log`` gives a pod stands instead of that.

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
        self.address, self._roomy = address, roomy
        self._worker_logs = worker_logs or {}
        self._readable_store = readable_store
        self._lease_seconds, self._audited = lease_seconds, audited
        self._with_nodes = nodes is not None
        self._job_seconds = job_seconds
        self._native_gang = native_gang
        self.binaries = binaries.find(*self._needed())
        self.folder = Path(tempfile.mkdtemp(prefix="v2w-cluster-"))
        self._keeper = Keeper(self.folder)
        self._running: dict[str, Process] = {}
        try:
            self._create_files()
            self._start()
            for index in range(nodes or 0):
                self.add_node(f"node-{index}")
        except BaseException:
            self.close()
            raise

    def _needed(self) -> tuple[str, ...]:
        """Names of the binaries."""
        return WITH_NODES if self._with_nodes else BASE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything and remove the folder."""
        self._keeper.close()
        self._running.clear()

    # Users

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    def user(self, name: str, *groups: str) -> Api:
        """A user known by a client certificate; it may do what RBAC grants this name and groups."""
        return Api(self.server, self.authority.certificate, self.authority.issue(name, groups))

    def service_account(self, namespace: str, name: str) -> Api:
        """An existing service account, by a token valid for a day."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        asked = {"spec": {"expirationSeconds": 86400}}
        token = self.admin.post(path, asked)["status"]["token"]
        return Api(self.server, self.authority.certificate, token=token)

    def write_kubeconfig(self, api: Api, namespace: str = "default") -> Path:
        """A kubeconfig file for this user; it goes with the cluster."""
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
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # others' are of a megabyte
        definition = yaml.load(path.read_text(), loader)  # noqa: S506
        base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        url = f"{base}/{definition['metadata']['name']}"
        self.admin.patch(f"{url}?fieldManager=control-plane", definition, "apply")
        spec = definition["spec"]
        served = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        self._wait(served, lambda: self.admin.get(served))

    def audit(self, user: str | None = None) -> Iterator[dict[str, Any]]:
        """The audit events so far (verb, objectRef, user, responseStatus, ...), oldest first."""
        with (self.folder / "audit.log").open() as log:
            for line in log:
                if not line.endswith("\n"):
                    return  # being written
                event: dict[str, Any] = json.loads(line)
                if user is None or event["user"]["username"] == user:
                    yield event

    @property
    def processes(self) -> dict[str, int]:
        """The process ids by name."""
        return {name: process.pid for name, process in self._running.items()}

    @property
    def store(self) -> Store:
        """etcd, with every state that there was."""
        return Store(self._etcd_port)

    # Nodes and pods

    def add_node(self, name: str, gpus: int = 8, labels: dict[str, str] | None = None) -> None:
        """Add a fake node with this many ``nvidia.com/gpu``."""
        if not self._with_nodes:
            raise ValueError("this cluster was started without nodes=...: no scheduler, no kwok")
        self.admin.post("/api/v1/nodes", fake_nodes.node(name, gpus, labels or {}))

    def lose_node(self, name: str) -> None:
        """Its fake kubelet falls silent: NotReady after some 30 s; its pods end no more."""
        path = f"/api/v1/nodes/{name}"
        self.admin.patch(path, {"metadata": {"labels": {fake_nodes.MANAGED: None}}})

    def find_node(self, name: str) -> None:
        """Its fake kubelet is there again."""
        path = f"/api/v1/nodes/{name}"
        self.admin.patch(path, {"metadata": {"labels": {fake_nodes.MANAGED: "kwok"}}})

    def add_volumes(self, count: int) -> None:
        """Add volumes that claims without a storage class, of any access mode, are bound to.

        There is no provisioner, and a volume serves one claim only.
        """
        for _ in range(count):
            self.admin.post("/api/v1/persistentvolumes", fake_nodes.VOLUME)

    def finish_pod(self, namespace: str, name: str, exit_code: int = 0) -> None:
        """Let a running pod of a fake node end with this exit code."""
        annotations = {fake_nodes.EXIT_CODE: str(exit_code)}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.admin.patch(path, {"metadata": {"annotations": annotations}})

    def write_pod_log(self, namespace: str, name: str, text: str) -> None:
        """Append whole lines to what the pod log API gives for this pod of a fake node."""
        path = self.folder / "pod-logs" / namespace / f"{name}.log"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            kind = f"/apis/kwok.x-k8s.io/v1alpha1/namespaces/{namespace}/logs"
            self.admin.post(kind, fake_nodes.pod_log(namespace, name, path))
        with path.open("a") as log:
            log.write(fake_nodes.log_lines(text))

    def run(self, name: str, binary: Path, *flags: str | Path) -> Process:
        """Start another process, which ends with the cluster at the latest."""
        return self._keeper.start(name, [binary, *flags])

    # Faults

    def stop_api_server(self, grace: float = 10) -> None:
        """SIGTERM, or SIGKILL when ``grace`` is 0."""
        self._running.pop("kube-apiserver").stop(grace)

    def start_api_server(self) -> None:
        """Start it again at the same address; returns when it is ready."""
        self._run_api_server()

    @contextmanager
    def etcd_paused(self) -> Iterator[None]:
        """While inside, etcd answers nothing: writes hang until the API server gives up on them."""
        self._running["etcd"].signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._running["etcd"].signal(signal.SIGCONT)

    def stop(self, name: str, grace: float = 0) -> None:
        """Stop one other process for good: kube-controller-manager, kube-scheduler or kwok."""
        self._running.pop(name).stop(grace)

    # Starting

    def _create_files(self) -> None:
        self.authority = Authority()
        hosts = (self.address, "localhost", "10.0.0.1", "kubernetes.default.svc")
        served = self.authority.issue("kube-apiserver", hosts=hosts)
        kubelet = self.authority.issue("kube-apiserver-kubelet-client", ("system:masters",))
        fake_kubelet = self.authority.issue("kwok", hosts=("127.0.0.1",))
        for name, text in {
            "ca.pem": self.authority.certificate,
            "server.pem": served.certificate,
            "server.key": served.key,
            "kubelet-client.pem": kubelet.certificate,
            "kubelet-client.key": kubelet.key,
            "kwok.pem": fake_kubelet.certificate,
            "kwok.key": fake_kubelet.key,
            "accounts.key": signing_key(),
            "audit-policy.json": json.dumps(
                {**AUDIT_POLICY, "rules": [*self._audited, *AUDIT_POLICY["rules"]]}
            ),
            "kwok-logs-crd.yaml": json.dumps(fake_nodes.LOGS_CRD),
            "kwok.yaml": fake_nodes.stages(self._job_seconds),
            **{
                f"worker-{name}.log": fake_nodes.log_lines("\n".join(lines))
                for name, lines in self._worker_logs.items()
            },
        }.items():
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_text(text)
        if self._worker_logs:
            logs = {name: self.folder / f"worker-{name}.log" for name in self._worker_logs}
            with (self.folder / "kwok.yaml").open("a") as config:
                config.write(f"---\n{json.dumps(fake_nodes.all_logs(logs))}\n")

    def _start(self) -> None:
        self._choose_ports()
        self._run_etcd()
        self._run_api_server()
        for name in ("kube-controller-manager", "kube-scheduler", "kwok"):
            groups = ("system:masters",) if name == "kwok" else ()
            user = name if name == "kwok" else f"system:{name}"
            self.user(user, *groups).write_kubeconfig(self.folder / f"{name}.kubeconfig")
        self._run_controller_manager()
        if self._with_nodes:
            self._run_scheduler()
            self._run_kwok()
        self._wait("the default service account", lambda: self.admin.get(_DEFAULT_ACCOUNT))

    def _choose_ports(self) -> None:
        self._etcd_port, self._peer_port, self._api_port, self._kwok_port = (
            free_port() for _ in range(4)
        )
        self.server = f"https://{self.address}:{self._api_port}"
        self.admin = self.user("admin", "system:masters")
        self.admin.write_kubeconfig(self.kubeconfig)

    def _launch(self, name: str, *flags: str, environment: Sequence[str] = ()) -> None:
        told = ("env", *environment) if environment else ()
        self._running[name] = self._keeper.start(name, (*told, self.binaries[name], *flags))

    def _run_etcd(self) -> None:
        client = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._launch(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync=true",
            # the API server compacts every five minutes, but not one that is killed more often
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=30m",
            "--log-level=warn",
        )

    def _run_api_server(self) -> None:
        gang = ("--runtime-config=scheduling.k8s.io/v1beta1=true", _GANG_GATE)
        self._launch(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._api_port}",
            f"--tls-cert-file={self.folder / 'server.pem'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.folder / 'ca.pem'}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.folder / 'accounts.key'}",
            f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            *(("--endpoint-reconciler-type=none",) if self.address == "127.0.0.1" else ()),
            "--allow-privileged=true",
            "--profiling=false",
            f"--kubelet-client-certificate={self.folder / 'kubelet-client.pem'}",
            f"--kubelet-client-key={self.folder / 'kubelet-client.key'}",
            f"--kubelet-certificate-authority={self.folder / 'ca.pem'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            f"--audit-log-path={self.folder / 'audit.log'}",
            "--audit-log-maxsize=4096",  # in MiB: never a second file within a test session
            *(gang if self._native_gang else ()),
            *(("--storage-media-type=application/json",) if self._readable_store else ()),
            environment=("GOGC=1000", "GOMEMLIMIT=8GiB") if self._roomy else (),
        )
        self._wait("the API server", lambda: self.admin.get("/readyz"))

    def _run_controller_manager(self) -> None:
        kubeconfig = self.folder / "kube-controller-manager.kubeconfig"
        self._launch(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            f"--root-ca-file={self.folder / 'ca.pem'}",
            "--controllers=*,-node-ipam-controller",
            f"--node-monitor-grace-period={self._lease_seconds}s",
            *_UNTHROTTLED,
            *((_GANG_GATE,) if self._native_gang else ()),
        )

    def _run_scheduler(self) -> None:
        self._launch(
            "kube-scheduler",
            f"--kubeconfig={self.folder / 'kube-scheduler.kubeconfig'}",
            "--leader-elect=false",
            "--secure-port=0",
            *_UNTHROTTLED,
            *((_GANG_GATE,) if self._native_gang else ()),
        )

    def _run_kwok(self) -> None:
        self.install_definition(self.folder / "kwok-logs-crd.yaml")
        self._launch(
            "kwok",
            f"--kubeconfig={self.folder / 'kwok.kubeconfig'}",
            f"--config={self.folder / 'kwok.yaml'}",
            f"--manage-nodes-with-label-selector={fake_nodes.MANAGED}=kwok",
            "--enable-crds=Logs",
            "--node-ip=127.0.0.1",
            f"--node-port={self._kwok_port}",
            f"--server-address=127.0.0.1:{self._kwok_port}",
            f"--tls-cert-file={self.folder / 'kwok.pem'}",
            f"--tls-private-key-file={self.folder / 'kwok.key'}",
            f"--node-lease-duration-seconds={self._lease_seconds}",
        )

    def _wait(self, what: str, probe: Callable[[], Any]) -> None:
        """Until ``probe`` raises no more; fails as soon as one of the processes has ended."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                probe()
                return
            except (ApiError, OSError) as error:
                for process in self._running.values():
                    if not process.alive():
                        raise RuntimeError(
                            f"{process.name} has ended:\n{process.last_words()}"
                        ) from error
                if time.monotonic() > until:
                    logs = "\n".join(
                        f"--- {one.name}\n{one.last_words()}" for one in self._running.values()
                    )
                    raise RuntimeError(
                        f"{what} did not answer within {START_SECONDS:.0f} s ({error})\n{logs}"
                    ) from error
            time.sleep(0.1)


_UNTHROTTLED = ("--kube-api-qps=1000", "--kube-api-burst=2000")  # the machine is the bound
_GANG_GATE = "--feature-gates=GenericWorkload=true"
_DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
