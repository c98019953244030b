"""One real node for all tests of this folder, with the chart installed; run by `make e2e`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.host import facts

import images
from control_plane.demo import draw, make_writable
from control_plane.node import NodeCluster
from on_node import CHART, NAMESPACE, RELEASE, helm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="JSON file for the measures")
    parser.addoption("--began", type=float, help="Unix time at which make e2e began")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Measures by name; written to the file of ``--record`` at the end."""
    seen: dict[str, Any] = {}
    began = request.config.getoption("--began")
    if began:
        seen["preparation_seconds"] = round(time.time() - began)
    yield seen
    if began:
        seen["whole_seconds"] = round(time.time() - began)
    path = request.config.getoption("--record")
    if path:
        path.write_text(json.dumps(_stamped(seen), indent=1) + "\n")


def _stamped(seen: dict[str, Any]) -> dict[str, Any]:
    def output_of(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return {
        **facts("make e2e RECORD=benchmarks/results/node.json"),
        "versions": {
            "containerd": output_of("containerd", "--version").split()[2],
            "runc": output_of("runc", "--version").split()[2],
        },
        **seen,
    }


@pytest.fixture(scope="session")
def node(record: dict[str, Any]) -> Iterator[NodeCluster]:
    """The node, a namespace that admits restricted pods alone, and the chart as users have it."""
    started = time.monotonic()
    with NodeCluster([*images.names().values()]) as running:
        record["node_ready_seconds"] = round(time.monotonic() - started, 1)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {"metadata": {"name": NAMESPACE, "labels": labels}}
        running.admin.post("/api/v1/namespaces", namespace)
        started = time.monotonic()
        helm(running, "install", RELEASE, str(CHART), "--create-namespace", "--wait")
        record["helm_install_seconds"] = round(time.monotonic() - started, 1)
        yield running


@pytest.fixture(scope="session")
def volume(node: NodeCluster) -> Callable[..., Path]:
    """``volume(claim, mebibytes=None)`` makes a volume for this claim, with robot video on it."""
    drawn: list[Path] = []

    def make(claim: str, mebibytes: int | None = None) -> Path:
        folder = node.add_volume(claim, NAMESPACE, mebibytes)
        if not drawn:
            draw(folder)
            drawn.append(folder / "datasets" / "agibot")
        else:
            (folder / "datasets").mkdir()
            subprocess.run(["cp", "-r", drawn[0], folder / "datasets"], check=True)
            make_writable(folder)
        return folder

    return make
