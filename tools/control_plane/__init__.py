"""Run a real Kubernetes control plane on loopback, for tests, benchmarks and ``make cluster``.

``with Cluster() as cluster:`` starts etcd, kube-apiserver and kube-controller-manager in a few
seconds and leaves nothing behind, however the process ends. Linux only.
"""

from .api import Api, ApiError
from .binaries import Unavailable
from .cluster import Cluster
from .store import Change, Store

__all__ = ["Api", "ApiError", "Change", "Cluster", "Store", "Unavailable"]
