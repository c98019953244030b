"""Whether a resource can run here, before a GPU is held: checks of observed facts, all pure.

A check never guesses: what could not be looked at is ``unknown``, and says how to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Any

from . import gang
from .models import STAGES
from .needs import GIB, Needs
from .observed import Capabilities
from .plan import GPU, Plan, Stage
from .quantity import quantity

__all__ = ["ATTENTION", "Access", "Check", "ClusterFacts", "Gpu", "Machine", "Verdict"]
__all__ += [
    "before_training",
    "check_cluster",
    "check_hub",
    "check_images",
    "check_machine",
    "images_of",
]

Object = Mapping[str, Any]
GB = 1e9
# Compute capabilities (first number) on which each kernel runs, as the trainer has them.
ATTENTION: Mapping[str, tuple[int, ...]] = {
    "FlashAttention4": (9, 10),
    "FlashAttention3": (9,),
    "FlashAttention2": (8, 9, 10, 12),
    "TransformerEngine": (8, 9, 10, 12),
}


_GPU_LABELS = ("nvidia.com/gpu.product", "nvidia.com/gpu.memory", "nvidia.com/gpu.compute.major")
_MORE_ROOM = "raise spec.storage.size, or lower spec.training.checkpoint.keep"


class Verdict(StrEnum):
    """How a check came out; only ``FAIL`` keeps the resource from running."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "?"


@dataclass(frozen=True)
class Check:
    """One question and its answer; ``remedy`` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


class Access(StrEnum):
    """What the Hugging Face Hub says of a repository and the token in use."""

    ALLOWED = "allowed"
    GATED = "gated"  # known, but its licence is not accepted
    REFUSED = "refused"  # no token, or one that is not valid
    MISSING = "missing"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Gpu:
    """One GPU: its memory in bytes and the first number of its compute capability, 0 unknown."""

    name: str
    memory: float = 0
    major: int = 0


@dataclass(frozen=True)
class Machine:
    """This machine; sizes in bytes. ``disk`` is what is free and what the volume uses already;
    ``gpus`` is None where no driver answers."""

    disk: float
    memory: float
    gpus: Sequence[Gpu] | None


@dataclass(frozen=True)
class ClusterFacts:
    """What is seen of a cluster. None: it may not be looked at."""

    namespace: str
    nodes: Sequence[Object] | None = None
    claim: Object | None = None
    storage_classes: Sequence[Object] | None = None
    quotas: Sequence[Object] | None = None
    secrets: Mapping[str, Sequence[str] | None] = field(default_factory=dict)  # keys by name
    unreadable: frozenset[str] = frozenset()  # Secrets that may not be read
    priority_classes: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    leader: str | None = None  # who holds the operator's Lease; empty: nobody
    definition: str = ""  # what is wrong with the CRD
    refusal: str = ""  # what the API server says to the resource itself


# ---------------------------------------------------------------------- the Hub


def check_hub(access: Mapping[str, Access]) -> Iterator[Check]:
    """Token and licences, by repository."""
    for repository, answer in access.items():
        page = f"https://huggingface.co/{repository}"
        verdict, text, remedy = _ANSWERS[answer]
        text = f"{repository.removeprefix('datasets/')}: {text}"
        yield Check("Hugging Face", verdict, text, remedy.format(page=page))


_ANSWERS: Mapping[Access, tuple[Verdict, str, str]] = {
    Access.ALLOWED: (Verdict.OK, "may be downloaded with the token in use here", ""),
    Access.GATED: (
        Verdict.FAIL,
        "its licence is not accepted",
        "accept it at {page} with the account of HF_TOKEN",
    ),
    Access.REFUSED: (
        Verdict.FAIL,
        "no token is set here, or one that is not valid",
        "set HF_TOKEN to a read token of https://huggingface.co/settings/tokens, and accept the "
        "licence at {page}",
    ),
    Access.MISSING: (Verdict.FAIL, "is not there", "check the name: {page}"),
    Access.UNREACHABLE: (Verdict.UNKNOWN, "the Hub cannot be reached from here", ""),
}


# ---------------------------------------------------------------------- this machine


def check_machine(plan: Plan, need: Needs, machine: Machine) -> Iterator[Check]:
    """For ``v2w run``: disk, memory and GPUs of this machine."""
    spec = plan.resource.spec
    yield _enough(
        "disk", need.disk, machine.disk, "free or in use on --volume",
        "free some, choose another --volume, or lower spec.training.checkpoint.keep",
    )  # fmt: skip
    host = need.host * spec.nodes  # every node is on this machine
    yield _enough("host memory", host, machine.memory, "on this machine", "use a larger machine")
    if spec.device == "CPU":
        return
    found = machine.gpus or ()
    wanted = spec.gpus
    if len(found) < wanted:
        remedy = "set spec.training.gpusPerNode (and nodes: 1), or run it on a cluster"
        yield Check("GPUs", Verdict.FAIL, f"{wanted} are asked for, {len(found)} are here", remedy)
    elif spec.inference.every_checkpoint and len(found) == wanted:
        text = f"training takes all {wanted}: samples made meanwhile share the first with it"
        remedy = (
            "train on fewer (spec.training.gpusPerNode), or leave inference.everyCheckpoint out"
        )
        yield Check("GPUs", Verdict.WARN, text, remedy)
    else:
        yield Check("GPUs", Verdict.OK, f"{wanted} of {len(found)} are asked for")
    if found:
        yield from _kind(plan, need, found)


def _enough(name: str, need: float, there: float, where: str, remedy: str) -> Check:
    short = there < need
    text = f"needs about {_size(need)}, has {_size(there)} {where}".rstrip()
    return Check(name, Verdict.FAIL if short else Verdict.OK, text, remedy if short else "")


def _size(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= 10 * GB else f"{count / GB:.1f} GB"


def _kind(plan: Plan, need: Needs, gpus: Sequence[Gpu]) -> Iterator[Check]:
    """Whether the smallest of ``gpus`` has the memory, and all of them the kernel."""
    kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
    known = [gpu.memory for gpu in gpus if gpu.memory]
    if known:
        text = f"needs about {need.gpu / GIB:.0f} GiB, {kinds} has {min(known) / GIB:.0f} GiB"
        short = min(known) < need.gpu
        remedy = "raise contextParallelSize or gpusPerNode, lower batchSize, or use LoRA"
        yield Check("GPU memory", Verdict.FAIL if short else Verdict.OK, text,
                    remedy if short else "")  # fmt: skip
    attention = plan.resource.spec.training.attention
    majors = ATTENTION.get(attention)
    unfit = {gpu.name for gpu in gpus if majors and gpu.major and gpu.major not in majors}
    if unfit:
        fitting = [name for name, runs in ATTENTION.items() if gpus[0].major in runs]
        remedy = f"use Auto, or one of {', '.join([*fitting, 'Torch'])}"
        text = f"{attention} does not run on {', '.join(sorted(unfit))}"
        yield Check("attention", Verdict.FAIL, text, remedy)
    elif majors and not any(gpu.major for gpu in gpus):
        yield Check("attention", Verdict.UNKNOWN, f"{attention}: the kind of GPU is not known")
    else:
        yield Check("attention", Verdict.OK, f"{attention} runs on {kinds}")


# ---------------------------------------------------------------------- a cluster


def check_cluster(plan: Plan, need: Needs, seen: ClusterFacts) -> Iterator[Check]:
    """For the operator: everything that can be seen without starting a pod."""
    yield _operator(seen)
    if seen.definition:
        what, _, remedy = seen.definition.rpartition(": ")
        yield Check("CRD", Verdict.FAIL, what, remedy)
    else:
        yield Check("CRD", Verdict.OK, "it has every field")
    if seen.refusal:
        yield Check("API server", Verdict.FAIL, seen.refusal, "mend what it names")
    else:
        yield Check("API server", Verdict.OK, "it accepts the resource (dry run)")
    yield from _nodes(plan, need, seen)
    yield from _volume(plan, need, seen)
    yield from _secrets(plan, seen)
    yield from _quotas(plan, seen)
    yield from _scheduling(plan, seen)


def images_of(plan: Plan) -> list[str]:
    """The images that the stages need."""
    pods = (stage.job["spec"]["template"]["spec"] for stage in plan.stages)
    return sorted({pod["containers"][0]["image"] for pod in pods})


def check_images(plan: Plan, answers: Mapping[str, Access]) -> Iterator[Check]:
    """What the registries said from here; a node may have an image already, or reach others."""
    images = plan.resource.spec.images
    bad = Verdict.FAIL if images.pull_policy == "Always" else Verdict.WARN
    for image, answer in answers.items():
        if images.pull_policy == "Never":
            yield Check("image", Verdict.UNKNOWN, f"{image} must be on the nodes already")
        elif answer is Access.ALLOWED:
            yield Check("image", Verdict.OK, f"{image} can be pulled")
        elif answer is Access.UNREACHABLE:
            text = f"{image}: its registry cannot be reached from here"
            yield Check("image", Verdict.UNKNOWN, text, "v2w explain says so if a node cannot")
        elif images.pull_secrets:
            text = f"{image} is not for everybody: only a node can try {images.pull_secrets[0]}"
            yield Check("image", Verdict.UNKNOWN, text, "v2w explain says so if it cannot")
        elif answer is Access.MISSING:
            remedy = "push it (README, On Kubernetes), or mend spec.images"
            yield Check("image", bad, f"{image} is not in its registry", remedy)
        else:
            remedy = "name a Secret in spec.images.pullSecrets, or mend spec.images"
            yield Check("image", bad, f"{image}: its registry gives it to nobody unknown", remedy)


def before_training(
    plan: Plan, need: Needs, nodes: Sequence[Object] | None, size: str
) -> Iterator[Check]:
    """For the operator: what it may look at, before a GPU is held. ``size`` is the claim's."""
    if size:
        yield _enough("volume size", need.disk, quantity(size), "", _MORE_ROOM)
    if nodes is not None:
        yield from _nodes(plan, need, ClusterFacts(plan.namespace, nodes=nodes), ("train",))


def _operator(seen: ClusterFacts) -> Check:
    if seen.leader is None:
        text = "its Lease may not be read"
        return Check("operator", Verdict.UNKNOWN, text, "ask whether it is installed")
    if not seen.leader:
        text = "no operator is at work"
        return Check("operator", Verdict.FAIL, text,
                     "helm install v2w charts/video2world-operator")  # fmt: skip
    return Check("operator", Verdict.OK, f"{seen.leader} leads")


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
        kinds = [(node, count, _misfit(stage, asked, node))
                 for node, count in _kinds(seen.nodes, stage)]  # fmt: skip
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
            yield Check(name, Verdict.OK, f"there is room for {wanted} pods and more"
                        if room > wanted else f"there is room for just {wanted} pods")  # fmt: skip
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
    return int(min((quantity(free.get(n, "0")) - used.get(n, 0)) / amount
                   for n, amount in {"pods": 1.0, **asked}.items() if amount))  # fmt: skip


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


def _volume(plan: Plan, need: Needs, seen: ClusterFacts) -> Iterator[Check]:
    storage, nodes = plan.resource.spec.storage, plan.resource.spec.nodes
    if storage.claim_name and seen.claim is None:
        text = f"there is no claim {storage.claim_name} in namespace {seen.namespace}"
        yield Check("volume", Verdict.FAIL, text, "create it, or leave spec.storage.claimName out")
        return
    if seen.claim is not None:
        spec, status = seen.claim.get("spec") or {}, seen.claim.get("status") or {}
        modes = spec.get("accessModes") or []
        shared = "ReadWriteMany" in modes or nodes == 1 or storage.access_mode == "ReadWriteOnce"
        if not shared:
            text = f"the claim is {' and '.join(modes)}, but {nodes} nodes share it"
            yield Check("volume", Verdict.FAIL, text, "use one with ReadWriteMany")
        asked = spec.get("resources", {}).get("requests", {}).get("storage", "0")
        size = quantity((status.get("capacity") or {}).get("storage", asked))
    else:
        yield from _storage_class(plan, seen)
        size = quantity(plan.resource.spec.volume_size)
    yield _enough("volume size", need.disk, size, "", _MORE_ROOM)


def _storage_class(plan: Plan, seen: ClusterFacts) -> Iterator[Check]:
    wanted = plan.resource.spec.storage.storage_class_name
    if seen.storage_classes is None:
        yield Check("storage class", Verdict.UNKNOWN, "storage classes may not be listed")
        return
    default = "storageclass.kubernetes.io/is-default-class"
    found = [
        c
        for c in seen.storage_classes
        if c["metadata"]["name"] == wanted
        or (not wanted and (c["metadata"].get("annotations") or {}).get(default) == "true")
    ]
    if found:
        mode = plan.shared[0]["spec"]["accessModes"][0]
        name = found[0]["metadata"]["name"]
        text = f"{name} ({found[0].get('provisioner', '?')}); whether it has {mode} shows when "
        yield Check("storage class", Verdict.OK, text + "the claim is bound")
    elif wanted:
        known = ", ".join(c["metadata"]["name"] for c in seen.storage_classes) or "none"
        yield Check("storage class", Verdict.FAIL, f"there is no {wanted}", f"there is: {known}")
    else:
        text = "there is no default one; a volume made by hand would have to fit"
        yield Check("storage class", Verdict.WARN, text, "name one in spec.storage")


def _secrets(plan: Plan, seen: ClusterFacts) -> Iterator[Check]:
    token = plan.resource.spec.credentials.hugging_face_token_secret
    wanted: dict[str, str] = dict.fromkeys(plan.resource.spec.images.pull_secrets, "")
    if token:
        wanted[token.name] = token.key
    for name, key in wanted.items():
        keys = seen.secrets.get(name)
        if name in seen.unreadable:
            yield Check(f"Secret {name}", Verdict.UNKNOWN, "Secrets may not be read")
        elif keys is None:
            remedy = f"kubectl create secret generic {name} -n {seen.namespace} ..."
            yield Check(f"Secret {name}", Verdict.FAIL, "it is not there", remedy)
        elif key and key not in keys:
            remedy = f"put the token there under {key}; it has {', '.join(keys) or 'no key'}"
            yield Check(f"Secret {name}", Verdict.FAIL, f"it has no key {key}", remedy)
        else:
            yield Check(f"Secret {name}", Verdict.OK, "it is there")


def _quotas(plan: Plan, seen: ClusterFacts) -> Iterator[Check]:
    """Whether the largest stage fits into what the namespace's quotas leave."""
    if seen.quotas is None:
        yield Check("quota", Verdict.UNKNOWN, "quotas may not be listed")
        return
    most: Counter[str] = Counter()
    for stage in plan.stages:
        most |= _charged(stage)
    if (sampler := _sampler(plan)) is not None:
        most |= _charged(plan.stage("train")) + _charged(sampler)
    tight = False
    for quota in seen.quotas:
        hard = (quota.get("status") or {}).get("hard") or quota["spec"].get("hard") or {}
        used = (quota.get("status") or {}).get("used") or {}
        for name, limit in hard.items():
            if most[name] > (left := quantity(limit) - quantity(used.get(name, "0"))):
                tight = True
                text = f"{quota['metadata']['name']} leaves {left:g} of {limit} {name}, "
                text += f"{most[name]:g} are needed"
                ever = most[name] <= quantity(limit)
                remedy = "wait until some is free" if ever else "have it raised, or ask for less"
                yield Check("quota", Verdict.WARN if ever else Verdict.FAIL, text, remedy)
    if not tight:
        yield Check("quota", Verdict.OK, "nothing stands against it")


def _charged(stage: Stage) -> Counter[str]:
    """What all pods of a stage together are charged for, under the names of quotas."""
    count = _pods(stage)
    asked = _resources(stage)
    amounts: Counter[str] = Counter({"pods": count, "count/pods": count, "count/jobs.batch": 1})
    for part in ("requests", "limits"):
        for name, value in asked.get(part, {}).items():
            amounts[f"{part}.{name}"] = quantity(value) * count  # type: ignore[assignment]
    amounts.setdefault(f"requests.{GPU}", amounts[f"limits.{GPU}"])
    return amounts


def _scheduling(plan: Plan, seen: ClusterFacts) -> Iterator[Check]:
    spec = plan.resource.spec.scheduling
    queue, priority = spec.queue_name, spec.priority_class_name
    if queue and seen.queues is None:
        text = f"{queue}: Kueue is not installed, or its queues may not be listed"
        yield Check("queue", Verdict.FAIL, text, "install Kueue, or leave queueName out")
    elif queue:
        there = queue in (seen.queues or ())
        known = f"there is: {', '.join(seen.queues or ()) or 'none'}"
        text = f"{queue} is {'there' if there else 'not in this namespace'}"
        yield Check("queue", Verdict.OK if there else Verdict.FAIL, text, "" if there else known)
    if priority and seen.priority_classes is None:
        yield Check("priority class", Verdict.UNKNOWN, "priority classes may not be listed")
    elif priority and priority not in (seen.priority_classes or ()):
        known = ", ".join(seen.priority_classes or ()) or "none"
        yield Check("priority class", Verdict.FAIL, f"no {priority}", f"there is: {known}")
    if plan.resource.spec.nodes > 1:
        chosen = gang.choose(plan.resource, seen.capabilities)
        evidence = f"Whether {chosen.scheduler} runs shows when they start."
        text = chosen.reason.text(**chosen.facts, evidence=evidence)
        verdict = Verdict.OK if chosen.scheduled is not False else Verdict.WARN
        yield Check("gang", verdict, text)
