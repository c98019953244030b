"""Compare the loss of an elastic run with that of a fixed one (``python -m benchmarks.elastic``).

The Tiny model trains on the drawn robot videos of ``make demo``, in float32 on CPUs: on four ranks;
and on four, two and four again, a third of the iterations each, with two micro-batches on two
ranks. Every attempt resumes from the checkpoint of the one before. Writes
``benchmarks/results/elastic.json``; ``--document`` puts it into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from video2world_trainer import train

from .cases import Marks, between
from .host import ROOT, facts
from .phases import DATA, prepare
from .random_run import events

RESULTS = ROOT / "benchmarks" / "results" / "elastic.json"
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS: Marks = (
    "<!-- elastic: made by `python -m benchmarks.elastic --document` -->",
    "<!-- elastic: end -->",
)
RANKS = 4
CHANGES = (4, 2, 4)  # ranks of the attempts
GOAL = 1e-5  # largest relative difference of a loss
KINDS: Mapping[str, Sequence[str]] = {
    "all weights, FSDP": ("model.config.fsdp_shard_size=-1",),
    "LoRA, no FSDP": ("model.config.train_architecture=lora", "model.config.fsdp_shard_size=1"),
}


def attempt(volume: Path, ranks: int, *settings: str) -> dict[int, float]:
    """Train on ``ranks`` ranks; return the losses by iteration."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--", "model.size=Tiny", f"dataloader_train.dataset.dataset_dir={DATA}/train"]
    arguments += ["trainer.logging_iter=1", f"trainer.grad_accum_iter={RANKS // ranks}", *settings]
    log = volume / "rank0.log"
    children = []
    for rank in range(ranks):
        child = os.fork()  # importing torch in each process takes longer than the training
        if not child:
            output = os.open(
                log if rank == 0 else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            )
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(volume)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(train.main(arguments))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    out = log.read_text(encoding="utf-8")
    if any(codes):
        raise SystemExit(f"{' '.join(settings)} on {ranks} ranks failed:\n{out[-3000:]}")
    reports = [one for one in events(out.splitlines()) if one["event"] == "progress"]
    return {one["iteration"]: one["loss"] for one in reports}


def measure(volume: Path, iterations: int) -> dict[str, Any]:
    """Return the losses of the fixed and of the elastic run, for each kind of training."""
    found = {}
    for number, (kind, settings) in enumerate(KINDS.items()):
        fixed = attempt(
            volume, RANKS, *settings, f"job.name=fixed{number}", f"trainer.max_iter={iterations}"
        )
        elastic: dict[int, float] = {}
        for part, ranks in enumerate(CHANGES, 1):
            until = iterations * part // len(CHANGES)
            own = (f"job.name=elastic{number}", f"trainer.max_iter={until}")
            elastic |= attempt(volume, ranks, *settings, *own)
        found[kind] = {"fixed": list(fixed.values()), "elastic": list(elastic.values())}
        print(kind, differences(found[kind]), flush=True)
    return found


def differences(losses: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the largest relative difference of a loss in each attempt of the elastic run."""
    pairs = list(zip(losses["elastic"], losses["fixed"], strict=True))
    ends = [len(pairs) * part // len(CHANGES) for part in range(len(CHANGES) + 1)]
    return [max(abs(a / b - 1) for a, b in pairs[start:end]) for start, end in pairwise(ends)]


def markdown(record: Mapping[str, Any]) -> str:
    """Return the record as Markdown for docs/performance.md."""
    place = record["host"]
    attempts = " | ".join(f"on {ranks} ranks" for ranks in CHANGES)
    lines = [
        f"{place['cores']} cores of {place['cpu']} (load {place['load_at_start']} at the start), "
        f"Python {place['python']}, PyTorch {place['torch']}, {place['date']}, commit "
        f"{place['commit']}, `{place['command']}`. Largest relative difference of an iteration's "
        f"loss from that of the fixed run on {RANKS} ranks; the goal is {GOAL:g}.",
        "",
        f"| trained | iterations | loss, first and last | {attempts} | |",
        f"| --- | --- | --- |{' --- |' * len(CHANGES)} --- |",
    ]
    for kind, losses in record["losses"].items():
        found = differences(losses)
        shown = " | ".join(f"{one:.1e}" for one in found)
        verdict = "met" if max(found) <= GOAL else "missed"
        fixed = losses["fixed"]
        lines.append(
            f"| {kind} | {len(fixed)} | {fixed[0]:.4f}, {fixed[-1]:.4f} | {shown} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, or write the document."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.elastic", description=__doc__)
    flags.add_argument("--iterations", type=int, default=60)
    flags.add_argument("--volume", type=Path, help="keep the data here, or use those there")
    flags.add_argument(
        "--document", action="store_true", help=f"only put the record into {DOCUMENT}"
    )
    args = flags.parse_args()
    if not args.document:
        command = f"python -m benchmarks.elastic --iterations {args.iterations}"
        host = facts(command) | {"torch": torch.__version__}
        with tempfile.TemporaryDirectory() as folder:
            volume = (args.volume or Path(folder) / "volume").absolute()
            if not (volume / DATA).is_dir():
                prepare(volume)
            torch.set_num_threads(1)
            record = {"host": host, "losses": measure(volume, args.iterations)}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    content = markdown(json.loads(RESULTS.read_text(encoding="utf-8")))
    DOCUMENT.write_text(between(MARKS, DOCUMENT.read_text(encoding="utf-8"), content), "utf-8")
    print(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
