"""Every right the operator uses, in one table, of which all else is made.

``python -m video2world_operator.codegen.rbac`` writes manifests/rbac.yaml and the chart's rules,
``--check`` fails if they are not up to date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from video2world_operator.api.constants import GROUP, PLURAL
from video2world_operator.kube.client import ApiClient

__all__ = [
    "CLUSTER_WIDE",
    "NAMESPACED",
    "OWN_NAMESPACE",
    "Rule",
    "may_see_nodes",
    "missing",
    "rules",
]

ACCOUNT = "video2world-operator"


@dataclass(frozen=True)
class Rule:
    """Verbs on one resource of an API group; ``optional`` ones are of APIs that may be absent."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    optional: bool = False


_MADE = ("create", "get")  # looked at where there is one of the name already
# In every namespace that the operator serves.
NAMESPACED: tuple[Rule, ...] = (
    Rule(GROUP, PLURAL, ("list", "watch", "delete")),
    Rule(GROUP, f"{PLURAL}/status", ("patch",)),
    Rule("batch", "jobs", (*_MADE, "list", "watch", "delete")),
    Rule("", "pods", ("list", "watch", "delete")),
    Rule("", "pods/log", ("get",)),
    Rule("", "services", (*_MADE, "delete")),
    Rule("", "persistentvolumeclaims", (*_MADE, "delete")),  # of an earlier resource of the name
    Rule("", "events", ("create", "list")),  # listed of stages that are stuck
    Rule("scheduling.k8s.io", "podgroups", (*_MADE, "delete"), optional=True),
    Rule("scheduling.volcano.sh", "podgroups", (*_MADE, "delete"), optional=True),
    Rule("scheduling.x-k8s.io", "podgroups", (*_MADE, "delete"), optional=True),
)
# Where it serves all namespaces, by a ClusterRole: what no Role can give, and it can do without.
CLUSTER_WIDE: tuple[Rule, ...] = (Rule("", "nodes", ("list",), optional=True),)
# In its own: the Lease that makes one of several operators the leader.
OWN_NAMESPACE: tuple[Rule, ...] = (
    Rule("coordination.k8s.io", "leases", ("get", "create", "update")),
)


def rules(table: Sequence[Rule]) -> list[dict[str, Any]]:
    """The table as rules of a Role."""
    return [
        {"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in table
    ]


async def missing(
    cluster: ApiClient, own: str, namespaces: Sequence[str], groups: Collection[str]
) -> list[str]:
    """What the operator may not do, such as ``watch pods in team-a``; empty if nothing is missing.

    ``groups`` are the optional API groups that the server serves; an empty ``namespaces`` means
    all.
    """
    served: Sequence[str | None] = namespaces or (None,)
    asked: list[tuple[str | None, str, Rule]] = []
    for rule in NAMESPACED:
        if rule.optional and rule.group not in groups:
            continue
        for namespace in served:
            asked += [(namespace, verb, rule) for verb in rule.verbs]
    asked += [(own, verb, rule) for rule in OWN_NAMESPACE for verb in rule.verbs]
    allowed = await asyncio.gather(*(_allowed(cluster, *question) for question in asked))
    return [
        f"{verb} {rule.resource}" + (f" in {namespace}" if namespace else "")
        for (namespace, verb, rule), yes in zip(asked, allowed, strict=True)
        if not yes
    ]


async def may_see_nodes(cluster: ApiClient) -> bool:
    """Whether it was granted to look at nodes, for the checks before a run."""
    return await _allowed(cluster, None, "list", CLUSTER_WIDE[0])


async def _allowed(cluster: ApiClient, namespace: str | None, verb: str, rule: Rule) -> bool:
    resource, _, subresource = rule.resource.partition("/")
    about = {"group": rule.group, "resource": resource, "verb": verb}
    if subresource:
        about["subresource"] = subresource
    if namespace:
        about["namespace"] = namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": about},
    }
    answer = await cluster.request(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review
    )
    return bool(answer["status"]["allowed"])
