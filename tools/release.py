"""Publish a release: images, chart and files, each signed and with its provenance.

The release workflow only calls the make targets in front of these commands, so that the same runs
against a registry on this machine (``make release-test``). What was published is listed in
``build/published.json``, which ``verify`` reads.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import images
import provenance
from dist import CHART, repository
from registry import Registry, connect
from signing import Signer

PUBLISHED = images.ROOT / "build" / "published.json"
DIST = images.ROOT / "dist"
HUB_FILE = images.ROOT / "charts" / "artifacthub-repo.yml"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MULTI_ARCH = ("operator",)  # PyTorch's CUDA wheels and the kernels are for amd64 here
SBOM, SLSA = "cyclonedx", "slsaprovenance1"  # types of attestations, as cosign calls them


def check(tag: str) -> list[str]:
    """Return what contradicts a release named ``tag``."""
    version = images.version()
    chart = yaml.safe_load((images.ROOT / CHART / "Chart.yaml").read_text())
    crd = (images.ROOT / "manifests" / "crd.yaml").read_text()
    found = [] if tag == f"v{version}" else [f"the tag is {tag}, and pyproject.toml says {version}"]
    for field in ("version", "appVersion"):
        if str(chart[field]) != version:
            found.append(f"Chart.yaml: {field} is {chart[field]}")
    for component in ("preprocess", "trainer"):
        if images.names()[component] not in crd:
            found.append(f"manifests/crd.yaml: the default image of {component} has another tag")
    for image in yaml.safe_load(chart["annotations"]["artifacthub.io/images"]):
        if image["image"] not in images.names().values():
            found.append(f"Chart.yaml: artifacthub.io/images has {image['image']}")
    if not notes(version):
        found.append(f"CHANGELOG.md has no section `## {version}`")
    return found


def notes(version: str) -> str:
    """Return the changelog's section about ``version``; empty if there is none."""
    text = (images.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    pattern = rf"^## {re.escape(version)}(?: [^\n]*)?\n(.*?)(?=^## |\Z)"
    section = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    return section[1].strip() if section else ""


class Publisher:
    """Publish artifacts to ``registry``, signed by ``signer``."""

    def __init__(self, registry: Registry, signer: Signer) -> None:
        self._registry, self._signer = registry, signer
        self._started = datetime.now(UTC)

    def image(self, component: str, variant: str) -> None:
        """Push the image of a component that ``make images`` has built here."""
        tag = images.version()
        if component == "trainer" and variant != "portable":
            tag += f"-{variant}"
        if component in MULTI_ARCH:
            tag += f"-{MACHINES[platform.machine()]}"
        name = f"{component}:{tag}"
        bill = images.BILLS / f"{component}.cdx.json"
        if not bill.exists():
            raise SystemExit(f"error: {bill} is missing; run make images first")
        digest = self._registry.push_image(images.names()[component], name)
        self._signer.attest(name, digest, SBOM, bill)
        target = f"images ONLY={component}" + (f" VARIANT={variant}" if variant else "")
        self._sign(name, digest, target, f"images/{component}/Dockerfile", [SBOM])

    def index(self) -> None:
        """Join the images of each multi-arch component under the version's tag.

        Their signatures are verified first, as a tag could name something else by now.
        """
        for component in MULTI_ARCH:
            digests = []
            for machine in MACHINES.values():
                name = f"{component}:{images.version()}-{machine}"
                digests.append(self._registry.digest(name))
                self._signer.verify(name, digests[-1])
            name = f"{component}:{images.version()}"
            digest = self._registry.join(name, digests)
            self._sign(name, digest, "publish-index", f"images/{component}/Dockerfile")

    def chart(self) -> None:
        """Push the chart of ``dist/``, and Artifact Hub's file about it."""
        archive = DIST / f"{Path(CHART).name}-{images.version()}.tgz"
        if not archive.exists():
            raise SystemExit(f"error: {archive} is missing; run make dist first")
        digest = self._registry.push_chart(archive)
        name = f"charts/{Path(CHART).name}"
        self._sign(f"{name}:{images.version()}", digest, "dist")
        self._registry.push_hub_metadata(HUB_FILE, f"{name}:artifacthub.io")

    def verify(self) -> None:
        """Pull by digest what was published from here, and check signatures and attestations."""
        for entry in json.loads(PUBLISHED.read_text()):
            name, digest = entry["name"], entry["digest"]
            self._registry.validate(f"{name.partition(':')[0]}@{digest}")
            self._signer.verify(name, digest)
            for kind in entry["attestations"]:
                self._signer.verify_attestation(name, digest, kind)
            kinds = ", ".join(entry["attestations"])
            print(f"verified {name}@{digest}: signature, {kinds}", flush=True)

    def _sign(
        self,
        name: str,
        digest: str,
        target: str,
        dockerfile: str = "",
        attested: Sequence[str] = (),
    ) -> None:
        made = provenance.predicate(target, repository(), self._started, dockerfile)
        self._signer.attest_value(name, digest, SLSA, made)
        self._signer.sign(name, digest)
        _record({"name": name, "digest": digest, "attestations": [*attested, SLSA]})
        print(f"published {self._registry.path}/{name}@{digest}", flush=True)


def _record(entry: dict[str, Any]) -> None:
    entries = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else []
    entries = [one for one in entries if one["name"] != entry["name"]] + [entry]
    PUBLISHED.parent.mkdir(exist_ok=True)
    PUBLISHED.write_text(json.dumps(entries, indent=1) + "\n")


def _create_github_release(tag: str) -> int:
    """Create the release on GitHub with the files of ``dist/``; GH_TOKEN logs in."""
    file = images.ROOT / "build" / "notes.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(notes(tag.removeprefix("v")) + "\n", encoding="utf-8")
    command = ["gh", "release", "create", tag, "--verify-tag", f"--title={tag}"]
    command += [f"--notes-file={file}", *map(str, sorted(DIST.iterdir()))]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Run one command."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    flags.add_argument("command", choices=["check", "github", "image", "index", "chart", "verify"])
    flags.add_argument("--registry", default=images.REGISTRY, help="default %(default)s")
    flags.add_argument("--key", type=Path, help="cosign's private key; default: keyless")
    flags.add_argument("--tag", default="", help="git tag of the release")
    flags.add_argument("--image", choices=["operator", "preprocess", "trainer"])
    flags.add_argument("--variant", default="portable", choices=images.VARIANTS)
    given = flags.parse_args()
    if given.command == "check":
        found = check(given.tag)
        print("\n".join(f"error: {one}" for one in found) or f"{given.tag} is consistent")
        return 2 if found else 0
    if given.command == "github":
        return _create_github_release(given.tag)
    with connect(given.registry) as registry:
        publisher = Publisher(registry, Signer(registry, repository(), given.key))
        if given.command == "image":
            if given.image is None:
                flags.error("image needs --image")
            publisher.image(given.image, given.variant)
        else:
            getattr(publisher, given.command)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
