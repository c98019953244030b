"""Record the Tiny model's training step on this machine's CPU, from a run of ``make demo``.

Run ``make demo`` on an otherwise idle machine, then ``python -m benchmarks.tiny_step``. Writes
``benchmarks/results/tiny_step.json``: the median seconds per iteration that the run reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

from video2world_operator.api.validation import load_resource
from video2world_trainer.training.history import read_history

from .cases import write
from .host import ROOT, facts

RESULTS = Path(__file__).parent / "results" / "tiny_step.json"
JOB = "checkpoints/posttraining/video2world/demo"  # on the volume


def main(argv: list[str] | None = None) -> int:
    """Read the demo's reports and write the record."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_step", description=(__doc__ or "").partition("\n")[0]
    )
    flags.add_argument("--volume", type=Path, default=ROOT / ".demo", help="that of the demo")
    flags.add_argument("--commit", default="", help="commit of the run (default: the current one)")
    flags.add_argument("--json", type=Path, default=RESULTS)
    args = flags.parse_args(argv)
    spec = load_resource(ROOT / "manifests" / "samples" / "demo.yaml").spec
    folder = args.volume / JOB
    reports = read_history(folder)
    times = [one["seconds_per_iteration"] for one in reports]
    machine = facts("make demo; python -m benchmarks.tiny_step", args.commit)
    del machine["load_at_start"]  # of the record, not of the run
    ended = (folder / "progress.jsonl").stat().st_mtime
    machine["date"] = datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds")
    case = {
        "processes": spec.nodes * spec.processes_per_node,
        "batch_size": spec.training.batch_size,
        "seconds": round(statistics.median(times), 4),
        "reports": len(times),
    }
    write(args.json, {"machine": machine, "cases": [case]})
    print(json.dumps(case))
    return 0


if __name__ == "__main__":
    sys.exit(main())
