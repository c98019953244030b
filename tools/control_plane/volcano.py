"""Run Volcano's scheduler and controllers beside a cluster, with its CRDs and default queue."""

from __future__ import annotations

from . import binaries
from .cluster import Cluster

__all__ = ["Volcano"]

QUEUES = "/apis/scheduling.volcano.sh/v1beta1/queues"
# Volcano's default configuration (installer/volcano-development.yaml of the module).
_CONFIGURATION = """\
actions: "enqueue, allocate, backfill"
tiers:
- plugins:
  - name: priority
  - name: gang
    enablePreemptable: false
  - name: conformance
- plugins:
  - name: overcommit
  - name: drf
    enablePreemptable: false
  - name: predicates
  - name: proportion
  - name: nodeorder
  - name: binpack
"""
# What these two read; those of Volcano's own Jobs are a megabyte each.
_KINDS = (
    "scheduling.volcano.sh_podgroups.yaml",
    "scheduling.volcano.sh_queues.yaml",
    "bus.volcano.sh_commands.yaml",
    "topology.volcano.sh_hypernodes.yaml",
    "nodeinfo.volcano.sh_numatopologies.yaml",
)
_UNTHROTTLED = ("--leader-elect=false", "--kube-api-qps=2000", "--kube-api-burst=2000")


class Volcano:
    """Volcano beside a running cluster, as administrator and without its webhooks.

    It ends with the cluster.

    Raises:
        Unavailable: a binary can neither be found nor built.
        RuntimeError: a process did not come up.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._binaries = binaries.find(*binaries.VOLCANO)
        module = binaries.installed_files(binaries.ALL["volcano-scheduler"])
        for kind in _KINDS:
            cluster.install_definition(module / "config" / "crd" / "volcano" / "bases" / kind)
        for name in binaries.VOLCANO:
            user = cluster.user(name, "system:masters")
            user.write_kubeconfig(cluster.folder / f"{name}.kubeconfig")
        (cluster.folder / "volcano-scheduler.conf").write_text(_CONFIGURATION)
        self.start("volcano-controller-manager")
        self.start("volcano-scheduler")
        cluster.components.wait("Volcano's default queue", lambda: self._open("default"))

    @property
    def version(self) -> str:
        """Volcano's version, without its ``v``."""
        return binaries.ALL["volcano-scheduler"].version

    def start(self, name: str) -> None:
        """Start the scheduler or the controllers."""
        folder = self._cluster.folder
        own = {
            "volcano-scheduler": (
                f"--scheduler-conf={folder / 'volcano-scheduler.conf'}",
                "--schedule-period=200ms",
                "--cache-dumper=false",
            ),
            "volcano-controller-manager": ("--controllers=+pg-controller,+queue-controller",),
        }
        flags = (f"--kubeconfig={folder / f'{name}.kubeconfig'}", *_UNTHROTTLED, *own[name])
        self._cluster.components.start_command(name, (self._binaries[name], *flags))

    def stop(self, name: str, grace: float = 0) -> None:
        """Stop the scheduler or the controllers; ``start`` starts them again."""
        self._cluster.stop(name, grace)

    def set_queue(self, name: str, gpus: int) -> None:
        """Create or change a queue whose pods have at most ``gpus`` GPUs at a time."""
        path = f"{QUEUES}/{name}?fieldManager=control-plane&force=true"
        queue = {
            "apiVersion": "scheduling.volcano.sh/v1beta1",
            "kind": "Queue",
            "metadata": {"name": name},
            "spec": {"capability": {"nvidia.com/gpu": str(gpus)}},
        }
        self._cluster.admin.patch(path, queue, "apply")
        self._cluster.components.wait(f"Volcano's queue {name}", lambda: self._open(name))

    def _open(self, name: str) -> None:
        queue = self._cluster.admin.get(f"{QUEUES}/{name}")
        if (state := (queue.get("status") or {}).get("state")) != "Open":
            raise ConnectionError(f"it is {state or 'new'}")
