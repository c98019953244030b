"""Run by test_global_batch.py: train commands one after the other, each on some ranks.

All ranks are forks of one process, and train in every command that has as many ranks: importing
torch once spares most of the time.
"""

import json
import os
import sys
from pathlib import Path

import torch

from video2world_trainer import train


def train_all(rank, runs):
    os.environ |= {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    for number, run in enumerate(runs):
        if rank >= run["ranks"]:
            continue
        os.environ |= {"WORLD_SIZE": str(run["ranks"]), "MASTER_PORT": str(run["port"])}
        os.chdir(run["folder"])
        code = train.main(["--", *run["overrides"]])
        if rank == 0:
            print(json.dumps({"run": number, "code": code}), flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    runs = json.loads(Path(sys.argv[1]).read_text())
    for rank in range(1, max(run["ranks"] for run in runs)):
        if not os.fork():
            os.dup2(2, 1)
            os._exit(train_all(rank, runs))
    sys.exit(train_all(0, runs))
