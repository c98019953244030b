"""Count the devices that pods claim, and those that the cluster's ResourceSlices publish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from video2world_operator.api.device_claims import ResourceClaimSpec
from video2world_operator.api.quantity import quantity
from video2world_operator.plan.manifests import gpus_per_pod
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.device_selectors import Selector, parse_selector
from video2world_operator.preflight.facts import ClusterFacts, DeviceFacts, Object

__all__ = [
    "DEVICES",
    "Alternative",
    "DeviceRequest",
    "PublishedDevices",
    "gpu_requests",
    "publish",
    "requests_of",
]

DEVICES = " devices"  # how the names of amounts end

_BLOCKING = ("NoSchedule", "NoExecute")  # effects of a device's taint
_GPU_WORDS = ("gpu", "mig")  # in the name of a DeviceClass or driver


@dataclass(frozen=True)
class Alternative:
    """One way to satisfy a request: ``count`` devices of a class, 0 for all of a node."""

    device_class: str
    count: int
    selectors: tuple[str, ...]
    tolerates: bool  # taints of devices


@dataclass(frozen=True)
class DeviceRequest:
    """A request of a claim template; ``used`` if the stage's container gets its devices."""

    template: str
    name: str
    alternatives: tuple[Alternative, ...]
    used: bool


@dataclass(frozen=True)
class PublishedDevices:
    """The devices that a plan's pods ask for and find.

    ``amounts`` are the devices per pod by stage and name, ``nodes`` those of the cluster with the
    devices of these names among what is allocatable. ``totals`` counts all matching devices,
    ``unbound`` those that no single node owns (taken to be reachable from every node), and
    ``unevaluated`` are the parts of selectors that were taken to be true; all by stage.
    """

    nodes: Sequence[Object]
    amounts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    unbound: Mapping[str, int] = field(default_factory=dict)
    unevaluated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def requests_of(claims: Sequence[ResourceClaimSpec], facts: DeviceFacts) -> Iterator[DeviceRequest]:
    """Yield the requests of the templates of ``claims`` that were found."""
    for claim in claims:
        template = facts.templates.get(claim.resource_claim_template_name)
        devices = ((template or {}).get("spec") or {}).get("spec", {}).get("devices") or {}
        for request in devices.get("requests") or []:
            exact = request.get("exactly") or request  # v1beta1 has the fields in the request
            ways = request.get("firstAvailable") or [exact]
            if exact.get("adminAccess"):
                continue  # such a request allocates nothing
            alternatives = tuple(map(_alternative, ways))
            used = claim.request in (None, request["name"])
            yield DeviceRequest(
                claim.resource_claim_template_name, request["name"], alternatives, used
            )


def _alternative(way: Object) -> Alternative:
    every = way.get("allocationMode") == "All"
    return Alternative(
        way.get("deviceClassName", ""),
        0 if every else int(way.get("count", 1)),
        tuple(_expressions(way.get("selectors"))),
        bool(way.get("tolerations")),
    )


def _expressions(selectors: Sequence[Object] | None) -> Iterator[str]:
    for selector in selectors or ():
        yield (selector.get("cel") or {}).get("expression", "")


def gpu_requests(requests: Sequence[DeviceRequest], facts: DeviceFacts) -> list[DeviceRequest]:
    """Return the requests whose classes or drivers name GPUs; all if none does."""
    used = [request for request in requests if request.used]
    return [one for one in used if any(_names_gpus(a, facts) for a in one.alternatives)] or used


def _names_gpus(way: Alternative, facts: DeviceFacts) -> bool:
    names = [way.device_class, *(one.driver for one in _selectors(way, facts))]
    return any(word in name.lower() for name in names for word in _GPU_WORDS)


def _selectors(way: Alternative, facts: DeviceFacts) -> list[Selector]:
    """Return the selectors of a request and of its class."""
    known = ((facts.classes or {}).get(way.device_class) or {}).get("spec") or {}
    return [parse_selector(e) for e in (*_expressions(known.get("selectors")), *way.selectors)]


# ---------------------------------------------------------------------- what is published


def publish(plan: Plan, facts: ClusterFacts) -> PublishedDevices:
    """Count the devices for each stage of ``plan`` that claims some."""
    devices, nodes = facts.devices, facts.nodes or ()
    if devices is None or devices.slices is None:
        return PublishedDevices(nodes)
    slices = _current(devices.slices)
    amounts: dict[str, dict[str, float]] = {}
    on_nodes: dict[str, Counter[str]] = {}  # by name, then by node
    totals, unbound, unevaluated = Counter[str](), Counter[str](), dict[str, tuple[str, ...]]()
    labels: dict[str, dict[str, str]] = {}
    for stage in plan.stages:
        claims = plan.resource.spec.resource_claims(stage.kind)
        wanted, rest = amounts.setdefault(stage.name, {}), list[str]()
        for request in requests_of(claims, devices):
            name = " or ".join(dict.fromkeys(way.device_class for way in request.alternatives))
            if any(way.selectors for way in request.alternatives):
                name += f" ({request.template}/{request.name})"
            name += DEVICES
            every = gpus_per_pod(plan.resource, stage.kind)
            wanted[name] = wanted.get(name, 0) + (request.alternatives[0].count or every)
            best = Counter[str]()
            for way in request.alternatives:
                selectors = _selectors(way, devices)
                rest += [part for selector in selectors for part in selector.rest]
                found = list(_matching(slices, selectors, tolerates=way.tolerates))
                best |= Counter(node for node, _ in found)
                for node, device in found:
                    labels.setdefault(node, _labels(device))
            on_nodes[name] = best
            totals[stage.name] += best.total()
            unbound[stage.name] += best[""]
        unevaluated[stage.name] = tuple(dict.fromkeys(rest))
    extended = list(_extended(nodes, on_nodes, labels))
    return PublishedDevices(extended, amounts, totals, unbound, unevaluated)


def _current(slices: Iterable[Object]) -> list[Object]:
    """Return the slices of the newest generation of each pool."""
    newest: dict[tuple[str, str], int] = {}
    for one in slices:
        key, generation = _pool(one["spec"])
        newest[key] = max(newest.get(key, generation), generation)
    pools = ((one, *_pool(one["spec"])) for one in slices)
    return [one for one, key, generation in pools if newest[key] == generation]


def _pool(spec: Object) -> tuple[tuple[str, str], int]:
    pool = spec.get("pool") or {}
    return (spec.get("driver", ""), pool.get("name", "")), int(pool.get("generation", 0))


def _matching(
    slices: Sequence[Object], selectors: Sequence[Selector], *, tolerates: bool
) -> Iterator[tuple[str, Object]]:
    """Yield node (empty: no single one) and content of each device that may match."""
    for one in slices:
        spec = one["spec"]
        for named in spec.get("devices") or []:
            device = named.get("basic") or named  # v1beta1 has the fields in basic
            tainted = any(t.get("effect") in _BLOCKING for t in device.get("taints") or ())
            if tainted and not tolerates:
                continue
            attributes = device.get("attributes") or {}
            if all(one.matches(spec.get("driver", ""), attributes) for one in selectors):
                yield spec.get("nodeName") or device.get("nodeName") or "", device


def _labels(device: Object) -> dict[str, str]:
    """Return what NVIDIA's driver says of a GPU, as the labels of GPU feature discovery."""
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    product = (attributes.get("productName") or {}).get("string")
    version = (attributes.get("cudaComputeCapability") or {}).get("version")
    memory = (capacity.get("memory") or {}).get("value")
    return {
        **({"nvidia.com/gpu.product": product} if product else {}),
        **({"nvidia.com/gpu.compute.major": version.partition(".")[0]} if version else {}),
        **({"nvidia.com/gpu.memory": str(int(quantity(memory) / 2**20))} if memory else {}),
    }


def _extended(
    nodes: Sequence[Object],
    on_nodes: Mapping[str, Counter[str]],
    labels: Mapping[str, Mapping[str, str]],
) -> Iterator[Object]:
    """Yield the nodes with their devices; equal statuses stay one object, as node_fit needs."""
    same: dict[Any, Object] = {}
    for node in nodes:
        metadata, status = node["metadata"], node.get("status") or {}
        name = metadata.get("name", "")
        found = {key: counts[name] + counts[""] for key, counts in on_nodes.items()}
        room = {key: str(count) for key, count in found.items() if count}
        more = {k: v for k, v in labels.get(name, {}).items() if room}
        if room:
            key = (id(node.get("status")), *sorted(room.items()))
            allocatable = {**(status.get("allocatable") or {}), **room}
            status = same.setdefault(key, {**status, "allocatable": allocatable})
            known = {**more, **(metadata.get("labels") or {})}
            node = {**node, "metadata": {**metadata, "labels": known}, "status": status}
        yield node
