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
from video2world_operator.preflight.check import _MORE_ROOM, Check, Verdict, _enough, _kind
from video2world_operator.preflight.facts import ClusterFacts, Gpu, Object
from video2world_operator.preflight.requirements import Needs

__all__ = ["before_training"]

_GPU_LABELS = ("nvidia.com/gpu.product", "nvidia.com/gpu.memory", "nvidia.com/gpu.compute.major")


def before_training(
    plan: Plan, need: Needs, nodes: Sequence[Object] | None, size: str
) -> Iterator[Check]:
    """For the operator: what it may look at, before a GPU is held. ``size`` is the claim's."""
    if size:
        yield _enough("volume size", need.disk, quantity(size), "", _MORE_ROOM)
    if nodes is not None:
        yield from _nodes(plan, need, ClusterFacts(plan.namespace, nodes=nodes), ("train",))


def _nodes(
    plan: Plan, need: Needs, seen: ClusterFacts, names: Sequence[str] = STAGES
) -> Iterator[Check]:
    """Whether the nodes could hold the pods of each stage if nothing else ran on them."""
    if seen.nodes is None:
        text = "nodes may not be listed"
        yield Check("nodes", Verdict.UNKNOWN, text, "kubectl auth can-i list nodes")
        return
    for stage in (one for one in plan.stages if one.name in names):
        name, wanted = f"nodes for {stage.name}", _pods(stage)
        asked = _asked(stage)
        kinds = [
            (node, count, _misfit(stage, asked, node)) for node, count in _kinds(seen.nodes, stage)
        ]
        fitting = [(node, count) for node, count, misfit in kinds if not misfit]
        room = sum(count * _room(asked, node) for node, count in fitting)
        if room < wanted:
            counts: Counter[str] = Counter()
            for _, count, misfit in kinds:
                counts[misfit] += count
            del counts[""]  # of those that fit
            told = "; ".join(f"{count} {misfit}" for misfit, count in counts.most_common())
            text = f"there is room for {room} of {wanted} pods on {len(seen.nodes)} nodes"
            remedy = f"change spec.training or spec.stages.{stage.name}, or add nodes"
            yield Check(name, Verdict.FAIL, text + (f" ({told})" if told else ""), remedy)
        elif stage.name == "train":
            yield Check(
                name,
                Verdict.OK,
                f"there is room for {wanted} pods and more"
                if room > wanted
                else f"there is room for just {wanted} pods",
            )
            if plan.resource.spec.device == "GPU":
                yield from _kind(plan, need, [_gpu(node) for node, _ in fitting])
            if (sampler := _sampler(plan)) is not None:
                yield _beside(stage, sampler, seen.nodes)


def _sampler(plan: Plan) -> Stage | None:
    """What makes the samples of each checkpoint while training goes on, if anything does."""
    if not plan.resource.spec.inference.every_checkpoint:
        return None
    return replace(plan.stage("inference"), make=plan.sampling)


def _kinds(nodes: Sequence[Object], *stages: Stage) -> list[tuple[Object, int]]:
    """One node of each kind of which nothing here can tell the others, and how many there are. What
    is alike in spec or status is known by its being one object: compared they would take longer
    than what is saved."""
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


def _beside(train: Stage, sampler: Stage, nodes: Sequence[Object]) -> Check:
    """Whether the sampler's pods find room while all pods of the train group run."""
    asked, beside = _asked(train), _asked(sampler)
    kinds = _kinds(nodes, train, sampler)
    rooms = [0 if _misfit(train, asked, node) else _room(asked, node) for node, _ in kinds]

    @cache
    def left(kind: int, pods: int) -> int:
        """Pods of the sampler for which a node has room with so many of the train group."""
        taken = {name: pods * amount for name, amount in (asked | {"pods": 1}).items()}
        node, _ = kinds[kind]
        return 0 if _misfit(sampler, beside, node) else _room(beside, node, taken)

    # nodes by their kind and how many pods of the train group they have
    placed = Counter({(kind, 0): count for kind, (_, count) in enumerate(kinds)})
    for _ in range(_pods(train)):  # each where it costs the sampler least
        open_ = [(kind, pods) for (kind, pods), n in placed.items() if n and pods < rooms[kind]]
        kind, pods = min(open_, key=lambda place: left(*place) - left(place[0], place[1] + 1))
        placed[kind, pods] -= 1
        placed[kind, pods + 1] += 1
    room, wanted = sum(n * left(*place) for place, n in placed.items()), _pods(sampler)
    if room >= wanted:
        return Check("nodes for samples", Verdict.OK, f"there is room for {wanted} beside training")
    text = f"beside training there is room for {room} of {wanted} pods: samples come late or never"
    remedy = "add a GPU, train on fewer, or name inference.checkpoints in place of everyCheckpoint"
    return Check("nodes for samples", Verdict.WARN, text, remedy)


def _pods(stage: Stage) -> int:
    return int(stage.job["spec"].get("parallelism", 1))


def _room(
    asked: Mapping[str, float], node: Object, taken: Mapping[str, float] | None = None
) -> int:
    """How many pods that ask for so much a node holds on which only ``taken`` is in use."""
    room, used = (node.get("status") or {}).get("allocatable") or {}, taken or {}
    free = {"pods": "110"} | dict(room)
    return int(
        min(
            (quantity(free.get(n, "0")) - used.get(n, 0)) / amount
            for n, amount in {"pods": 1.0, **asked}.items()
            if amount
        )
    )


def _misfit(stage: Stage, asked: Mapping[str, float], node: Object) -> str:
    """Why a pod of the stage could never run on the node; empty if it could."""
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
    for name, amount in asked.items():
        if quantity(room.get(name, "0")) < amount:
            return f"with too little {name} ({room.get(name, 0)})"
    return ""


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    names = ("key", "value")
    return [toleration.get(n, "") for n in names] == [taint.get(n, "") for n in names]


def _asked(stage: Stage) -> dict[str, float]:
    """What one pod of the stage asks for, by resource name."""
    asked = _resources(stage)
    named = {**asked.get("limits", {}), **asked.get("requests", {})}
    return {name: quantity(value) for name, value in named.items()}


def _resources(stage: Stage) -> Mapping[str, Mapping[str, str]]:
    """Those of the stage's container; a patch of its pod template may have taken them out."""
    given = stage.job["spec"]["template"]["spec"]["containers"][0].get("resources") or {}
    return {part: given.get(part) or {} for part in ("limits", "requests")}


def _gpu(node: Object) -> Gpu:
    """As NVIDIA's GPU feature discovery labels it; what it does not say is unknown."""
    labels = node["metadata"].get("labels") or {}
    product, memory, major = map(labels.get, _GPU_LABELS)
    return Gpu(
        product or "a GPU of unknown kind",
        float(memory) * 2**20 if memory else 0,
        int(major) if major else 0,
    )
