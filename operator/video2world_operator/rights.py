"""Every right the operator uses, in one table, of which all else is made.

``python -m video2world_operator.rights`` writes manifests/rbac.yaml and the chart's rules,
``--check`` fails if they are not up to date.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .generated import generate
from .models import GROUP, PLURAL

__all__ = ["CLUSTER_WIDE", "NAMESPACED", "OWN_NAMESPACE", "PATH", "Rule"]
__all__ += ["may_see_nodes", "missing", "render", "rules"]

_ROOT = Path(__file__).parents[2]
PATH = _ROOT / "manifests" / "rbac.yaml"
CHART_PATH = _ROOT / "charts" / "video2world-operator" / "files" / "rights.yaml"
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


def _object(kind: str, name: str, namespace: str | None = None, **body: Any) -> dict[str, Any]:
    version = "v1" if kind == "ServiceAccount" else "rbac.authorization.k8s.io/v1"
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata["labels"] = {"app.kubernetes.io/name": ACCOUNT}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}


def _binding(kind: str, name: str, own: str, namespace: str | None = None) -> dict[str, Any]:
    to = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": own}
    bound = f"{kind}Binding"
    return _object(bound, name, namespace, roleRef=to, subjects=[account])


def manifests(own: str, served: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Account, roles and bindings of an operator in the namespace ``own``.

    It serves the namespaces ``served`` by Roles only, or all of them by a ClusterRole.
    """
    made = [
        _object("ServiceAccount", ACCOUNT, own),
        _object("Role", f"{ACCOUNT}-leader", own, rules=rules(OWN_NAMESPACE)),
        _binding("Role", f"{ACCOUNT}-leader", own, own),
    ]
    if not served:
        every = rules((*NAMESPACED, *CLUSTER_WIDE))
        made.append(_object("ClusterRole", ACCOUNT, rules=every))
        made.append(_binding("ClusterRole", ACCOUNT, own))
    for namespace in served:
        made.append(_object("Role", ACCOUNT, namespace, rules=rules(NAMESPACED)))
        made.append(_binding("Role", ACCOUNT, own, namespace))
    return made


def render() -> str:
    """The text of manifests/rbac.yaml."""
    import yaml

    head = "# Generated from operator/video2world_operator/rights.py by `make generate`.\n"
    head += (
        "# Exactly what the operator uses; a test compares it with the API server's audit log.\n"
    )
    return head + yaml.safe_dump_all(
        manifests("video2world-system"), sort_keys=False, explicit_start=True, width=100
    )


def render_chart() -> str:
    """The text of the chart's files/rights.yaml."""
    import yaml

    head = "# Generated from operator/video2world_operator/rights.py by `make generate`.\n"
    tables = {"served": NAMESPACED, "clusterWide": CLUSTER_WIDE, "ownNamespace": OWN_NAMESPACE}
    made = {name: rules(table) for name, table in tables.items()}
    return head + yaml.safe_dump(made, sort_keys=False, width=100)


async def missing(
    cluster: Cluster, own: str, namespaces: Sequence[str], groups: Collection[str]
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


async def may_see_nodes(cluster: Cluster) -> bool:
    """Whether it was granted to look at nodes, for the checks before a run."""
    return await _allowed(cluster, None, "list", CLUSTER_WIDE[0])


async def _allowed(cluster: Cluster, namespace: str | None, verb: str, rule: Rule) -> bool:
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


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` return 1 if one is not up to date."""
    flags = argparse.ArgumentParser(prog="video2world_operator.rights", description=__doc__)
    flags.add_argument("--check", action="store_true", help="only compare")
    check = flags.parse_args(arguments).check
    return generate({PATH: render(), CHART_PATH: render_chart()}, check=check)


if __name__ == "__main__":
    sys.exit(main())
