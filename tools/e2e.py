"""``make e2e``, ``make node``: our containers on a real node, made here and gone afterwards.

Brings what is missing (Debian packages, binaries, images), then runs the tests of tests/node, or a
shell with --shell, in a sandbox in which kubelet and containerd have the machine to themselves.
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
    """Packages, binaries and images, each made only where it is missing."""
    images.install(*PACKAGES, programs=PROGRAMS)
    binaries.find(*BINARIES)
    images.build()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--shell", action="store_true", help="a shell in place of the tests")
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
