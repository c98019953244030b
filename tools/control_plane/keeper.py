"""Holds a cluster's processes and folder, and ends both as soon as its owner is gone.

Run as a script: ``keeper.py FOLDER``. Each line of standard input is a JSON object
``{"argv": [...], "log": path}``; the answer is the process id on a line. When standard input ends,
which the kernel sees to even when the owner is killed, all processes are killed and the folder is
removed. Should the keeper itself be killed, the kernel kills the processes (PR_SET_PDEATHSIG). An
ended process is left as a zombie, so that its id is never another's.
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            with open(asked["log"], "ab") as log:  # noqa: PTH123  -- starts fast without pathlib
                process = subprocess.Popen(
                    asked["argv"],
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
