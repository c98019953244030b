"""Run a cluster with one real node: kubelet, containerd, runc, CNI, kube-proxy and CoreDNS.

It must run inside :mod:`.sandbox`: it uses fixed addresses and has no outgoing network. A local
registry serves it the images from buildah's store.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from . import binaries, registry_blobs, sandbox
from .api import ApiError
from .cluster import BASE, Cluster

NAME = "node-1"
PODS = "10.244.0.0/24"  # pod addresses; services use 10.0.0.0/24
PAUSE = "ghcr.io/video2world/pause:1"  # keeps a pod's namespaces open; anything that sleeps
BINARIES = (*BASE, "kube-scheduler", "helm", *binaries.NODE)
PLUGINS = "/usr/lib/cni"  # of Debian's package containernetworking-plugins
NAMESPACE = "k8s.io"  # of containerd, in which the kubelet looks for images
_REGISTRY = "127.0.0.1:5000"


class NodeCluster(Cluster):
    """A :class:`Cluster` whose only node runs real containers.

    Args:
        images: full names of images in buildah's store. They are pulled before anything runs,
            from a local mirror of the registry in their names, and stay cached for the next node.

    Raises:
        RuntimeError: it does not run in a sandbox, or a process did not start.
    """

    def __init__(self, images: Sequence[str]) -> None:
        folder = os.environ.get(sandbox.FOLDER)
        if not folder:
            raise RuntimeError("a node runs only inside `python -m control_plane.sandbox`")
        self._base, self._images = Path(folder), images
        super().__init__(address=sandbox.NODE_ADDRESS)

    def _needed(self) -> tuple[str, ...]:
        return BINARIES

    def _start(self) -> None:
        super()._start()
        self._run_containerd()
        self._run_registry()
        self._pull_images()
        self._run("kube-scheduler")
        self._run_kubelet()
        self._run_proxy()
        self._run_name_server()
        self.components.wait("the node", self._node_ready)

    def add_volume(self, claim: str, namespace: str, mebibytes: int | None = None) -> Path:
        """Create a volume for a PVC in a folder of this machine, and return the folder.

        With a size, the folder is a separate file system of that size.
        """
        folder = self.folder / "volumes" / claim
        folder.mkdir(parents=True)
        if mebibytes:
            options = f"size={mebibytes}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", folder], check=True)
        spec = {
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": namespace, "name": claim},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        manifest = {"apiVersion": "v1", "kind": "PersistentVolume", "spec": spec}
        self.admin.post("/api/v1/persistentvolumes", manifest | {"metadata": {"name": claim}})
        return folder

    # containerd

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self._base / "run" / "containerd.sock"

    def ctr(self, *arguments: str) -> str:
        """Run containerd's command line tool and return its output."""
        command = ["ctr", f"--address={self.socket}", f"--namespace={NAMESPACE}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _run_containerd(self) -> None:
        networks = self.folder / "cni"
        networks.mkdir()
        (networks / "10-bridge.conflist").write_text(json.dumps(_NETWORK))
        config = self.folder / "containerd.toml"
        registries = self.folder / "registries"
        config.write_text(
            _CONTAINERD.format(
                networks=networks, pause=PAUSE, plugins=PLUGINS, registries=registries
            )
        )
        self.components.start_command(
            "containerd",
            [
                "containerd",
                f"--config={config}",
                f"--root={self._base / 'cache' / 'containerd'}",
                f"--state={self._base / 'run' / 'containerd'}",
                f"--address={self.socket}",
            ],
        )
        self.components.wait("containerd", lambda: self.ctr("version"))
        for container in self.ctr("containers", "list", "--quiet").split():  # left by a killed run
            self.ctr("containers", "remove", container)

    def _run_registry(self) -> None:
        blobs = self._base / "cache" / "registry"
        blobs.mkdir(exist_ok=True)
        self.components.start(
            "crane", "registry", "serve", f"--disk={blobs}", f"--address={_REGISTRY}"
        )
        self.components.wait(
            "the registry", lambda: urllib.request.urlopen(f"http://{_REGISTRY}/v2/")
        )

    def _pull_images(self) -> None:
        hosts = self.folder / "registries"
        for image in self._images:
            host, _, path = image.partition("/")
            (hosts / host).mkdir(parents=True, exist_ok=True)
            mirror = f'[host."http://{_REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'
            (hosts / host / "hosts.toml").write_text(f'server = "http://{_REGISTRY}"\n{mirror}')
            # Known blobs are not sent again; zstd, because gzip takes minutes per GB.
            push = ["buildah", "push", "--quiet", "--tls-verify=false", "--format=oci"]
            push += ["--compression-format=zstd", "--compression-level=1"]
            done = subprocess.run(
                [*push, image, f"docker://{_REGISTRY}/{path}"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"buildah push {image}: {done.stderr.strip()}")
            self.ctr("images", "pull", f"--hosts-dir={hosts}", image)
        self._drop_old_images()

    def _drop_old_images(self) -> None:
        """Remove what only earlier builds of the images had: tens of GB after some days."""
        # also by digest and by id, as which the kubelet's pulls are recorded
        rows = [line.split() for line in self.ctr("images", "list").splitlines()[1:]]
        current = {digest for name, _, digest, *_ in rows if name in self._images}
        for name, _, digest, *_ in rows:
            if digest not in current:
                self.ctr("images", "remove", "--sync", name)
        registry_blobs.prune(
            self._base / "cache" / "registry",
            f"http://{_REGISTRY}",
            [image.partition("/")[2] for image in self._images],
        )

    # Kubernetes

    def _run_kubelet(self) -> None:
        user = self.user(f"system:node:{NAME}", "system:nodes")
        user.write_kubeconfig(self.folder / "kubelet.kubeconfig")
        served = self.authority.issue(NAME, hosts=(self.address, NAME))
        for name, text in {"kubelet.pem": served.certificate, "kubelet.key": served.key}.items():
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_text(text)
        (self.folder / "resolv.conf").write_text("")
        config = self.folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(self._kubelet_configuration()))
        self.components.start(
            "kubelet",
            f"--config={config}",
            f"--kubeconfig={self.folder / 'kubelet.kubeconfig'}",
            f"--hostname-override={NAME}",
            f"--node-ip={self.address}",
            f"--root-dir={self.folder / 'kubelet'}",
        )

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.folder / "ca.pem")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": str(self.folder / "kubelet.pem"),
            "tlsPrivateKeyFile": str(self.folder / "kubelet.key"),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{sandbox.CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,  # lowering it needs CAP_SYS_RESOURCE
            "clusterDNS": [self.address],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.folder / "resolv.conf"),
            "podLogsDir": str(self._base / "run" / "pod-logs"),
            "volumePluginDir": str(self.folder / "volume-plugins"),
            # Developers' machines are often nearly full, which must not evict pods.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
        }

    def _run_proxy(self) -> None:
        user = self.user("system:kube-proxy", "system:node-proxier")
        kubeconfig = user.write_kubeconfig(self.folder / "kube-proxy.kubeconfig")
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": NAME,
            "clusterCIDR": PODS,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "conntrack": {"maxPerCore": 0, "min": 0},  # keep the machine's limits
        }
        path = self.folder / "kube-proxy.yaml"
        path.write_text(yaml.safe_dump(config))
        self.components.start("kube-proxy", f"--config={path}")

    def _run_name_server(self) -> None:
        kubeconfig = self.user("coredns", "system:masters").write_kubeconfig(
            self.folder / "coredns.kubeconfig"
        )
        path = self.folder / "Corefile"
        path.write_text(_COREFILE % {"address": self.address, "kubeconfig": kubeconfig})
        self.components.start("coredns", f"-conf={path}")

    def _node_ready(self) -> None:
        node = self.admin.get(f"/api/v1/nodes/{NAME}")
        ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
        if ready["status"] != "True":
            raise ApiError("GET", NAME, 503, {"message": ready["message"]})


_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}

# Without restrict_oom_score_adj runc needs CAP_SYS_RESOURCE, which virtual machines may lack.
_CONTAINERD = """\
version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{registries}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
"""

_COREFILE = """\
.:53 {
    bind %(address)s
    errors
    kubernetes cluster.local {
        kubeconfig %(kubeconfig)s
    }
}
"""
