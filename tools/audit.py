"""Find known vulnerabilities of the pinned packages, and secrets in tracked files.

Run by ``make lint``. A finding fails. What could not be audited (no vulnerability service is
reachable, or it does not know a package) is reported and does not fail, but is never called clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["main", "secrets", "vulnerabilities"]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
COMMIT = r"^[0-9a-f]{40}$"  # commits and revisions are no secrets


def vulnerabilities(pinned: Path, *service: str) -> tuple[list[str], list[str]]:
    """Return findings, and remarks on what was not audited.

    Args:
        pinned: requirements file with a version for each package.
        service: additional flags of pip-audit; default: PyPI's own service.
    """
    flags = ("--no-deps", "--disable-pip", "--timeout=10", "--format=json")
    done = _run("pip-audit", f"--requirement={pinned}", *flags, "--progress-spinner=off", *service)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
        return [], [f"{pinned.name} was not audited: {why[:200]}"]
    found = [
        f"{package['name']} {package['version']}: {known['id']}"
        f" ({', '.join(known['aliases']) or 'no other name'}); fixed in"
        f" {', '.join(known['fix_versions']) or 'no version yet'}"
        for package in packages
        for known in package.get("vulns", ())
    ]
    if done.returncode and not found:  # it failed for a reason other than a finding
        return [f"pip-audit ended with {done.returncode}: {done.stderr.strip()[-300:]}"], []
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return found, [
            f"{pinned.name} was not audited: the vulnerability service that can be "
            f"reached from here knows none of its {len(packages)} packages"
        ]
    if skipped:
        return found, [f"not audited, as the service does not know them: {', '.join(skipped)}"]
    return found, []


def secrets(root: Path, files: Sequence[str]) -> list[str]:
    """Return places in ``files`` below ``root`` that look like a secret, without network access.

    Raises:
        SystemExit: the scan itself failed.
    """
    command = ("detect-secrets", "scan", "--no-verify", f"--exclude-secrets={COMMIT}")
    done = _run(*command, *files, root=root)
    if done.returncode:
        raise SystemExit(f"error: detect-secrets failed: {done.stderr.strip()[-500:]}")
    return [
        f"{name}:{one['line_number']}: {one['type']}; if it is none, end the line with"
        " `# pragma: allowlist secret`"
        for name, places in json.loads(done.stdout)["results"].items()
        for one in places
    ]


def _run(tool: str, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / tool), *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def _tracked() -> list[str]:
    """Return the files that git tracks; empty in an unpacked release."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def main() -> int:
    """Print findings and remarks; return 1 if there is a finding."""
    tracked = _tracked()
    with ThreadPoolExecutor() as threads:  # each waits for a process, one for the network
        scan = threads.submit(secrets, ROOT, tracked)
        found, remarks = vulnerabilities(ROOT / "constraints.txt")
        found += scan.result() if tracked else []
    if not tracked:
        remarks.append("no secret scan: this is no git checkout")
    for remark in remarks:
        print(f"audit: {remark}")
    for one in found:
        print(f"audit: FOUND {one}", file=sys.stderr)
    if not found:
        print(
            f"audit: no secret in {len(tracked)} files"
            + ("" if remarks else ", no known vulnerability")
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
