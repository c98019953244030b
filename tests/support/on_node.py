"""What a user does on the real node of tests/node: helm, kubectl apply, a look at the processes."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import yaml

from control_plane.node import NodeCluster
from operators import Resource
from repository import ROOT

__all__ = ["CHART", "NAMESPACE", "OPERATOR", "RELEASE", "ROOT", "apply", "demo", "helm"]

CHART = ROOT / "charts" / "video2world-operator"
DEMO = ROOT / "manifests" / "samples" / "demo.yaml"
NAMESPACE, RELEASE, OPERATOR = "robots", "v2w", "video2world-system"


def helm(node: NodeCluster, *arguments: str) -> str:
    """Run helm in the operator's namespace; its output."""
    command = [node.binaries["helm"], f"--kubeconfig={node.kubeconfig}", f"--namespace={OPERATOR}"]
    environment = {**os.environ, "HOME": str(node.folder)}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, f"{done.stderr}\n{node.kubectl('get', 'pods', '-A').stdout}"
    return done.stdout


def demo(name: str, **spec: Any) -> dict[str, Any]:
    """manifests/samples/demo.yaml under another name; ``spec`` is laid over it, one level deep."""
    body = yaml.safe_load(DEMO.read_text())
    body["metadata"] = {"name": name, "namespace": NAMESPACE}
    for field, value in spec.items():
        before = body["spec"].get(field, {})
        body["spec"][field] = before | value if isinstance(value, dict) else value
    return body


def apply(node: NodeCluster, body: dict[str, Any]) -> Resource:
    """``kubectl apply`` it."""
    node.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))
    return Resource(node, NAMESPACE, body["metadata"]["name"])
