"""The launcher: which node is rank 0."""

import os
import socket
import subprocess
import sys

TELL = "import os; print(os.environ['JOB_COMPLETION_INDEX'], os.environ['RANK'])"


def test_the_pods_number_is_the_nodes_rank_whichever_came_first(tmp_path):
    """torchrun's c10d rendezvous sorts nodes of one machine by pid: a wrap made pod 1 rank 0."""
    (tmp_path / "tell.py").write_text(TELL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PET_")} | {
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_RDZV_ID": "x",
        "PET_RDZV_CONF": "timeout=60", "PET_MAX_RESTARTS": "0",
    }  # fmt: skip
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "video2world_trainer.launch", "tell.py"], cwd=tmp_path,
            env=environment | {"JOB_COMPLETION_INDEX": index}, stdout=subprocess.PIPE, text=True,
        )
        for index in ("1", "0")  # pod 1 has the lower pid
    ]  # fmt: skip
    told = [node.communicate(timeout=120)[0].split() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert told == [["1", "1"], ["0", "0"]]
