"""Check a cluster: storage, Secrets, quotas, scheduling, the operator itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from video2world_operator.api.quantity import quantity
from video2world_operator.plan import gang
from video2world_operator.plan.manifests import GPU
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage
from video2world_operator.preflight.check import _MORE_ROOM, Check, Verdict, _enough
from video2world_operator.preflight.facts import ClusterFacts
from video2world_operator.preflight.node_fit import _nodes, _pods, _resources, _sampler
from video2world_operator.preflight.requirements import Needs

__all__ = ["check_cluster"]


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


def _operator(seen: ClusterFacts) -> Check:
    if seen.leader is None:
        text = "its Lease may not be read"
        return Check("operator", Verdict.UNKNOWN, text, "ask whether it is installed")
    if not seen.leader:
        text = "no operator is at work"
        return Check("operator", Verdict.FAIL, text, "helm install v2w charts/video2world-operator")
    return Check("operator", Verdict.OK, f"{seen.leader} leads")


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
