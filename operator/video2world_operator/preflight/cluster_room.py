"""Count how many nodes an elastic training group could have: by free nodes, and quota of Kueue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from video2world_operator.api.quantity import quantity
from video2world_operator.api.status import Status
from video2world_operator.kube.client import SMALL_PAGE, ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.labels import RESOURCE_LABEL, STAGE_LABEL
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.node_fit import free_room, quota_room

__all__ = ["ClusterRoom", "pod_requests", "wants_room"]

Object = Mapping[str, Any]
Key = tuple[str, str]  # namespace and name of a resource
PODS = "/api/v1/pods"
ON_NODES = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
MIN_AGE = 2.0  # seconds for which a listing is used again
SHARE = 0.1  # of the time may be spent on listing nodes and pods


def wants_room(status: Status) -> bool:
    """Return whether it matters how many nodes the group could have: it has not got all."""
    size = status.group_size
    return size is not None and (size.waiting_since is not None or size.running < size.asked)


class ClusterRoom:
    """Count the nodes that training groups could have.

    Nodes and pods of the whole cluster are listed, at most for :data:`SHARE` of the time, and only
    while a group lacks nodes; without the rights the number is unknown.
    """

    def __init__(self, api: ApiClient) -> None:
        self.may_list = False  # nodes, and pods of all namespaces
        self._api = api
        self._nodes: Sequence[Object] | None = None
        self._taken: dict[str, Counter[str]] = {}  # requests, by node
        self._groups: dict[Key, dict[str, Counter[str]]] = {}  # those of training groups
        self._next = float("-inf")
        self._listing = asyncio.Lock()

    async def count(self, key: Key, plan: Plan, status: Status, served: Capabilities) -> int | None:
        """Return how many nodes the group of the resource ``key`` could have; None: unknown."""
        if not wants_room(status) or status.stage != "train":
            return None
        rooms = [await self._on_nodes(key, plan), await self._in_queue(plan, status, served)]
        known = [room for room in rooms if room is not None]
        return min(known, default=None)

    async def _on_nodes(self, key: Key, plan: Plan) -> int | None:
        if not self.may_list or plan.resource.spec.resource_claims("train"):
            return None  # pods do not say which devices they hold
        async with self._listing:
            if time.monotonic() >= self._next:
                with contextlib.suppress(ApiError, OSError):
                    await self._list()
        if self._nodes is None:
            return None
        taken = dict(self._taken)
        for node, requests in self._groups.get(key, {}).items():
            taken[node] = Counter(taken[node])
            taken[node].subtract(requests)
        try:
            return free_room(plan.stage("train"), self._nodes, taken)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return None  # a user's pod template can be anything; the API server validates it

    async def _list(self) -> None:
        began = time.monotonic()
        nodes = [
            {
                "metadata": {"name": n["metadata"]["name"], "labels": n["metadata"].get("labels")},
                "spec": n.get("spec") or {},
                "status": {"allocatable": (n.get("status") or {}).get("allocatable") or {}},
            }
            async for n in self._api.list_objects("/api/v1/nodes", page=SMALL_PAGE)
        ]
        taken: dict[str, Counter[str]] = defaultdict(Counter)
        groups: dict[Key, dict[str, Counter[str]]] = {}
        async for pod in self._api.list_objects(PODS, page=SMALL_PAGE, fieldSelector=ON_NODES):
            metadata, node = pod["metadata"], pod["spec"]["nodeName"]
            requests = pod_requests(pod["spec"])
            taken[node].update(requests)
            labels = metadata.get("labels") or {}
            if labels.get(STAGE_LABEL) == "train" and RESOURCE_LABEL in labels:
                key = (metadata["namespace"], labels[RESOURCE_LABEL])
                groups.setdefault(key, defaultdict(Counter))[node].update(requests)
        self._nodes, self._taken, self._groups = nodes, dict(taken), groups
        ended = time.monotonic()
        self._next = ended + max(MIN_AGE, (ended - began) / SHARE)

    async def _in_queue(self, plan: Plan, status: Status, served: Capabilities) -> int | None:
        """Return the nodes that the queue's quota has room for; None without a queue, or rights."""
        queue = plan.resource.spec.scheduling.queue_name
        path = served.path(OptionalApi.LOCAL_QUEUE, plan.namespace, queue or "")
        if not (queue and path):
            return None
        base = f"/apis/{served.api_version(OptionalApi.LOCAL_QUEUE)}"
        with contextlib.suppress(ApiError, OSError, LookupError, TypeError, ValueError):
            local = await self._api.get_if_allowed(path)
            name = ((local or {}).get("spec") or {}).get("clusterQueue")
            found = await self._api.get_if_allowed(f"{base}/clusterqueues/{name}") if name else None
            entry = status.stage_status("train")
            if found is not None and entry is not None:
                admitted = entry.desired if entry.active else 0
                return quota_room(plan.stage("train"), found, admitted)
        return None


def pod_requests(spec: Object) -> Counter[str]:
    """Return what a pod requests of its node, and ``pods``: 1.

    Init containers run one after the other before the others; those that restart run along
    (https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers).
    """
    total: Counter[str] = Counter({"pods": 1})
    total.update(_quantities(spec.get("overhead")))
    for container in spec.get("containers") or []:
        total.update(_requests(container))
    most: Counter[str] = Counter()
    sidecars: Counter[str] = Counter()
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars.update(_requests(container))
        else:
            most |= sidecars + _requests(container)
    total.update(sidecars)
    return total | most


def _requests(container: Object) -> Counter[str]:
    return _quantities((container.get("resources") or {}).get("requests"))


def _quantities(amounts: Object | None) -> Counter[str]:
    return Counter({name: quantity(str(value)) for name, value in (amounts or {}).items()})
