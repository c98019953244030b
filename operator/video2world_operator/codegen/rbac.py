"""Generate RBAC manifests and the chart's rules from the operator's permission table.

``python -m video2world_operator.codegen.rbac`` writes manifests/rbac.yaml and the chart's rules,
``--check`` fails if they are not up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video2world_operator.codegen.write import generate
from video2world_operator.controller.rbac import (
    ACCOUNT,
    CLUSTER_WIDE,
    NAMESPACED,
    OWN_NAMESPACE,
    policy_rules,
)

__all__ = ["PATH", "render"]

_ROOT = Path(__file__).parents[3]
PATH = _ROOT / "manifests" / "rbac.yaml"
CHART_PATH = _ROOT / "charts" / "video2world-operator" / "files" / "rbac.yaml"


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
    """Return service account, roles and bindings of an operator in the namespace ``own``.

    With ``served``, there is a Role in each of these namespaces; otherwise a ClusterRole.
    """
    made = [
        _object("ServiceAccount", ACCOUNT, own),
        _object("Role", f"{ACCOUNT}-leader", own, rules=policy_rules(OWN_NAMESPACE)),
        _binding("Role", f"{ACCOUNT}-leader", own, own),
    ]
    if not served:
        every = policy_rules((*NAMESPACED, *CLUSTER_WIDE))
        made.append(_object("ClusterRole", ACCOUNT, rules=every))
        made.append(_binding("ClusterRole", ACCOUNT, own))
    for namespace in served:
        made.append(_object("Role", ACCOUNT, namespace, rules=policy_rules(NAMESPACED)))
        made.append(_binding("Role", ACCOUNT, own, namespace))
    return made


def render() -> str:
    """Return the text of manifests/rbac.yaml."""
    import yaml

    head = "# Generated from operator/video2world_operator/controller/rbac.py by `make generate`.\n"
    head += (
        "# Exactly what the operator uses; a test compares it with the API server's audit log.\n"
    )
    return head + yaml.safe_dump_all(
        manifests("video2world-system"), sort_keys=False, explicit_start=True, width=100
    )


def render_chart() -> str:
    """Return the text of the chart's files/rbac.yaml."""
    import yaml

    head = "# Generated from operator/video2world_operator/controller/rbac.py by `make generate`.\n"
    tables = {"served": NAMESPACED, "clusterWide": CLUSTER_WIDE, "ownNamespace": OWN_NAMESPACE}
    made = {name: policy_rules(table) for name, table in tables.items()}
    return head + yaml.safe_dump(made, sort_keys=False, width=100)


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` return 1 if one is not up to date."""
    flags = argparse.ArgumentParser(prog="video2world_operator.codegen.rbac", description=__doc__)
    flags.add_argument("--check", action="store_true", help="only compare")
    check = flags.parse_args(arguments).check
    return generate({PATH: render(), CHART_PATH: render_chart()}, check=check)


if __name__ == "__main__":
    sys.exit(main())
