"""Check a cluster: operator, CRD, nodes, storage, Secrets, quotas and scheduling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from video2world_operator.api.constants import GPU
from video2world_operator.api.quantity import quantity
from video2world_operator.plan import gang
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage
from video2world_operator.preflight.check import VOLUME_REMEDY, Check, Verdict, check_capacity
from video2world_operator.preflight.claim_checks import check_claims
from video2world_operator.preflight.devices import requests_of
from video2world_operator.preflight.dispatch import DispatchFacts, why_unmanaged
from video2world_operator.preflight.facts import ClusterFacts, DeviceFacts
from video2world_operator.preflight.node_fit import (
    check_nodes,
    container_resources,
    parallel_pods,
    sampler_stage,
)
from video2world_operator.preflight.requirements import ResourceEstimate

__all__ = ["check_cluster"]


def check_cluster(plan: Plan, estimate: ResourceEstimate, facts: ClusterFacts) -> Iterator[Check]:
    """Run every check that needs no pod."""
    yield _operator(facts)
    if facts.definition:
        what, _, remedy = facts.definition.rpartition(": ")
        yield Check("CRD", Verdict.FAIL, what, remedy)
    else:
        yield Check("CRD", Verdict.OK, "has every field")
    if facts.refusal:
        yield Check("API server", Verdict.FAIL, facts.refusal, "fix what it names")
    else:
        yield Check("API server", Verdict.OK, "accepts the resource (dry run)")
    if facts.dispatch is not None:
        yield _dispatch(facts.dispatch)
        return
    yield from check_claims(plan, facts)
    yield from check_nodes(plan, estimate, facts)
    yield from _volume(plan, estimate, facts)
    yield from _secrets(plan, facts)
    yield from _quotas(plan, facts)
    yield from _scheduling(plan, facts)


def _operator(facts: ClusterFacts) -> Check:
    if facts.leader is None:
        text = "no permission to read its Lease"
        return Check(
            "operator", Verdict.UNKNOWN, text, "ask an administrator whether it is installed"
        )
    if not facts.leader:
        text = "no operator is running"
        return Check("operator", Verdict.FAIL, text, "helm install v2w charts/video2world-operator")
    return Check("operator", Verdict.OK, f"{facts.leader} is the leader")


def _dispatch(facts: DispatchFacts) -> Check:
    """Check whether MultiKueue will send the resource; what it needs is in another cluster."""
    if unmanaged := why_unmanaged(facts):
        return Check("managedBy", Verdict.FAIL, unmanaged.what, unmanaged.remedy)
    text = f"MultiKueue sends it to another cluster from queue {facts.queue}; nodes, volume and "
    text += "Secrets are checked with that cluster's kubeconfig"
    if facts.cluster_queue is None or facts.checks is None:
        text = f"no permission to read the ClusterQueue of {facts.queue} and its admission checks"
        return Check("managedBy", Verdict.UNKNOWN, text)
    return Check("managedBy", Verdict.OK, text)


def _volume(plan: Plan, estimate: ResourceEstimate, facts: ClusterFacts) -> Iterator[Check]:
    storage, nodes = plan.resource.spec.storage, plan.resource.spec.nodes
    if storage.claim_name and facts.claim is None:
        text = f"there is no PVC {storage.claim_name} in namespace {facts.namespace}"
        yield Check("volume", Verdict.FAIL, text, "create it, or remove spec.storage.claimName")
        return
    if facts.claim is not None:
        spec, status = facts.claim.get("spec") or {}, facts.claim.get("status") or {}
        modes = spec.get("accessModes") or []
        shared = "ReadWriteMany" in modes or nodes == 1 or storage.access_mode == "ReadWriteOnce"
        if not shared:
            text = f"the PVC is {' and '.join(modes)}, but {nodes} nodes share it"
            yield Check("volume", Verdict.FAIL, text, "use a PVC with ReadWriteMany")
        asked = spec.get("resources", {}).get("requests", {}).get("storage", "0")
        size = quantity((status.get("capacity") or {}).get("storage", asked))
    else:
        yield from _storage_class(plan, facts)
        size = quantity(plan.resource.spec.volume_size)
    yield check_capacity("volume size", estimate.disk, size, "", VOLUME_REMEDY)


def _storage_class(plan: Plan, facts: ClusterFacts) -> Iterator[Check]:
    wanted = plan.resource.spec.storage.storage_class_name
    if facts.storage_classes is None:
        yield Check("storage class", Verdict.UNKNOWN, "no permission to list storage classes")
        return
    default = "storageclass.kubernetes.io/is-default-class"
    found = [
        c
        for c in facts.storage_classes
        if c["metadata"]["name"] == wanted
        or (not wanted and (c["metadata"].get("annotations") or {}).get(default) == "true")
    ]
    if found:
        mode = plan.shared[0]["spec"]["accessModes"][0]
        name = found[0]["metadata"]["name"]
        text = f"{name} ({found[0].get('provisioner', '?')}); whether it supports {mode} is "
        yield Check("storage class", Verdict.OK, text + "known when the PVC is bound")
    elif wanted:
        known = ", ".join(c["metadata"]["name"] for c in facts.storage_classes) or "none"
        yield Check("storage class", Verdict.FAIL, f"there is no {wanted}", f"use one of: {known}")
    else:
        text = "there is no default; only a matching pre-provisioned volume could be used"
        yield Check("storage class", Verdict.WARN, text, "set spec.storage.storageClassName")


def _secrets(plan: Plan, facts: ClusterFacts) -> Iterator[Check]:
    wanted = [(name, "") for name in plan.resource.spec.images.pull_secrets]
    wanted += [(token.name, token.key) for token in plan.resource.spec.token_secrets]
    for name, key in dict.fromkeys(wanted):
        keys = facts.secrets.get(name)
        if name in facts.unreadable:
            yield Check(f"Secret {name}", Verdict.UNKNOWN, "no permission to read Secrets")
        elif keys is None:
            remedy = f"kubectl create secret generic {name} -n {facts.namespace} ..."
            yield Check(f"Secret {name}", Verdict.FAIL, "does not exist", remedy)
        elif key and key not in keys:
            remedy = f"add the token under the key {key}; it has {', '.join(keys) or 'no key'}"
            yield Check(f"Secret {name}", Verdict.FAIL, f"has no key {key}", remedy)
        else:
            yield Check(f"Secret {name}", Verdict.OK, "exists")


def _quotas(plan: Plan, facts: ClusterFacts) -> Iterator[Check]:
    """Check the largest stage against what the namespace's quotas leave."""
    if facts.quotas is None:
        yield Check("quota", Verdict.UNKNOWN, "no permission to list quotas")
        return
    most: Counter[str] = Counter()
    for stage in plan.stages:
        most |= _quota_usage(plan, stage, facts)
    if (sampler := sampler_stage(plan)) is not None:
        together = [_quota_usage(plan, one, facts) for one in (plan.stage("train"), sampler)]
        most |= together[0] + together[1]
    tight = False
    for quota in facts.quotas:
        hard = (quota.get("status") or {}).get("hard") or quota["spec"].get("hard") or {}
        used = (quota.get("status") or {}).get("used") or {}
        for name, limit in hard.items():
            if most[name] > (left := quantity(limit) - quantity(used.get(name, "0"))):
                tight = True
                text = f"{quota['metadata']['name']} leaves {left:g} of {limit} {name}, "
                text += f"{most[name]:g} are needed"
                ever = most[name] <= quantity(limit)
                remedy = "wait until some is free" if ever else "raise the quota, or request less"
                yield Check("quota", Verdict.WARN if ever else Verdict.FAIL, text, remedy)
    if not tight:
        yield Check("quota", Verdict.OK, "sufficient")


def _quota_usage(plan: Plan, stage: Stage, facts: ClusterFacts) -> Counter[str]:
    """Return what all pods of a stage together use, by the names in quotas."""
    count = parallel_pods(stage)
    asked = container_resources(stage)
    amounts: Counter[str] = Counter({"pods": count, "count/pods": count, "count/jobs.batch": 1})
    for part in ("requests", "limits"):
        for name, value in asked.get(part, {}).items():
            amounts[f"{part}.{name}"] = quantity(value) * count  # type: ignore[assignment]
    amounts.setdefault(f"requests.{GPU}", amounts[f"limits.{GPU}"])
    claims = plan.resource.spec.resource_claims(stage.kind)
    amounts["count/resourceclaims.resource.k8s.io"] = len(claims) * count
    for request in requests_of(claims, facts.devices or DeviceFacts()):
        for way in request.alternatives[:1]:
            amounts[f"{way.device_class}.deviceclass.resource.k8s.io/devices"] += way.count * count
    return amounts


def _queue(name: str, queues: Mapping[str, str]) -> Check:
    """Check a LocalQueue; ``queues`` are those of the namespace, with why they admit nothing."""
    usable = ", ".join(queue for queue, problem in queues.items() if not problem) or "none"
    remedy = f"use one of: {usable}"
    if name not in queues:
        return Check("queue", Verdict.FAIL, f"{name} is not in this namespace", remedy)
    if queues[name]:
        text = f"{name} admits nothing: {queues[name]}"
        return Check("queue", Verdict.WARN, text, f"wait, or {remedy}")
    return Check("queue", Verdict.OK, f"{name} exists and admits")


def _scheduling(plan: Plan, facts: ClusterFacts) -> Iterator[Check]:
    spec = plan.resource.spec.scheduling
    queue, priority = spec.queue_name, spec.priority_class_name
    if queue and facts.queues is None:
        text = f"{queue}: Kueue is not installed, or there is no permission to list its queues"
        yield Check("queue", Verdict.FAIL, text, "install Kueue, or remove queueName")
    elif queue:
        yield _queue(queue, facts.queues or {})
    if priority and facts.priority_classes is None:
        yield Check("priority class", Verdict.UNKNOWN, "no permission to list priority classes")
    elif priority and priority not in (facts.priority_classes or ()):
        known = ", ".join(facts.priority_classes or ()) or "none"
        yield Check(
            "priority class", Verdict.FAIL, f"there is no {priority}", f"use one of: {known}"
        )
    if plan.resource.spec.nodes > 1:
        chosen = gang.choose(plan.resource, facts.capabilities)
        evidence = f"Whether {chosen.scheduler} is running is known when they start."
        text = chosen.reason.text(**chosen.facts, evidence=evidence)
        verdict = Verdict.OK if chosen.scheduled is not False else Verdict.WARN
        yield Check("gang", verdict, text)
