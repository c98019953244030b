"""``make bench-operator``: a thousand resources at once, here and with Kubeflow's operators.

On a real control plane with KWOK nodes, one system after the other, each alone on a cluster of its
own. Writes ``benchmarks/results/scale.json`` and makes ``docs/scale.md`` of it. The peers are built
from their Go modules in ``benchmarks/peers/`` (once; minutes).
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

from .cases import verdicts, write
from .host import facts
from .scale_noise import noise
from .scale_run import Scale, measure
from .scale_systems import TOOLS, Ours, System, Trainer, TrainingOperator, binaries

__all__ = ["document", "goals", "main"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "scale.json"
DOCUMENT = ROOT / "docs" / "scale.md"
SYSTEMS: dict[str, type[System]] = {s.name: s for s in (Ours, TrainingOperator, Trainer)}
PEERS = [name for name in SYSTEMS if name != Ours.name]
NOISE = "noise"
PARTS = (*SYSTEMS, NOISE)


def at(record: Any, path: str) -> Any:
    """The value under a dotted path; None where there is none."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def goals(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The issue's goals held against the record; what was not measured is left out."""
    ours, found = record["systems"].get(Ours.name, {}), []

    def goal(
        text: str, path: str, bound: float | None, *, least: bool = False, of: Any = None
    ) -> None:
        measured = at(ours if of is None else of, path)
        if measured is None or bound is None:
            return
        met = measured >= bound if least else measured <= bound
        sign = ">=" if least else "<="
        found.append({"goal": f"{text} {sign} {bound}", "measured": measured, "met": met})

    def fastest(path: str) -> float | None:
        values = [at(record["systems"].get(name), path) for name in PEERS]
        return min((v for v in values if v is not None), default=None)

    turn = "probe.turn_to_4_pods_created.p99"
    goal("resources accepted per second", "fill.accepted_per_second", 20, least=True)
    goal("4 x 8, stage ready to 4 pods created, p99, s", turn, 2)
    goal("the same, against the faster peer", turn, fastest(turn))
    large = "large.turn_to_all_pods_created"
    goal("large resource, all pods created, s, against the faster peer", large, fastest(large))
    goal("failure to group deleted, p99, s", "fail.failure_to_deletion.p99", 2)
    goal("resident memory with all resources live, MiB", "fill.mib", 286)  # 300 MB
    goal("SIGKILL to convergence, s", "crash.launch_to_all_done", 10)
    tenant = record.get("noise")
    goal("delay by a noisy tenant, p99, s", "delay_p99", 2, of=tenant or {})
    return found


_FIGURES = (
    ("All at once", None),
    ("resources posted per second", "fill.posted_per_second"),
    ("resources accepted per second (first status written)", "fill.accepted_per_second"),
    ("apply to first pod created, s", "fill.apply_to_first_pod"),
    ("apply to all training pods created, s", "fill.apply_to_all_training_pods"),
    ("seconds until all train", "fill.seconds_until_all_train"),
    ("pods created per second, all of the cluster", "fill.pods_per_second"),
    ("work queue depth, mean", "fill.queue_depth_mean"),
    ("work queue depth, largest", "fill.queue_depth_max"),
    ("reconciliation p50, at most, s", "fill.reconcile_seconds.p50_at_most"),
    ("reconciliation p99, at most, s", "fill.reconcile_seconds.p99_at_most"),
    ("reconciliations", "fill.reconcile_seconds.count"),
    ("its CPU seconds", "fill.cpu_seconds"),
    ("its memory without resources, MiB", "at_rest_mib"),
    ("its memory then, MiB", "fill.mib"),
    ("Beside them, one after the other", None),
    ("4 x 8: turn of training to 4 pods created, s", "probe.turn_to_4_pods_created"),
    ("apply to first pod created, s", "probe.apply_to_first_pod"),
    ("Faults, with all of them live", None),
    ("pods that crashed", "fail.pods"),
    ("crash to group deleted, s", "fail.failure_to_deletion"),
    ("crash to new pods created, s", "fail.failure_to_new_pods"),
    ("nodes that vanished", "vanish.nodes"),
    ("node gone to new pods created, s", "vanish.failure_to_new_pods"),
    ("SIGKILL: new process to all done, s", "crash.launch_to_all_done"),
    ("resources refused meanwhile, as no webhook answered", "crash.resources_refused_while_away"),
    ("Whole lives", None),
    ("resources that succeeded", "drain.succeeded"),
    ("API requests per resource", "drain.requests_per_resource"),
    ("of them writes", "drain.writes_per_resource"),
    ("useful GPU time of all held", "drain.goodput"),
    ("its CPU seconds in all", "drain.cpu_seconds"),
    ("its largest memory, MiB", "drain.mib_max"),
    ("One large resource", None),
    ("training nodes", "large.nodes"),
    ("turn of training to all pods created, s", "large.turn_to_all_pods_created"),
    ("turn of training to all pods running, s", "large.turn_to_all_pods_running"),
    ("its CPU seconds", "large.cpu_seconds"),
    ("The machine", None),
    ("load, largest", "drain.load_max"),
    ("measured", "measured"),
)


def document(record: dict[str, Any]) -> str:
    """docs/scale.md of the record."""
    machine, found = record["machine"], record["systems"]
    systems = {name: found[name] for name in SYSTEMS if name in found}
    lines = [
        "# Under load",
        "",
        "Made by `make bench-operator`; do not edit. Real etcd, API server, controllers and "
        f"scheduler (Kubernetes {record['control_plane']}) with {record['scale']['cluster_nodes']} "
        f"KWOK nodes of 8 GPUs, all on one machine: {machine['cores']} cores of {machine['cpu']}, "
        f"load {machine['load_at_start']} in the minute before (in which the peers were built, if "
        f"they had to be), Python {machine['python']}, commit "
        f"{machine['commit']}, {machine['date']}, `{machine['command'].strip()}` (the last part; "
        "when each was measured stands below). No container runs. The machine is the bound of "
        "everything that is asked at once: all of the control plane and the operator share its "
        "cores, so that figures of the same row compare, and none says what a larger control plane "
        "does.",
        "",
        f"This run: {record['scale']['resources']} resources at once, {record['scale']['nodes']} "
        "nodes of the large one. The goals are for 1,000 of each and a machine that does nothing "
        "else: with fewer, or other work beside them, they are told, not judged by.",
        "",
        "## Goals",
        "",
        "| goal | measured | |",
        "| --- | --- | --- |",
    ]
    for one in record["goals"]:
        lines.append(f"| {one['goal']} | {one['measured']} | {'met' if one['met'] else 'missed'} |")
    lines += ["", "## Figures", ""]
    lines.append("| figure | " + " | ".join(s.get("title", n) for n, s in systems.items()) + " |")
    lines.append("| --- |" + " --- |" * len(systems))
    for title, path in _FIGURES:
        if path is None:
            lines.append(f"| **{title}** |" + " |" * len(systems))
            continue
        cells = [_shown(at(system, path)) for system in systems.values()]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for name, system in systems.items():
        if "error" in system:
            lines += ["", f"{system.get('title', name)} did not get through: {system['error']}"]
    lines += ["", *_HOW, "", *_requests(systems)]
    if record.get("noise"):
        lines += [
            "",
            "## A noisy tenant",
            "",
            *_NOISY,
            "",
            "| figure | measured |",
            "| --- | --- |",
        ]
        for name, value in record["noise"].items():
            lines.append(f"| {name.replace('_', ' ')} | {_shown(value)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if k != "count") or "-"
    return str(value)


def _requests(systems: dict[str, Any]) -> list[str]:
    lines = ["## API requests per resource", ""]
    for name, system in systems.items():
        told = at(system, "drain.requests")
        if told:
            shown = ", ".join(f"{kind} {number}" for kind, number in told.items() if number >= 0.01)
            lines.append(f"- {system.get('title', name)}: {shown}.")
    return lines


_HOW = (
    "How it was measured: every time is the API server's own, from its audit log, the same for "
    "all systems. Of every 20 resources 11 are Tiny (one pod of one GPU), 6 are 1 x 8 and 3 are 4"
    " x 8. A life of ours is six stages, each a Job: four of one second, training until all "
    "train, inference; the peers have training only. *Turn of training* is for ours the moment at"
    " which the stage before was told complete, for the peers that of apply. Crashed pods (exit "
    "code 137, 2 % of all) and vanished nodes (1 %; their pods are collected by Kubernetes after "
    "40 to 60 s) are drawn with a seed. The 4 x 8 resources beside them come one after the "
    "other, each when the one before has its pods. No node renews its lease meanwhile: all would, "
    "at once; and the API server may take 8 GiB of memory: with less it collects its garbage every "
    "15 s, for 2 s on both cores. The peers' client limits are raised to 500 requests a second and "
    "their workers to 16 (Trainer v2.1.0 reads its limit and does not apply it: it stays at "
    "client-go's 20); ours has its defaults. A killed one is started again after a "
    "second, ours in the same pod (lease of 120 s), the peers without leader election. "
    "training-operator makes its pods itself and replaces one pod, not the group, so that its row"
    " of new pods is about that one; the Job controller's CPU, which ours and Trainer use, is in "
    "no row. training-operator's validating webhook is left out, Trainer's and JobSet's are in. "
    "Useful GPU time is that in which the group that then ended well was whole; all else that "
    "pods held is lost, as if there were no checkpoints.",
)
_NOISY = (
    "A tenant starts a small resource twice a second, first alone, then while another tenant's bad"
    " ones come: a third with a claim that is not there, a third whose Job the API server refuses,"
    " a third whose pods find no node (what is invalid the API server itself refuses). Start is "
    "from apply to the first pod. Then the bad ones are deleted, made again and deleted again: the"
    " operator keeps nothing of them.",
)


def main() -> int:
    """Entry point; returns the exit code."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    flags.add_argument("--resources", type=int, default=1000, help="at once (1000)")
    flags.add_argument("--nodes", type=int, default=1000, help="of the one large resource (1000)")
    flags.add_argument("--bad", type=int, help="of the noisy tenant (five for each resource)")
    flags.add_argument("--seed", type=int, default=1, help="of what crashes and vanishes (1)")
    flags.add_argument(
        "--only",
        default=",".join(PARTS),
        help=f"which of {', '.join(PARTS)}; the others' figures stay in a record of this scale",
    )
    flags.add_argument("--document", action="store_true", help="only make docs/scale.md again")
    flags.add_argument("--dry", action="store_true", help="write neither record nor document")
    args = flags.parse_args()
    if args.document:
        record = json.loads(RESULTS.read_text())
        record["goals"] = goals(record)
        DOCUMENT.write_text(document(record))
        return 0
    chosen = [name for name in args.only.split(",") if name]
    if unknown := set(chosen) - set(PARTS):
        flags.error(f"--only: {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    few = max(2, min(10, args.resources // 20))
    scale = Scale(args.resources, args.nodes, probes=6 * few, killed=few, seed=args.seed)
    systems = [name for name in SYSTEMS if name in chosen]
    for name in systems:  # building is no part of what is measured
        for tool in getattr(SYSTEMS[name], "tools", ()):
            binaries.ready(TOOLS[tool])
    asked = {**vars(scale), "cluster_nodes": scale.cluster_nodes}
    record: dict[str, Any] = {
        "machine": facts(" ".join(["python -m benchmarks.scale", *sys.argv[1:]])),
        "control_plane": f"v{binaries.ALL['kube-apiserver'].version}",
        "scale": asked,
        **_others(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}, asked, chosen),
    }
    measured = f"{record['machine']['date'][:16]}, {record['machine']['commit']}"
    for name in systems:
        record["systems"][name] = {**_one(SYSTEMS[name](), scale), "measured": measured}
        _keep(record, args.dry)
    bad = 5 * args.resources if args.bad is None else args.bad
    if bad and NOISE in chosen:
        told = asyncio.run(noise(bad, max(10, args.resources // 20)))
        record["noise"] = told | {"measured": measured}
        print(f"noise: {record['noise']}", flush=True)
    _keep(record, args.dry)
    print("\n".join(verdicts(record)))
    return 0


def _others(before: dict[str, Any], asked: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """What the record ``before`` has of what is not ``chosen`` now, if its scale is the same."""
    same = before.get("scale") == asked
    systems = before["systems"] if same else {}
    kept: dict[str, Any] = {"systems": {n: systems[n] for n in systems if n not in chosen}}
    if same and NOISE not in chosen and "noise" in before:
        kept["noise"] = before["noise"]
    return kept


def _one(system: System, scale: Scale) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(measure(system, scale, Path(folder)))
        except (Exception, subprocess.CalledProcessError) as error:  # the others go on
            traceback.print_exc()
            return {"title": system.title, "error": f"{type(error).__name__}: {error}"}


def _keep(record: dict[str, Any], dry: bool) -> None:
    record["goals"] = goals(record)
    if not dry:
        write(RESULTS, record)
        DOCUMENT.write_text(document(record))


if __name__ == "__main__":
    sys.exit(main())
