"""Run our containers on a temporary real node (``make e2e``, ``make node``).

Installs what is missing (Debian packages, binaries, images), then runs the tests in tests/node, or
with --shell a shell, in a sandbox that kubelet and containerd have to themselves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import images
from control_plane import Unavailable, binaries
from control_plane.node import BINARIES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iptables", "iproute2")
PROGRAMS = ("containerd", "runc", "/usr/lib/cni/bridge", "iptables", "ip")


def prepare() -> None:
    """Install packages, binaries and images that are missing."""
    images.install(*PACKAGES, programs=PROGRAMS)
    binaries.find(*BINARIES)
    images.build()


def main() -> int:
    """Run tests or shell in the sandbox and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--shell", action="store_true", help="open a shell instead of running the tests"
    )
    given, more = parser.parse_known_args()
    began = time.time()
    try:
        prepare()
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shell = ["control_plane", "node", *images.names().values()]
    inside = (
        shell
        if given.shell
        else ["pytest", "tests/node", "--timeout=1800", f"--began={began}", *more]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-m", "control_plane.sandbox", sys.executable, "-m", *inside]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
