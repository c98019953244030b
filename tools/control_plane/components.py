"""Write the files and command lines that a control plane's components are started with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import fake_nodes
from .certificates import Authority, signing_key
from .processes import free_port

__all__ = ["Ports", "Settings", "environment", "flags", "write_files"]

# Log every request except the control plane's own, without bodies: who used which verb on what.
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

_UNTHROTTLED = ("--kube-api-qps=1000", "--kube-api-burst=2000")  # the machine is the limit
_GANG_GATE = "--feature-gates=GenericWorkload=true"


@dataclass(frozen=True)
class Settings:
    """How a cluster is set up; see :class:`.Cluster` for the meaning of each."""

    with_nodes: bool = False
    job_seconds: float | None = None
    native_gang: bool = False
    lease_seconds: int = 20
    audited: Sequence[dict[str, Any]] = ()
    address: str = "127.0.0.1"
    readable_store: bool = False
    roomy: bool = False
    worker_logs: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ports:
    """Free loopback ports of one cluster."""

    etcd: int = field(default_factory=free_port)
    etcd_peer: int = field(default_factory=free_port)
    api: int = field(default_factory=free_port)
    kwok: int = field(default_factory=free_port)


def write_files(folder: Path, authority: Authority, settings: Settings) -> None:
    """Write keys, certificates and configuration, readable by their owner only."""
    hosts = (settings.address, "localhost", "10.0.0.1", "kubernetes.default.svc")
    served = authority.issue("kube-apiserver", hosts=hosts)
    kubelet = authority.issue("kube-apiserver-kubelet-client", ("system:masters",))
    fake_kubelet = authority.issue("kwok", hosts=("127.0.0.1",))
    rules = [*settings.audited, *AUDIT_POLICY["rules"]]
    files = {
        "ca.pem": authority.certificate,
        "server.pem": served.certificate,
        "server.key": served.key,
        "kubelet-client.pem": kubelet.certificate,
        "kubelet-client.key": kubelet.key,
        "kwok.pem": fake_kubelet.certificate,
        "kwok.key": fake_kubelet.key,
        "accounts.key": signing_key(),
        "audit-policy.json": json.dumps({**AUDIT_POLICY, "rules": rules}),
        "kwok-logs-crd.yaml": json.dumps(fake_nodes.LOGS_CRD),
        "kwok.yaml": fake_nodes.stages(settings.job_seconds),
    }
    logs = {name: folder / f"worker-{name}.log" for name in settings.worker_logs}
    for name, lines in settings.worker_logs.items():
        files[logs[name].name] = fake_nodes.log_lines("\n".join(lines))
    if logs:
        files["kwok.yaml"] += f"---\n{json.dumps(fake_nodes.all_logs(logs))}\n"
    for name, text in files.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)


def flags(component: str, folder: Path, ports: Ports, settings: Settings) -> list[str]:
    """Return the command line flags of a component."""
    return _FLAGS[component](folder, ports, settings)


def environment(component: str, settings: Settings) -> tuple[str, ...]:
    """Return the additional NAME=VALUE pairs of a component's environment."""
    if component == "kube-apiserver" and settings.roomy:
        return ("GOGC=1000", "GOMEMLIMIT=8GiB")
    return ()


def _etcd(folder: Path, ports: Ports, settings: Settings) -> list[str]:
    client, peer = f"http://127.0.0.1:{ports.etcd}", f"http://127.0.0.1:{ports.etcd_peer}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync=true",
        # the API server compacts every five minutes, but never if it is killed more often
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=30m",
        "--log-level=warn",
    ]


def _api_server(folder: Path, ports: Ports, settings: Settings) -> list[str]:
    gang = ("--runtime-config=scheduling.k8s.io/v1beta1=true", _GANG_GATE)
    return [
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        f"--bind-address={settings.address}",
        f"--advertise-address={settings.address}",
        f"--secure-port={ports.api}",
        f"--tls-cert-file={folder / 'server.pem'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--client-ca-file={folder / 'ca.pem'}",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'accounts.key'}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        *(("--endpoint-reconciler-type=none",) if settings.address == "127.0.0.1" else ()),
        "--allow-privileged=true",
        "--profiling=false",
        f"--kubelet-client-certificate={folder / 'kubelet-client.pem'}",
        f"--kubelet-client-key={folder / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={folder / 'ca.pem'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={folder / 'audit-policy.json'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-maxsize=4096",  # MiB: never a second file within a test session
        *(gang if settings.native_gang else ()),
        *(("--storage-media-type=application/json",) if settings.readable_store else ()),
    ]


def _controller_manager(folder: Path, ports: Ports, settings: Settings) -> list[str]:
    return [
        f"--kubeconfig={folder / 'kube-controller-manager.kubeconfig'}",
        "--leader-elect=false",
        "--secure-port=0",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={folder / 'accounts.key'}",
        f"--root-ca-file={folder / 'ca.pem'}",
        "--controllers=*,-node-ipam-controller",
        f"--node-monitor-grace-period={settings.lease_seconds}s",
        *_UNTHROTTLED,
        *((_GANG_GATE,) if settings.native_gang else ()),
    ]


def _scheduler(folder: Path, ports: Ports, settings: Settings) -> list[str]:
    return [
        f"--kubeconfig={folder / 'kube-scheduler.kubeconfig'}",
        "--leader-elect=false",
        "--secure-port=0",
        *_UNTHROTTLED,
        *((_GANG_GATE,) if settings.native_gang else ()),
    ]


def _kwok(folder: Path, ports: Ports, settings: Settings) -> list[str]:
    return [
        f"--kubeconfig={folder / 'kwok.kubeconfig'}",
        f"--config={folder / 'kwok.yaml'}",
        f"--manage-nodes-with-label-selector={fake_nodes.MANAGED}=kwok",
        "--enable-crds=Logs",
        "--node-ip=127.0.0.1",
        f"--node-port={ports.kwok}",
        f"--server-address=127.0.0.1:{ports.kwok}",
        f"--tls-cert-file={folder / 'kwok.pem'}",
        f"--tls-private-key-file={folder / 'kwok.key'}",
        f"--node-lease-duration-seconds={settings.lease_seconds}",
    ]


_FLAGS = {
    "etcd": _etcd,
    "kube-apiserver": _api_server,
    "kube-controller-manager": _controller_manager,
    "kube-scheduler": _scheduler,
    "kwok": _kwok,
}
