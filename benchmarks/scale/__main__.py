"""``make bench-operator``: measure a thousand resources at once, next to Kubeflow's operators.

Each system runs alone on a cluster of its own: a real control plane with KWOK nodes. Writes
``benchmarks/results/scale.json`` and ``docs/scale.md``. The peers are built once, in minutes, from
their Go modules in ``benchmarks/peers/``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from control_plane import binaries

from ..cases import verdicts, write
from ..host import facts
from . import ROOT
from .kubeflow import TOOLS
from .load import Scale
from .noisy_neighbor import measure_noise
from .phases import measure
from .report import SYSTEMS, document, goals
from .systems import System

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
DOCUMENT = ROOT / "docs" / "scale.md"
NOISE = "noise"
PARTS = (*SYSTEMS, NOISE)


def main() -> int:
    """Run the benchmark and return the exit code."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    flags.add_argument("--resources", type=int, default=1000, help="created at once (1000)")
    flags.add_argument("--nodes", type=int, default=1000, help="of the one large resource (1000)")
    flags.add_argument("--bad", type=int, help="of the noisy tenant (five for each resource)")
    flags.add_argument("--seed", type=int, default=1, help="for the choice of faults (1)")
    flags.add_argument(
        "--only",
        default=",".join(PARTS),
        help=f"parts to measure, of {', '.join(PARTS)}; a record of this scale keeps the others",
    )
    flags.add_argument("--document", action="store_true", help="only write docs/scale.md again")
    flags.add_argument("--dry", action="store_true", help="write neither record nor document")
    args = flags.parse_args()
    if args.document:
        existing = json.loads(RESULTS.read_text())
        existing["goals"] = goals(existing)
        DOCUMENT.write_text(document(existing))
        return 0
    chosen = [name for name in args.only.split(",") if name]
    if unknown := set(chosen) - set(PARTS):
        flags.error(f"--only: {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    few = max(2, min(10, args.resources // 20))
    scale = Scale(args.resources, args.nodes, probes=6 * few, killed=few, seed=args.seed)
    systems = [name for name in SYSTEMS if name in chosen]
    for name in systems:  # build before anything is measured
        for tool in getattr(SYSTEMS[name], "tools", ()):
            binaries.ready(TOOLS[tool])
    size = {**vars(scale), "cluster_nodes": scale.cluster_nodes}
    record: dict[str, Any] = {
        "machine": facts(" ".join(["python -m benchmarks.scale", *sys.argv[1:]])),
        "control_plane": f"v{binaries.ALL['kube-apiserver'].version}",
        "scale": size,
        **_others(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}, size, chosen),
    }
    measured = f"{record['machine']['date'][:16]}, {record['machine']['commit']}"
    for name in systems:
        record["systems"][name] = {**_one(SYSTEMS[name](), scale), "measured": measured}
        _keep(record, args.dry)
    bad = 5 * args.resources if args.bad is None else args.bad
    if bad and NOISE in chosen:
        figures = asyncio.run(measure_noise(bad, max(10, args.resources // 20)))
        record["noise"] = figures | {"measured": measured}
        print(f"noise: {record['noise']}", flush=True)
    _keep(record, args.dry)
    print("\n".join(verdicts(record)))
    return 0


def _others(before: dict[str, Any], size: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """Return what a record of the same scale has of the parts that are not ``chosen``."""
    same = before.get("scale") == size
    systems = before["systems"] if same else {}
    kept: dict[str, Any] = {"systems": {n: systems[n] for n in systems if n not in chosen}}
    if same and NOISE not in chosen and "noise" in before:
        kept["noise"] = before["noise"]
    return kept


def _one(system: System, scale: Scale) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(measure(system, scale, Path(folder)))
        except (
            Exception,
            subprocess.CalledProcessError,
        ) as error:
            traceback.print_exc()  # the other systems are still measured
            return {"title": system.title, "error": f"{type(error).__name__}: {error}"}


def _keep(record: dict[str, Any], dry: bool) -> None:
    record["goals"] = goals(record)
    if not dry:
        write(RESULTS, record)
        DOCUMENT.write_text(document(record))


if __name__ == "__main__":
    sys.exit(main())
