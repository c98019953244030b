"""Sign artifacts in a registry with cosign, attach attestations to them, and verify both.

Without a key it is keyless: cosign has Fulcio certify the identity of the GitHub workflow and
records the signature in Rekor, which needs GitHub's OIDC token. A key pair stands in for that
elsewhere; nothing is then recorded in a transparency log.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control_plane import binaries
from registry import Registry, run

__all__ = ["Signer"]

ISSUER = "https://token.actions.githubusercontent.com"


class Signer:
    """Sign and verify artifacts of ``registry`` as ``repository``'s release workflow.

    With a ``key`` (the private one's path; the public one is next to it), use that instead.
    """

    def __init__(self, registry: Registry, repository: str, key: Path | None = None) -> None:
        self._registry, self._key = registry, key
        self._identity = (
            f"https://github.com/{repository}/.github/workflows/release.yml@refs/tags/v"
        )

    def sign(self, name: str, digest: str, *, recursive: bool = False) -> None:
        """Sign an artifact; with ``recursive`` also every image of an index."""
        flags = ["--recursive"] if recursive else []
        self._cosign("sign", *self._signing(), *flags, self._reference(name, digest))

    def attest(self, name: str, digest: str, kind: str, predicate: Path) -> None:
        """Attach a signed statement about an artifact: ``kind`` cyclonedx or slsaprovenance1."""
        about = ("--type", kind, "--predicate", str(predicate))
        self._cosign("attest", *self._signing(), *about, self._reference(name, digest))

    def attest_value(self, name: str, digest: str, kind: str, predicate: Mapping[str, Any]) -> None:
        """As :meth:`attest`, with a value instead of a file."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(predicate))
            file.flush()
            self.attest(name, digest, kind, Path(file.name))

    def verify(self, name: str, digest: str) -> None:
        """Check the artifact's signature.

        Raises:
            SystemExit: there is none of this signer.
        """
        self._cosign("verify", *self._verifying(), self._reference(name, digest))

    def verify_attestation(self, name: str, digest: str, kind: str) -> dict[str, Any]:
        """Check the attestation of this kind and return its predicate."""
        about = ("--type", kind, "--output=json")
        said = self._cosign(
            "verify-attestation", *self._verifying(), *about, self._reference(name, digest)
        )
        return _predicate(said)

    def _signing(self) -> list[str]:
        if self._key is None:
            return ["--yes"]
        return ["--yes", f"--key={self._key}", *_OFFLINE]

    def _verifying(self) -> list[str]:
        if self._key is None:
            pattern = "^" + self._identity.replace(".", r"\.")
            return [
                f"--certificate-identity-regexp={pattern}",
                f"--certificate-oidc-issuer={ISSUER}",
            ]
        return [f"--key={self._key.with_suffix('.pub')}", "--insecure-ignore-tlog=true"]

    def _reference(self, name: str, digest: str) -> str:
        return f"{self._registry.path}/{name.partition(':')[0]}@{digest}"

    def _cosign(self, command: str, *arguments: str) -> str:
        local = (
            ["--allow-insecure-registry", "--allow-http-registry"] if self._registry.local else []
        )
        program = binaries.find("cosign")["cosign"]
        return run([program, command, *arguments, *local], self._registry.environment)


_OFFLINE = ("--tlog-upload=false", "--use-signing-config=false")


def _predicate(said: str) -> dict[str, Any]:
    import base64

    first = json.loads(said.splitlines()[0])
    envelope = first.get("dsseEnvelope", first)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    predicate: dict[str, Any] = statement["predicate"]
    return predicate
