"""Push images, indexes, charts and files to an OCI registry, by digest.

``REGISTRY_USER`` and ``REGISTRY_TOKEN`` log in. They are written to a private file that buildah,
crane, cosign and helm read, and never to a command line or log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane import binaries

__all__ = ["Registry", "connect", "run"]

# https://artifacthub.io/docs/topics/repositories/helm-charts/#oci-support
_HUB_CONFIG = "application/vnd.cncf.artifacthub.config.v1+yaml"
_HUB_LAYER = "application/vnd.cncf.artifacthub.repository-metadata.layer.v1.yaml"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Run a program and return its output.

    Raises:
        SystemExit: it failed; the text ends with what it said.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = " ".join(str(one) for one in command[:2])
        raise SystemExit(f"error: {shown}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout.strip()


class Registry:
    """A path in a registry, such as ``ghcr.io/video2world``.

    A registry on this machine is spoken to without TLS.
    """

    def __init__(self, path: str, login: Path) -> None:
        self.path, self._login = path.rstrip("/"), login
        self.local = self.path.partition(":")[0] in ("localhost", "127.0.0.1")
        self.environment = {"DOCKER_CONFIG": str(login.parent), "REGISTRY_AUTH_FILE": str(login)}

    def push_image(self, image: str, name: str) -> str:
        """Push an image from buildah's store as ``name`` (with tag); return its digest."""
        with tempfile.NamedTemporaryFile("r") as digest:
            flags = ["--quiet", "--format=oci", f"--digestfile={digest.name}"]
            flags += ["--tls-verify=false"] if self.local else []
            target = f"docker://{self.path}/{name}"
            run(["buildah", "push", *flags, image, target], self.environment)
            return digest.read().strip()

    def join(self, name: str, digests: Sequence[str]) -> str:
        """Push an index of images of ``name``'s repository, as ``name``; return its digest."""
        repository = name.partition(":")[0]
        command = ["index", "append", "--tag", f"{self.path}/{name}"]
        for digest in digests:
            command += ["--manifest", f"{self.path}/{repository}@{digest}"]
        self._crane(*command)
        return self.digest(name)

    def push_chart(self, archive: Path) -> str:
        """Push a packed chart to ``charts/``; return its digest."""
        helm = binaries.find("helm")["helm"]
        flags = ["--plain-http"] if self.local else []
        target = f"oci://{self.path}/charts"
        login = f"--registry-config={self._login}"
        run([helm, "push", archive, target, login, *flags], self.environment)
        name, _, version = archive.name.removesuffix(".tgz").rpartition("-")
        return self.digest(f"charts/{name}:{version}")

    def push_hub_metadata(self, file: Path, name: str) -> str:
        """Push Artifact Hub's file about a repository next to its chart; return its digest."""
        with tempfile.TemporaryDirectory() as work:
            _write_layout(Path(work), file)
            self._crane("push", work, f"{self.path}/{name}")
        return self.digest(name)

    def digest(self, name: str) -> str:
        """Return the digest that a tag names now."""
        return self._crane("digest", f"{self.path}/{name}")

    def validate(self, name: str) -> None:
        """Pull everything below ``name`` and compare it with its digests."""
        self._crane("validate", "--remote", f"{self.path}/{name}")

    def _crane(self, *arguments: str) -> str:
        crane = binaries.find("crane")["crane"]
        flags = ["--insecure"] if self.local else []
        return run([crane, *arguments, *flags], self.environment)


@contextmanager
def connect(path: str) -> Iterator[Registry]:
    """Log in to the registry of ``path`` inside the block."""
    user, token = os.environ.get("REGISTRY_USER", ""), os.environ.get("REGISTRY_TOKEN", "")
    with tempfile.TemporaryDirectory() as work:
        login = Path(work) / "config.json"
        login.touch(mode=0o600)
        auths = {}
        if token:
            secret = base64.b64encode(f"{user}:{token}".encode()).decode()
            auths[path.partition("/")[0]] = {"auth": secret}
        login.write_text(json.dumps({"auths": auths}))
        yield Registry(path, login)


def _write_layout(folder: Path, file: Path) -> None:
    """Write an OCI image layout of one layer: Artifact Hub's metadata file."""
    layer = _blob(folder, file.read_bytes(), _HUB_LAYER)
    layer["annotations"] = {"org.opencontainers.image.title": file.name}
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(folder, b"{}", _HUB_CONFIG),
        "layers": [layer],
    }
    described = _blob(folder, json.dumps(manifest).encode(), _MANIFEST)
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "manifests": [described]}
    (folder / "index.json").write_text(json.dumps(index))


def _blob(folder: Path, content: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    path = folder / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}
