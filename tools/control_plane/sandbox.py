"""Run a command in namespaces of its own, so that nothing it starts or mounts outlives it.

    python -m control_plane.sandbox COMMAND ...

The command has its own processes, mounts and network (``lo`` with the address NODE_ADDRESS, no way
out), and a folder on disk, named by the variable V2W_NODE_FOLDER, whose ``cache`` is kept between
runs. When the command or this process ends, the kernel kills its processes and removes its mounts,
interfaces and rules; folders and cgroups are removed here, or by the next run if this one is
killed. Needs Linux and root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from .binaries import cache

NODE_ADDRESS = "10.240.0.1"
CGROUP = "video2world-node"
FOLDER = "V2W_NODE_FOLDER"
# Paths that are hard-coded in the programs; each is an empty folder for the command.
PRIVATE = ("/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni")
_INSIDE = "--inside"


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if argv[:1] == [_INSIDE]:
        return _first_process(argv[1:])
    if os.geteuid() != 0:
        print("error: a node needs root (namespaces, mounts, cgroups)", file=sys.stderr)
        return 1
    base = cache().parent / "node"
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("error: another node runs on this machine; wait until it ends", file=sys.stderr)
            return 1
        _clean(base)
        run = base / "run"
        run.mkdir()
        (base / "cache").mkdir(exist_ok=True)
        try:
            return _namespaces(base, argv)
        finally:
            _clean(base)


def _namespaces(base: Path, argv: list[str]) -> int:
    unshare = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child"]
    inside = [sys.executable, "-m", __spec__.name if __spec__ else "control_plane.sandbox", _INSIDE]
    environment = {**os.environ, FOLDER: str(base), "TMPDIR": str(base / "run")}
    process = subprocess.Popen([*unshare, "--mount-proc", *inside, *argv], env=environment)
    # Ctrl-C reaches the command directly, SIGTERM is forwarded; then wait for its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


def _first_process(argv: list[str]) -> int:
    """Act as PID 1: set up mounts and network, start the command, and reap orphans."""
    for command in (
        "mount --make-rprivate /",
        "mount --make-rshared /",  # required by kubelet; within this namespace only
        "ip link set lo up",
        f"ip address add {NODE_ADDRESS}/32 dev lo",
    ):
        subprocess.run(command.split(), check=True)
    for place in PRIVATE:
        Path(place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", place], check=True)
    for controller in _controllers():
        (controller / CGROUP).mkdir(exist_ok=True)
    child = subprocess.Popen(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: child.send_signal(got))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


def _controllers() -> list[Path]:
    """Return the cgroup hierarchies: one for v2, or one per controller for v1."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [one for one in root.iterdir() if one.is_dir() and not one.is_symlink()]


def _clean(base: Path) -> None:
    """Remove what a run left behind, except the cache."""
    shutil.rmtree(base / "run", ignore_errors=True)
    for place in PRIVATE[2:]:
        with contextlib.suppress(OSError):
            Path(place).rmdir()  # created here, if it is empty
    for controller in _controllers():
        group = controller / CGROUP
        if group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
