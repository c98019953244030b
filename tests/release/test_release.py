"""A release from beginning to end on this machine, by the release workflow's own make targets.

``make release-test`` runs it as root. A registry on loopback stands in for ghcr.io, and a key pair
for the keyless signatures, which need GitHub's OIDC; a copy of the operator image that says arm64
stands in for the one that an arm64 runner builds.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import images
from control_plane import Cluster, binaries
from local_registry import registry_on

ROOT = images.ROOT
VERSION = images.version()
PUBLISHED = ROOT / "build" / "published.json"
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
OTHER = {"amd64": "arm64", "arm64": "amd64"}[MACHINE]
CHART = "charts/video2world-operator"


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Iterator[str]:
    """An empty registry; its path for our repositories."""
    with registry_on(tmp_path_factory.mktemp("blobs")) as address:
        yield f"{address}/video2world"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A private key of cosign, next to its public one."""
    folder = tmp_path_factory.mktemp("keys")
    generate(folder)
    return folder / "cosign.key"


def generate(folder: Path) -> None:
    cosign = binaries.find("cosign")["cosign"]
    environment = {**os.environ, "COSIGN_PASSWORD": ""}
    subprocess.run([cosign, "generate-key-pair"], cwd=folder, env=environment, check=True)


def make(target: str, check: bool = True, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run a target as the workflow does: its variables come from the environment."""
    done = subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=ROOT,
        env={**os.environ, "COSIGN_PASSWORD": "", **{k: str(v) for k, v in variables.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def published(registry: str, keys: Path) -> dict[str, str]:
    """Everything that a release publishes, as digests by name."""
    PUBLISHED.unlink(missing_ok=True)
    make("images", ONLY="operator")
    make("dist", KREW=1)
    where = {"REGISTRY": registry, "KEY": keys, "REGISTRY_TOKEN": "hunter2", "REGISTRY_USER": "me"}
    said = make("publish-image", IMAGE="operator", VARIANT="portable", **where)
    stand_in(registry, keys)
    said.stdout += make("publish-index", **where).stdout
    said.stdout += make("publish-chart", **where).stdout
    assert "hunter2" not in said.stdout + said.stderr
    return {one["name"]: one["digest"] for one in json.loads(PUBLISHED.read_text())}


def stand_in(registry: str, keys: Path) -> None:
    """Publish a copy of the operator image that says it is of the other architecture."""
    crane, image = binaries.find("crane")["crane"], f"{registry}/operator:{VERSION}"
    flags = [f"--set-platform=linux/{OTHER}", f"--tag={image}-{OTHER}", "--insecure"]
    done = subprocess.run(
        [crane, "mutate", f"{image}-{MACHINE}", *flags], capture_output=True, text=True, check=True
    )
    sign = [binaries.find("cosign")["cosign"], "sign", "--yes", f"--key={keys}"]
    sign += ["--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry"]
    subprocess.run(
        [*sign, done.stdout.strip()], env={**os.environ, "COSIGN_PASSWORD": ""}, check=True
    )


def test_what_is_published_can_be_pulled_by_digest_and_verified(registry, keys, published):
    assert set(published) == {
        f"operator:{VERSION}-{MACHINE}",
        f"operator:{VERSION}",
        f"{CHART}:{VERSION}",
    }
    said = make("release-verify", REGISTRY=registry, KEY=keys).stdout
    for name, digest in published.items():
        assert f"verified {name}@{digest}: signature" in said
    assert f"{VERSION}-{MACHINE}@" in said
    assert "cyclonedx, slsaprovenance1" in said


def test_the_operator_image_is_of_both_architectures(registry, published):
    crane = binaries.find("crane")["crane"]
    digest = published[f"operator:{VERSION}"]
    text = subprocess.run(
        [crane, "manifest", "--insecure", f"{registry}/operator@{digest}"],
        capture_output=True,
        check=True,
    ).stdout
    found = {one["platform"]["architecture"] for one in json.loads(text)["manifests"]}
    assert found == {"amd64", "arm64"}


def test_another_key_is_refused(registry, keys, published, tmp_path):
    generate(tmp_path)
    done = make("release-verify", check=False, REGISTRY=registry, KEY=tmp_path / "cosign.key")
    assert done.returncode != 0
    assert "error: " in done.stderr


def test_a_changed_image_is_refused(registry, keys, published):
    crane = binaries.find("crane")["crane"]
    changed = subprocess.run(
        [crane, "mutate", "--insecure", "--label=a=b", f"{registry}/operator:{VERSION}-{MACHINE}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    before = PUBLISHED.read_text()
    digest = changed.rpartition("@")[2]
    entry = {"name": f"operator:{VERSION}-{MACHINE}", "digest": digest, "attestations": []}
    PUBLISHED.write_text(json.dumps([entry]))
    try:
        done = make("release-verify", check=False, REGISTRY=registry, KEY=keys)
    finally:
        PUBLISHED.write_text(before)
    assert done.returncode != 0
    assert "no signatures" in done.stderr.lower()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1) as running:
        yield running


def test_helm_installs_the_chart_from_the_registry(registry, published, cluster, tmp_path):
    helm = binaries.find("helm")["helm"]
    digest = published[f"{CHART}:{VERSION}"]
    homes = {f"HELM_{one}_HOME": str(tmp_path / one) for one in ("CACHE", "CONFIG", "DATA")}
    where = ["--namespace=system", "--create-namespace", "--plain-http", "--wait", "--timeout=3m"]
    subprocess.run(
        [
            *(helm, f"--kubeconfig={cluster.kubeconfig}", "install", "v2w"),
            f"oci://{registry}/{CHART}@{digest}",
            *where,
            f"--set=image.repository={registry}/operator",
            f"--set=image.digest={published[f'operator:{VERSION}']}",
        ],
        env={**os.environ, **homes},
        check=True,
    )
    path = "/apis/apps/v1/namespaces/system/deployments/v2w-video2world-operator"
    (container,) = cluster.admin.get(path)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{registry}/operator@{published[f'operator:{VERSION}']}"
    assert "v2w" in cluster.kubectl("api-resources", "--api-group=video2world.dev").stdout


def test_krew_installs_kubectl_v2w(published, cluster, tmp_path):
    archive = ROOT / "dist" / f"kubectl-v2w-{VERSION}-linux-{MACHINE}.tar.gz"
    manifest = yaml.safe_load((ROOT / "dist" / "v2w.yaml").read_text())
    assert len(manifest["spec"]["platforms"]) == 4
    krew, home = binaries.find("krew")["krew"], tmp_path / "krew"
    install = [krew, "install", f"--manifest={ROOT / 'dist' / 'v2w.yaml'}", f"--archive={archive}"]
    paths = [home / "bin", binaries.find("kubectl")["kubectl"].parent, os.environ["PATH"]]
    environment = {
        "KREW_ROOT": str(home),
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": ":".join(map(str, paths)),
        "HOME": str(tmp_path),
    }
    subprocess.run(install, env=environment, check=True)

    def v2w(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "v2w", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    assert VERSION in v2w("--version").stdout
    sample = ROOT / "manifests" / "samples" / "agibot-2b.yaml"
    assert v2w("validate", "-f", sample).returncode == 0
    cluster.kubectl("apply", "-f", sample)  # the chart has installed the CRD
    assert "agibot-2b" in v2w("status", "agibot-2b").stdout


def test_files_contradict_a_tag_of_another_version():
    said = make("release-check", check=False, TAG="v9.9.9").stdout
    assert f"the tag is v9.9.9, and pyproject.toml says {VERSION}" in said
    assert "Chart.yaml" not in said
