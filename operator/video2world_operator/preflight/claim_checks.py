"""Check the claims of a plan's stages: their templates, device classes and number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_operator.api.device_claims import ResourceClaimSpec
from video2world_operator.plan.manifests import gpus_per_pod
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage
from video2world_operator.preflight.check import Check, Verdict
from video2world_operator.preflight.devices import (
    DeviceRequest,
    PublishedDevices,
    gpu_requests,
    publish,
    requests_of,
)
from video2world_operator.preflight.facts import ClusterFacts, DeviceFacts

__all__ = ["check_claims"]

_LIMIT = "remove resourceClaims, which then requests nvidia.com/gpu"


def check_claims(plan: Plan, facts: ClusterFacts) -> Iterator[Check]:
    """Check the claims of each stage; nothing for a plan without claims."""
    devices = facts.devices
    if devices is None:
        return
    if not devices.served:
        text = "this cluster does not serve resource.k8s.io, in which pods claim devices"
        remedy = f"use Kubernetes 1.34 or newer, or {_LIMIT}"
        yield Check("claims", Verdict.FAIL, text, remedy)
        return
    published = publish(plan, facts)
    for stage in plan.stages:
        if not plan.resource.spec.resource_claims(stage.kind):
            continue
        problems = list(_problems(plan, stage, facts.namespace, devices))
        yield from problems
        if not any(check.verdict is Verdict.FAIL for check in problems):
            yield from _published(plan, stage, devices, published)


def _problems(plan: Plan, stage: Stage, namespace: str, devices: DeviceFacts) -> Iterator[Check]:
    name, claims = f"claims for {stage.name}", plan.resource.spec.resource_claims(stage.kind)
    found = list(requests_of(claims, devices))
    for claim in claims:
        yield from _template(name, _field(plan, stage), namespace, claim, devices)
    for request in found:
        for way in request.alternatives:
            if devices.classes is not None and way.device_class not in devices.classes:
                known = ", ".join(sorted(devices.classes)) or "none"
                yield Check(
                    name,
                    Verdict.FAIL,
                    f"there is no DeviceClass {way.device_class}, which ResourceClaimTemplate "
                    f"{request.template} names",
                    f"install the DRA driver that provides it, or name one of: {known}",
                )
    if all(devices.templates.get(claim.resource_claim_template_name) for claim in claims):
        yield from _count(plan, stage, gpu_requests(found, devices))


def _template(
    name: str, field: str, namespace: str, claim: ResourceClaimSpec, devices: DeviceFacts
) -> Iterator[Check]:
    wanted = claim.resource_claim_template_name
    if wanted in devices.unreadable:
        yield Check(name, Verdict.UNKNOWN, f"no permission to read ResourceClaimTemplate {wanted}")
    elif (template := devices.templates.get(wanted)) is None:
        text = f"there is no ResourceClaimTemplate {wanted} in namespace {namespace}"
        yield Check(name, Verdict.FAIL, text, f"create it, or correct {field}")
    elif claim.request is not None:
        requests = template["spec"]["spec"].get("devices", {}).get("requests") or []
        known = [request["name"] for request in requests]
        if claim.request not in known:
            text = f"ResourceClaimTemplate {wanted} has no request {claim.request}"
            remedy = f"correct {field}; it has {', '.join(known) or 'none'}"
            yield Check(name, Verdict.FAIL, text, remedy)


def _count(plan: Plan, stage: Stage, requests: list[DeviceRequest]) -> Iterator[Check]:
    """Compare the devices of a pod with the GPUs that its worker uses."""
    gpus = gpus_per_pod(plan.resource, stage.kind)
    counts = [[way.count for way in request.alternatives] for request in requests]
    if any(0 in one for one in counts):
        return  # all devices of a node, whatever their number
    least, most = sum(map(min, counts)), sum(map(max, counts))
    if least == most == gpus:
        return
    setting = {
        "train": f"spec.training.gpusPerNode is {gpus}",
        "inference": f"spec.inference.gpus is {gpus}",
        "evaluation": f"spec.inference.gpus is {gpus}",
    }.get(stage.kind, f"stage {stage.name} uses {gpus}")
    templates = " and ".join(dict.fromkeys(request.template for request in requests))
    asked = str(most) if least == most else f"{least} to {most}"
    yield Check(
        f"claims for {stage.name}",
        Verdict.FAIL,
        f"a pod claims {asked} GPU{'' if asked == '1' else 's'} by {templates or 'no request'}, "
        f"but {setting}",
        f"make them equal: change the count in {templates or 'the template'}, or the spec",
    )


def _field(plan: Plan, stage: Stage) -> str:
    if stage.name == "train" and plan.resource.spec.training.resource_claims:
        return "spec.training.resourceClaims"
    return f"spec.stages.{stage.kind}.resourceClaims"


def _published(
    plan: Plan, stage: Stage, devices: DeviceFacts, published: PublishedDevices
) -> Iterator[Check]:
    """Report what the pods find, and what was not evaluated."""
    name = f"claims for {stage.name}"
    if devices.slices is None or devices.classes is None:
        kind = "ResourceSlices" if devices.slices is None else "DeviceClasses"
        remedy = f"kubectl auth can-i list {kind.lower()}"
        yield Check(name, Verdict.UNKNOWN, f"no permission to list {kind}", remedy)
        return
    wanted = published.amounts.get(stage.name, {})
    asked = " and ".join(f"{count:g} {kind}" for kind, count in wanted.items())
    total, unbound = published.totals.get(stage.name, 0), published.unbound.get(stage.name, 0)
    text = f"a pod claims {asked or 'no device'}, {total} are published"
    yield Check(name, Verdict.OK, text)
    if unbound:
        text = f"{unbound} of them are in pools of no single node, which may not reach every node"
        yield Check(name, Verdict.UNKNOWN, text)
    for part in published.unevaluated.get(stage.name, ()):
        text = f"counted as if true, since only the scheduler evaluates it: {part}"
        yield Check(name, Verdict.UNKNOWN, text)
