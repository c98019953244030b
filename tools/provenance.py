"""State how an artifact was built, as a SLSA v1 provenance predicate.

https://slsa.dev/spec/v1.0/provenance. On GitHub the facts come from the runner's environment; the
certificate of a keyless signature repeats them, as said by GitHub instead of by this program.
"""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PINNED = re.compile(r"^ARG \w+=(\S+)@sha256:([0-9a-f]{64})$", re.MULTILINE)


def predicate(
    target: str, repository: str, started: datetime, dockerfile: str = ""
) -> dict[str, Any]:
    """Return the predicate of an artifact that ``make target`` has built from this checkout.

    ``dockerfile`` names the one whose pinned base images went into it, if any.
    """
    environment = os.environ
    source = f"git+https://github.com/{repository}"
    ref = environment.get("GITHUB_REF", "")
    dependencies: list[dict[str, Any]] = [
        {"uri": f"{source}@{ref}" if ref else source, "digest": {"gitCommit": _commit()}}
    ]
    if dockerfile:
        text = (ROOT / dockerfile).read_text()
        for name, digest in sorted(set(_PINNED.findall(text))):
            uri = f"pkg:docker/{name.removeprefix('docker.io/library/')}"
            dependencies.append({"uri": uri, "digest": {"sha256": digest}})
    run = environment.get("GITHUB_RUN_ID", "")
    builder, invocation = "urn:video2world:workstation", ""
    if run:
        builder = f"https://github.com/actions/runner/{environment.get('RUNNER_ENVIRONMENT', '')}"
        attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
        invocation = f"https://github.com/{repository}/actions/runs/{run}/attempts/{attempt}"
    metadata = {"startedOn": started.isoformat(timespec="seconds").replace("+00:00", "Z")}
    return {
        "buildDefinition": {
            "buildType": f"https://github.com/{repository}/blob/main/docs/releases.md#provenance",
            "externalParameters": {"source": source, "ref": ref, "command": f"make {target}"},
            "internalParameters": {"workflow": environment.get("GITHUB_WORKFLOW_REF", "")},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": builder},
            "metadata": metadata | ({"invocationId": invocation} if invocation else {}),
        },
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
