"""Real clusters for the tests of this folder: one of each kind per worker, a namespace per test."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from control_plane import ApiError, Cluster, Unavailable, binaries
from operators import Operator

HERE = Path(__file__).parent
CRD = HERE.parents[1] / "manifests" / "crd.yaml"


@pytest.hookimpl(trylast=True)  # when -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Build what is missing before any test's clock runs; where that fails, skip by name."""
    ours = [item for item in items if HERE in item.path.parents]
    if not ours or config.option.collectonly:
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            binaries.find(*binaries.WITHOUT_NODE)
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            return  # the fixtures fail with the same error
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=f"no test cluster: {error}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what its operator and the components of its clusters logged last."""
    report = yield
    for value in getattr(item, "funcargs", {}).values() if report.failed else ():
        if isinstance(value, Operator):
            report.sections.append(("operator" if value.alive else "ended operator", value.tail()))
        elif isinstance(value, Cluster):
            for process in value.components.running.values():
                name = process.name if process.alive() else f"ended {process.name}"
                report.sections.append((name, process.log_tail()))
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """API server and controllers, no nodes; our resource's definition is installed."""
    with Cluster() as running:
        running.install_definition(CRD)
        yield running
        running.components.check()


@pytest.fixture(scope="session")
def gpu_cluster() -> Iterator[Cluster]:
    """As ``cluster``, with a scheduler, native gangs and four fake nodes of eight GPUs.

    Pods run until ``gpu_cluster.finish_pod`` ends them.
    """
    with Cluster(nodes=4, native_gang=True, readable_store=True) as running:
        running.install_definition(CRD)
        yield running
        running.components.check()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace of ``cluster``."""
    yield from _namespace(cluster, request.node.name)


@pytest.fixture
def gpu_namespace(gpu_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace of ``gpu_cluster``, with volumes enough for six claims."""
    gpu_cluster.add_volumes(6)
    yield from _namespace(gpu_cluster, request.node.name)


def _namespace(cluster: Cluster, test: str) -> Iterator[str]:
    prefix = re.sub(r"[^a-z0-9]+", "-", test.lower()).strip("-")[:40]
    asked = {"metadata": {"generateName": f"{prefix}-"}}
    name = cluster.admin.post("/api/v1/namespaces", asked)["metadata"]["name"]
    until = time.monotonic() + 30
    while True:  # pods are refused until the controller has made the default account
        try:
            cluster.admin.get(f"/api/v1/namespaces/{name}/serviceaccounts/default")
            break
        except ApiError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    yield name
    cluster.admin.delete(f"/api/v1/namespaces/{name}")
