"""List every right the operator uses, and ask the API server which of them it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from video2world_operator.api.constants import GROUP, PLURAL
from video2world_operator.kube.client import ApiClient
from video2world_operator.plan.gang import POD_GROUPS
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi

__all__ = [
    "ACCOUNT",
    "CLUSTER_WIDE",
    "NAMESPACED",
    "OWN_NAMESPACE",
    "PolicyRule",
    "may_list_nodes",
    "missing_rights",
    "policy_rules",
]

ACCOUNT = "video2world-operator"


@dataclass(frozen=True)
class PolicyRule:
    """Verbs on a resource of an API group; with an ``api``, required only where that is served.

    Those ``for_checks`` are never required: the checks before a run do without them.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]
    api: OptionalApi | None = None
    for_checks: bool = False


_TEMPLATE = OptionalApi.RESOURCE_CLAIM_TEMPLATE
_CREATED = ("create", "get")  # read if an object of the name exists already
# In every namespace that the operator watches.
NAMESPACED: tuple[PolicyRule, ...] = (
    PolicyRule(GROUP, PLURAL, ("list", "watch", "delete")),
    PolicyRule(GROUP, f"{PLURAL}/status", ("patch",)),
    # annotated with what an eviction would cost
    PolicyRule("batch", "jobs", (*_CREATED, "list", "watch", "patch", "delete")),
    PolicyRule("", "pods", ("list", "watch", "delete")),
    PolicyRule("", "pods/log", ("get",)),
    PolicyRule("", "services", (*_CREATED, "delete")),
    # deleted if they belong to an earlier resource of the name
    PolicyRule("", "persistentvolumeclaims", (*_CREATED, "delete")),
    PolicyRule("", "events", ("create", "list")),  # listed for stages that are stuck
    *(PolicyRule(api.group, api.plural, (*_CREATED, "delete"), api) for api in POD_GROUPS.values()),
    PolicyRule("kueue.x-k8s.io", "localqueues", ("get",), OptionalApi.LOCAL_QUEUE),
    # of queued Jobs, of resources that MultiKueue sends to another cluster, and of its copies
    PolicyRule(
        "kueue.x-k8s.io",
        "workloads",
        (*_CREATED, "list", "patch", "delete"),
        OptionalApi.WORKLOAD,
    ),
    PolicyRule("kueue.x-k8s.io", "workloads/status", ("patch",), OptionalApi.WORKLOAD),
    PolicyRule(_TEMPLATE.group, _TEMPLATE.plural, ("get",), _TEMPLATE, for_checks=True),
)
# If it watches all namespaces, by a ClusterRole: no Role can grant it, and it is not required.
CLUSTER_WIDE: tuple[PolicyRule, ...] = (
    PolicyRule("", "nodes", ("list",)),
    # the quota of elastic groups
    PolicyRule(OptionalApi.LOCAL_QUEUE.group, "clusterqueues", ("get",), OptionalApi.LOCAL_QUEUE),
    *(
        PolicyRule(api.group, api.plural, ("list",), api)
        for api in (OptionalApi.DEVICE_CLASS, OptionalApi.RESOURCE_SLICE)
    ),
)
# In its own namespace, for the Lease of the leader election.
OWN_NAMESPACE: tuple[PolicyRule, ...] = (
    PolicyRule("coordination.k8s.io", "leases", ("get", "create", "update")),
)


def policy_rules(table: Sequence[PolicyRule]) -> list[dict[str, Any]]:
    """Return the table as the rules of a Role."""
    return [
        {"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in table
    ]


async def missing_rights(
    api: ApiClient, own: str, namespaces: Sequence[str], capabilities: Capabilities
) -> list[str]:
    """Return the missing rights, such as ``watch pods in team-a``; empty if there are none.

    ``own`` is the namespace of the Lease, ``namespaces`` are those to watch (empty: all), and
    ``capabilities`` the optional APIs that the server serves.
    """
    watched: Sequence[str | None] = namespaces or (None,)
    questions: list[tuple[str | None, str, PolicyRule]] = []
    for rule in NAMESPACED:
        absent = rule.api is not None and rule.api not in capabilities.versions
        if rule.for_checks or absent:
            continue
        for namespace in watched:
            questions += [(namespace, verb, rule) for verb in rule.verbs]
    questions += [(own, verb, rule) for rule in OWN_NAMESPACE for verb in rule.verbs]
    allowed = await asyncio.gather(*(_is_allowed(api, *question) for question in questions))
    return [
        f"{verb} {rule.resource}" + (f" in {namespace}" if namespace else "")
        for (namespace, verb, rule), is_allowed in zip(questions, allowed, strict=True)
        if not is_allowed
    ]


async def may_list_nodes(api: ApiClient) -> bool:
    """Return whether nodes may be listed, for the checks before a run."""
    return await _is_allowed(api, None, "list", CLUSTER_WIDE[0])


async def _is_allowed(api: ApiClient, namespace: str | None, verb: str, rule: PolicyRule) -> bool:
    resource, _, subresource = rule.resource.partition("/")
    attributes = {"group": rule.group, "resource": resource, "verb": verb}
    if subresource:
        attributes["subresource"] = subresource
    if namespace:
        attributes["namespace"] = namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await api.request(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review
    )
    return bool(answer["status"]["allowed"])
