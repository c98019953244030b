"""Own a cluster's processes and folder, and remove both as soon as the owner is gone.

Run as a script: ``keeper.py FOLDER``. Each line of standard input is a JSON object ``{"argv":
[...], "log": path}``; the response is a line with the PID. When standard input ends, which the
kernel guarantees even if the owner is killed, all processes are killed and the folder is removed.
If the keeper itself is killed, the kernel kills the processes (PR_SET_PDEATHSIG). An exited
process stays a zombie, so that its PID is not reused.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(folder: str) -> None:
    """Start what is requested until standard input ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for line in sys.stdin:
            request = json.loads(line)
            with open(request["log"], "ab") as log:  # noqa: PTH123  -- starts fast without pathlib
                process = subprocess.Popen(
                    request["argv"],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_die_with_parent,
                    process_group=0,
                )
            processes.append(process)
            print(process.pid, flush=True)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
