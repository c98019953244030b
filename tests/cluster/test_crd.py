"""The API server accepts the CRD, the samples and their rendered manifests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from repository import ROOT

MANIFESTS = ROOT / "manifests"
SAMPLES = sorted((MANIFESTS / "samples").glob("*.yaml"))


def test_the_crd_is_structural_and_established(cluster):
    name = "video2worldposttrains.video2world.dev"
    seen = json.loads(cluster.kubectl("get", "crd", name, "--output=json").stdout)
    conditions = {one["type"]: one["status"] for one in seen["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


def test_kubectl_apply_accepts_the_crd(cluster):
    # Client-side apply keeps the whole object in an annotation of at most 262144 bytes.
    cluster.kubectl("apply", "--dry-run=server", "-f", MANIFESTS / "crd.yaml")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_server_accepts_the_sample(cluster, namespace, sample):
    asked = ("apply", "--dry-run=server", "--namespace", namespace, "-f", sample)
    assert "created (server dry run)" in cluster.kubectl(*asked).stdout


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_server_accepts_the_rendered_sample(cluster, sample):
    rendered = subprocess.run(
        [sys.executable, "-m", "video2world_operator.cli", "render", "-f", str(sample)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    done = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=rendered)
    assert len(done.stdout.splitlines()) == rendered.count("\nkind: ")
    assert "Warning" not in done.stderr
