"""Test the launcher: which node is rank 0, and how much time workers get to exit."""

import os
import signal
import socket
import subprocess
import sys
import time

TELL = "import os; print(os.environ['JOB_COMPLETION_INDEX'], os.environ['RANK'])"


def test_the_completion_index_is_the_node_rank_whichever_pod_starts_first(tmp_path):
    """torchrun's c10d rendezvous sorts nodes of one machine by PID, which may wrap around."""
    (tmp_path / "tell.py").write_text(TELL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PET_")} | {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
        "PET_RDZV_ID": "x",
        "PET_RDZV_CONF": "timeout=60",
        "PET_MAX_RESTARTS": "0",
    }
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "video2world_trainer.launch", "tell.py"],
            cwd=tmp_path,
            env=environment | {"JOB_COMPLETION_INDEX": index},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in ("1", "0")  # pod 1 has the lower pid
    ]
    reported = [node.communicate(timeout=120)[0].split() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert reported == [["1", "1"], ["0", "0"]]


WORKER = """
import os, pathlib, signal, sys, time

def stop(number, frame):
    time.sleep({seconds})
    pathlib.Path("saved").write_text("all of it")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(300)
"""


def launched(folder, seconds, count):
    """Start the launcher with workers that take ``seconds`` to exit; also return their PIDs."""
    (folder / "work.py").write_text(WORKER.format(seconds=seconds))
    flags = ["--standalone", f"--nproc_per_node={count}", "work.py"]
    process = subprocess.Popen(
        [sys.executable, "-m", "video2world_trainer.launch", *flags], cwd=folder
    )
    until = time.monotonic() + 60
    while not all((folder / str(rank)).exists() for rank in range(count)):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.5)
    return process, [int((folder / str(rank)).read_text()) for rank in range(count)]


def test_after_a_stop_signal_workers_get_more_time_than_from_torchrun(tmp_path):
    process, _ = launched(tmp_path, 32, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert (tmp_path / "saved").read_text() == "all of it"


def test_after_a_lost_worker_the_others_end_soon(tmp_path):
    process, pids = launched(tmp_path, 100, 2)
    os.kill(pids[1], signal.SIGKILL)
    assert process.wait(25) == 1
    assert not (tmp_path / "saved").exists()
