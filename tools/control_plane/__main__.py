"""Run a cluster to try things on, for as long as its shell is open (``make cluster``).

With the argument ``build``, only build the binaries (``make tools``), or those named after it. With
``node IMAGE ...``, inside a sandbox, run a cluster whose node runs containers (``make node``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from . import Cluster, Unavailable, binaries
from .demo import draw
from .node import NodeCluster

CRD = Path(__file__).resolve().parents[2] / "manifests" / "crd.yaml"
NODES = 4
VOLUMES = 16
JOB_SECONDS = 20


def main() -> int:
    """Run the cluster and return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        helm = binaries.find("helm")["helm"]
        if sys.argv[1:2] == ["build"]:
            names = sys.argv[2:] or binaries.WITHOUT_NODE
            print(*binaries.find(*names).values(), sep="\n")
            return 0
        print("starting the cluster ...", flush=True)
        if sys.argv[1:2] == ["node"]:
            with NodeCluster(sys.argv[2:]) as cluster:
                folder = cluster.add_volume("demo-data", "default")
                draw(folder)
                print(
                    "One node runs containers. It has our images and no outgoing network."
                    f"\nThe PVC demo-data will get a volume with robot video: {folder}"
                )
                _hand_over(cluster, helm)
            return 0
        with Cluster(nodes=NODES, job_seconds=JOB_SECONDS, native_gang=True) as cluster:
            cluster.install_definition(CRD)
            cluster.add_volumes(VOLUMES)
            print(
                f"{cluster.server} has {NODES} fake nodes with nvidia.com/gpu: 8 and our CRD."
                f"\nNo containers run; pods of Jobs succeed after {JOB_SECONDS} s."
            )
            _hand_over(cluster, helm)
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _hand_over(cluster: Cluster, helm: Path) -> None:
    """Open a shell for the cluster, or wait if there is no terminal."""
    folders = [cluster.binaries["kubectl"].parent, helm.parent, Path(sys.executable).parent]
    environment = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]),
    }
    if sys.stdin.isatty():
        _shell(environment)
    else:
        _wait(environment)


def _shell(environment: dict[str, str]) -> None:
    print("kubectl, helm and v2w are on the PATH; `exit` ends the cluster.", flush=True)
    shell = os.environ.get("SHELL") or "/bin/sh"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the shell's commands
    try:
        subprocess.run(
            [shell],
            env={**os.environ, **environment},
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        print(f"export {name}={value}")
    print("Ctrl-C or SIGTERM ends the cluster.", flush=True)
    signal.pause()


if __name__ == "__main__":
    sys.exit(main())
