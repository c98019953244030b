"""Check whether the pods of a plan fit on the nodes of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from video2world_operator.api.constants import STAGES
from video2world_operator.api.quantity import quantity
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage
from video2world_operator.preflight.check import (
    VOLUME_REMEDY,
    Check,
    Verdict,
    check_capacity,
    check_gpus,
    check_sample_memory,
)
from video2world_operator.preflight.claim_checks import check_claims
from video2world_operator.preflight.devices import DEVICES, PublishedDevices, publish
from video2world_operator.preflight.facts import (
    UNKNOWN_GPU,
    ClusterFacts,
    DeviceFacts,
    Gpu,
    Object,
)
from video2world_operator.preflight.requirements import ResourceEstimate
from video2world_operator.reconcile.group_size import largest

__all__ = [
    "before_training",
    "check_nodes",
    "container_resources",
    "free_room",
    "parallel_pods",
    "quota_room",
    "sampler_stage",
    "training_gpus",
]

_GPU_LABELS = ("nvidia.com/gpu.product", "nvidia.com/gpu.memory", "nvidia.com/gpu.compute.major")


def before_training(
    plan: Plan,
    estimate: ResourceEstimate,
    nodes: Sequence[Object] | None,
    size: str,
    devices: DeviceFacts | None = None,
) -> Iterator[Check]:
    """Run the checks that the operator has the rights for; ``size`` is that of the PVC."""
    facts = ClusterFacts(plan.namespace, nodes=nodes, devices=devices)
    if size:
        yield check_capacity("volume size", estimate.disk, quantity(size), "", VOLUME_REMEDY)
    yield from check_claims(plan, facts)
    if nodes is not None:
        names = ("train", "inference") if plan.resource.spec.inference.gpus > 1 else ("train",)
        yield from check_nodes(plan, estimate, facts, names)


def check_nodes(
    plan: Plan, estimate: ResourceEstimate, facts: ClusterFacts, names: Sequence[str] = STAGES
) -> Iterator[Check]:
    """Check that the nodes could hold the pods of each stage if nothing else ran on them."""
    if facts.nodes is None:
        text = "no permission to list nodes"
        yield Check("nodes", Verdict.UNKNOWN, text, "kubectl auth can-i list nodes")
        return
    devices = publish(plan, facts)
    for stage in (one for one in plan.stages if one.name in names):
        name, wanted = f"nodes for {stage.name}", parallel_pods(stage)
        requested = _requested(stage, devices)
        kinds = [
            (node, count, _misfit(stage, requested, node))
            for node, count in _distinct_nodes(devices.nodes, stage)
        ]
        fitting = [(node, count) for node, count, misfit in kinds if not misfit]
        room = sum(count * _capacity(requested, node) for node, count in fitting)
        if room < wanted:
            counts: Counter[str] = Counter()
            for _, count, misfit in kinds:
                counts[misfit] += count
            del counts[""]  # of those that fit
            reasons = "; ".join(f"{count} {misfit}" for misfit, count in counts.most_common())
            text = f"there is room for {room} of {wanted} pods on {len(facts.nodes)} nodes"
            usable = plan.resource.spec.usable_nodes
            if stage.name == "train" and (fewer := largest(usable, room)) is not None:
                text += f": training runs on {fewer} of them (spec.training.minNodes)"
                remedy = "add nodes, or lower spec.training.nodes"
                yield Check(name, Verdict.WARN, text, remedy)
                continue
            section = "inference" if stage.name == "inference" else "training"
            remedy = f"change spec.{section} or spec.stages.{stage.name}, or add nodes"
            yield Check(name, Verdict.FAIL, text + (f" ({reasons})" if reasons else ""), remedy)
        elif stage.name == "train":
            text = f"there is room for just {wanted} pods"
            if room > wanted:
                text = f"there is room for {wanted} pods and more"
            claimed = plan.resource.spec.resource_claims(stage.kind)
            if claimed and not devices.amounts.get(stage.kind):
                text += ", apart from the devices that they claim"
            yield Check(name, Verdict.OK, text)
            if plan.resource.spec.device == "GPU":
                yield from check_gpus(plan, estimate, [_gpu(node) for node, _ in fitting])
            if (sampler := sampler_stage(plan)) is not None:
                yield _check_samplers(stage, sampler, devices)
        elif stage.name == "inference":
            yield from _check_inference(plan, estimate, wanted, [_gpu(node) for node, _ in fitting])


def _check_inference(
    plan: Plan, estimate: ResourceEstimate, pods: int, gpus: Sequence[Gpu]
) -> Iterator[Check]:
    """Report what the inference stage needs in all, and check the GPUs' memory."""
    each = plan.resource.spec.inference.gpus
    if each > 1 and plan.resource.spec.device == "GPU":
        text = f"there is room for 1 pod with {each} GPUs"
        if pods > 1:
            text = f"there is room for {pods} pods with {each} GPUs each, {pods * each} in all"
        yield Check("nodes for inference", Verdict.OK, text)
    yield from check_sample_memory(plan, estimate, gpus)


def training_gpus(plan: Plan, facts: ClusterFacts) -> list[Gpu]:
    """Return a GPU of each kind of node that could hold a training pod.

    What is known of it comes from the node's labels or, if it is claimed, from its ResourceSlices.
    """
    stage, devices = plan.stage("train"), publish(plan, facts)
    requested = _requested(stage, devices)
    kinds = [node for node, _ in _distinct_nodes(devices.nodes, stage)]
    return [_gpu(node) for node in kinds if not _misfit(stage, requested, node)]


def sampler_stage(plan: Plan) -> Stage | None:
    """Return the stage that generates samples during training, if the spec asks for it."""
    if not plan.resource.spec.inference.every_checkpoint:
        return None
    return replace(plan.stage("inference"), make=plan.sampling)


def _distinct_nodes(nodes: Sequence[Object], *stages: Stage) -> list[tuple[Object, int]]:
    """Return one of each set of equal nodes, with their number.

    Specs and statuses are compared by identity: comparing their values would take longer than it
    saves.
    """
    names = [*_GPU_LABELS]
    for stage in stages:
        names += stage.job["spec"]["template"]["spec"].get("nodeSelector") or {}
    first: dict[tuple[Any, ...], Object] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        kind = (id(node.get("spec")), id(node.get("status")), *map(labels.get, names))
        first.setdefault(kind, node)
        counts[kind] += 1
    return [(first[kind], count) for kind, count in counts.items()]


def _check_samplers(train: Stage, sampler: Stage, devices: PublishedDevices) -> Check:
    """Check that the sampler's pods fit while all pods of the training group run."""
    requested, sampler_requested = _requested(train, devices), _requested(sampler, devices)
    kinds = _distinct_nodes(devices.nodes, train, sampler)
    rooms = [
        0 if _misfit(train, requested, node) else _capacity(requested, node) for node, _ in kinds
    ]

    @cache
    def left(kind: int, pods: int) -> int:
        """Return how many sampler pods fit on a node next to so many training pods."""
        taken = {name: pods * amount for name, amount in (requested | {"pods": 1}).items()}
        node, _ = kinds[kind]
        return (
            0
            if _misfit(sampler, sampler_requested, node)
            else _capacity(sampler_requested, node, taken)
        )

    # number of nodes, by kind and by training pods on them
    placed = Counter({(kind, 0): count for kind, (_, count) in enumerate(kinds)})
    for _ in range(parallel_pods(train)):  # each where it takes the least room from the sampler
        open_ = [(kind, pods) for (kind, pods), n in placed.items() if n and pods < rooms[kind]]
        kind, pods = min(open_, key=lambda place: left(*place) - left(place[0], place[1] + 1))
        placed[kind, pods] -= 1
        placed[kind, pods + 1] += 1
    room, wanted = sum(n * left(*place) for place, n in placed.items()), parallel_pods(sampler)
    if room >= wanted:
        return Check(
            "nodes for samples", Verdict.OK, f"there is room for {wanted} alongside training"
        )
    text = (
        f"alongside training there is room for {room} of {wanted} pods: samples come late or never"
    )
    remedy = "add a GPU, train on fewer, or use inference.checkpoints instead of everyCheckpoint"
    return Check("nodes for samples", Verdict.WARN, text, remedy)


def free_room(
    stage: Stage, nodes: Sequence[Object], taken: Mapping[str, Mapping[str, float]]
) -> int:
    """Return how many pods of the stage fit on the nodes besides what is ``taken`` on each.

    ``taken`` has the requests of the pods on a node, and their number as ``pods``, by its name.
    """
    requested = _requested(stage)
    return sum(
        max(0, _capacity(requested, node, taken.get(node["metadata"]["name"])))
        for node in nodes
        if not _misfit(stage, requested, node)
    )


def quota_room(stage: Stage, queue: Object, pods: int) -> int | None:
    """Return how many pods of the stage Kueue's ClusterQueue has nominal quota for.

    ``pods`` of them are admitted already. What other queues of the cohort lend is left out. None
    if the queue covers nothing that the stage requests.
    """
    spec, status = queue.get("spec") or {}, queue.get("status") or {}
    if spec.get("stopPolicy", "None") != "None":
        return pods
    used = {
        (flavor["name"], one["name"]): quantity(str(one.get("total", 0)))
        for flavor in status.get("flavorsReservation") or []
        for one in flavor.get("resources") or []
    }
    requested, rooms = _requested(stage), list[int]()
    for group in spec.get("resourceGroups") or []:
        names = [name for name in group["coveredResources"] if requested.get(name)]
        free = [
            min(
                (quantity(str(one["nominalQuota"])) - used.get((flavor["name"], one["name"]), 0))
                // requested[one["name"]]
                for one in flavor["resources"]
                if one["name"] in names
            )
            for flavor in group["flavors"]
            if names
        ]
        rooms += [max(0, int(max(free)))] if free else []
    return pods + min(rooms) if rooms else None


def parallel_pods(stage: Stage) -> int:
    """Return how many pods of the stage run at the same time."""
    return int(stage.job["spec"].get("parallelism", 1))


def _capacity(
    requested: Mapping[str, float], node: Object, taken: Mapping[str, float] | None = None
) -> int:
    """Return how many pods that request ``requested`` fit on a node, besides what is ``taken``."""
    room, used = (node.get("status") or {}).get("allocatable") or {}, taken or {}
    free = {"pods": "110"} | dict(room)
    return int(
        min(
            (quantity(free.get(n, "0")) - used.get(n, 0)) / amount
            for n, amount in {"pods": 1.0, **requested}.items()
            if amount
        )
    )


def _misfit(stage: Stage, requested: Mapping[str, float], node: Object) -> str:
    """Explain why a pod of the stage could never run on the node; empty if it could."""
    pod = stage.job["spec"]["template"]["spec"]
    spec, metadata = node.get("spec") or {}, node["metadata"]
    if spec.get("unschedulable"):
        return "cordoned"
    labels = metadata.get("labels") or {}
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"without the label {key}={value}"
    for taint in spec.get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not any(
            _tolerates(toleration, taint) for toleration in pod.get("tolerations") or []
        ):
            return f"with the taint {taint['key']}"
    room = (node.get("status") or {}).get("allocatable") or {}
    for name, amount in requested.items():
        if quantity(room.get(name, "0")) < amount:
            little = "few" if name.endswith(DEVICES) else "little"
            return f"with too {little} {name} ({room.get(name, 0)})"
    return ""


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    names = ("key", "value")
    return [toleration.get(n, "") for n in names] == [taint.get(n, "") for n in names]


def _requested(stage: Stage, devices: PublishedDevices | None = None) -> dict[str, float]:
    """Return what one pod of the stage requests, by resource name; devices are such a name too."""
    requested = container_resources(stage)
    named = {**requested.get("limits", {}), **requested.get("requests", {})}
    amounts = {name: quantity(value) for name, value in named.items()}
    return {**amounts, **(devices.amounts.get(stage.kind, {}) if devices else {})}


def container_resources(stage: Stage) -> Mapping[str, Mapping[str, str]]:
    """Return the resources of the stage's container; its podTemplate may have removed them."""
    own = stage.job["spec"]["template"]["spec"]["containers"][0].get("resources") or {}
    return {part: own.get(part) or {} for part in ("limits", "requests")}


def _gpu(node: Object) -> Gpu:
    """Read the labels of NVIDIA's GPU feature discovery; what they do not say is unknown."""
    labels = node["metadata"].get("labels") or {}
    product, memory, major = map(labels.get, _GPU_LABELS)
    return Gpu(
        product or UNKNOWN_GPU,
        float(memory) * 2**20 if memory else 0,
        int(major) if major else 0,
    )
