"""Give faults access to what they act on: testbed, watched namespace and resources."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from control_plane import Api, ApiError, Cluster
from video2world_operator.api.constants import GROUP, PLURAL, VERSION

from .etcd_watcher import EtcdWatcher
from .schedule import Body, Fault
from .testbed import Testbed

__all__ = ["Target", "choose", "for_each", "retry"]


@dataclass
class Target:
    """A testbed and the namespace of one trial on it."""

    testbed: Testbed
    watcher: EtcdWatcher
    namespace: str
    bodies: Mapping[str, Body]  # the trial's resources by name, as applied
    lost_nodes: list[str] = field(default_factory=list)  # nodes lost until the end of the trial
    nodes_lock: threading.Lock = field(default_factory=threading.Lock)
    nodes_added: int = 0
    queue: str = ""  # Kueue's ClusterQueue

    @property
    def cluster(self) -> Cluster:
        """The testbed's cluster."""
        return self.testbed.cluster

    @property
    def api(self) -> Api:
        """The administrator's API client."""
        return self.testbed.cluster.admin

    @property
    def resources_path(self) -> str:
        """URL path of the trial's resources."""
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"


def choose(objects: Sequence[Body], fault: Fault, rng: random.Random) -> list[str]:
    """Draw the names of the fault's share of ``objects``."""
    names = [one["metadata"]["name"] for one in objects]
    return sorted(rng.sample(names, round(fault.options["share"] * len(names))))


def for_each(names: Sequence[str], act: Callable[[str], Any]) -> str:
    """Call ``act`` for each name; objects may be gone and the server unreachable by now."""
    done = 0
    for name in names:
        with contextlib.suppress(ApiError, OSError):
            act(name)
            done += 1
    return f"{done} of {len(names)}"


def retry(act: Callable[[], Any], seconds: float = 60) -> None:
    """Retry until ``act`` succeeds: another fault may be in progress when one ends."""
    until = time.monotonic() + seconds
    while True:
        try:
            act()
            return
        except (ApiError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
