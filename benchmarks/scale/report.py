"""Write docs/scale.md and the goals from the record of the scale benchmark."""

from __future__ import annotations

from typing import Any

from .kubeflow import Trainer, TrainingOperator
from .systems import System, Video2WorldOperator

__all__ = ["SYSTEMS", "document", "goals"]

SYSTEMS: dict[str, type[System]] = {
    s.name: s for s in (Video2WorldOperator, TrainingOperator, Trainer)
}
PEERS = [name for name in SYSTEMS if name != Video2WorldOperator.name]


def at(record: Any, path: str) -> Any:
    """Return the value at a dotted path; None if there is none."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def goals(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the record with the goals; figures that were not measured are left out."""
    ours, found = record["systems"].get(Video2WorldOperator.name, {}), []

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
    ("pods created per second, in the whole cluster", "fill.pods_per_second"),
    ("work queue depth, mean", "fill.queue_depth_mean"),
    ("work queue depth, maximum", "fill.queue_depth_max"),
    ("reconciliation p50, at most, s", "fill.reconcile_seconds.p50_at_most"),
    ("reconciliation p99, at most, s", "fill.reconcile_seconds.p99_at_most"),
    ("reconciliations", "fill.reconcile_seconds.count"),
    ("its CPU seconds", "fill.cpu_seconds"),
    ("its memory without resources, MiB", "at_rest_mib"),
    ("its memory under this load, MiB", "fill.mib"),
    ("Next to them, one after the other", None),
    ("4 x 8: start of training to 4 pods created, s", "probe.turn_to_4_pods_created"),
    ("apply to first pod created, s", "probe.apply_to_first_pod"),
    ("Faults, with all of them live", None),
    ("pods that crashed", "fail.pods"),
    ("crash to group deleted, s", "fail.failure_to_deletion"),
    ("crash to new pods created, s", "fail.failure_to_new_pods"),
    ("nodes that vanished", "vanish.nodes"),
    ("node gone to new pods created, s", "vanish.failure_to_new_pods"),
    ("SIGKILL: new process to all done, s", "crash.launch_to_all_done"),
    (
        "resources refused meanwhile (no webhook response)",
        "crash.resources_refused_while_away",
    ),
    ("Complete runs", None),
    ("resources that succeeded", "drain.succeeded"),
    ("API requests per resource", "drain.requests_per_resource"),
    ("writes among them", "drain.writes_per_resource"),
    ("useful share of the GPU time held", "drain.goodput"),
    ("its CPU seconds in total", "drain.cpu_seconds"),
    ("its peak memory, MiB", "drain.mib_max"),
    ("One large resource", None),
    ("training nodes", "large.nodes"),
    ("start of training to all pods created, s", "large.turn_to_all_pods_created"),
    ("start of training to all pods running, s", "large.turn_to_all_pods_running"),
    ("its CPU seconds", "large.cpu_seconds"),
    ("The machine", None),
    ("load, maximum", "drain.load_max"),
    ("measured", "measured"),
)


_NOISE_LABELS = {  # of the record's names that do not read well
    "start_alone": "start delay alone, s",
    "start_beside": "start delay while bad resources are created, s",
    "delay_p99": "additional delay, p99, s",
    "mib_at_rest": "MiB without resources",
    "mib_before": "MiB before the bad resources",
    "mib_with_the_bad": "MiB with the bad resources",
    "kib_per_bad_resource": "KiB per bad resource",
    "mib_after_their_deletion": "MiB after they are deleted",
    "mib_with_as_many_again": "MiB with as many created again",
    "mib_after_those_were_deleted": "MiB after those are deleted",
}


def document(record: dict[str, Any]) -> str:
    """Return docs/scale.md for the record."""
    machine, found = record["machine"], record["systems"]
    systems = {name: found[name] for name in SYSTEMS if name in found}
    lines = [
        "# Under load",
        "",
        "Made by `make bench-operator`; do not edit. Real etcd, API server, controllers and "
        f"scheduler (Kubernetes {record['control_plane']}) with {record['scale']['cluster_nodes']} "
        f"KWOK nodes of 8 GPUs, all on one machine: {machine['cores']} cores of {machine['cpu']}, "
        f"load {machine['load_at_start']} in the minute before (during which the peers were "
        f"built if necessary), Python {machine['python']}, commit "
        f"{machine['commit']}, {machine['date']}, `{machine['command'].strip()}` (the last part; "
        "the table says when each part was measured). No containers run. The control plane and the "
        "operator share the machine's cores, which limit everything that happens at once: figures "
        "in one row compare with each other, but do not predict a larger control plane.",
        "",
        f"This run: {record['scale']['resources']} resources at once, {record['scale']['nodes']} "
        "nodes of the large one. The goals are for 1,000 of each on an otherwise idle machine; "
        "with fewer resources or other load they are shown for information.",
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
            lines += ["", f"{system.get('title', name)} did not complete: {system['error']}"]
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
            label = _NOISE_LABELS.get(name, name.replace("_", " "))
            lines.append(f"| {label} | {_shown(value)} |")
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
        requests = at(system, "drain.requests")
        if requests:
            shown = ", ".join(f"{kind} {n}" for kind, n in requests.items() if n >= 0.01)
            lines.append(f"- {system.get('title', name)}: {shown}.")
    return lines


_HOW = (
    "Method: every time is the API server's own, from its audit log, for all systems alike. Of "
    "every 20 resources 11 are Tiny (one pod with one GPU), 6 are 1 x 8 and 3 are 4 x 8. One of "
    "our runs has six stages, each a Job: four of one second, training until all resources "
    "train, inference; the peers only train. *Start of training* is, for ours, the moment at "
    "which the previous stage is reported complete, and for the peers, the moment of apply. "
    "Crashed pods (exit code 137, 2 % of all) and vanished nodes (1 %; Kubernetes collects "
    "their pods after 40 to 60 s) are drawn with a seed. The 4 x 8 resources next to them are "
    "created one after the other, each when the previous one has its pods. No node renews its "
    "lease during a run, because all would at the same time. The API server may use 8 GiB of "
    "memory: with less, it collects garbage every 15 s, for 2 s on both cores. The peers' "
    "client limits are raised to 500 requests a second and their workers to 16 (Trainer v2.1.0 "
    "reads its limit and does not apply it: it stays at client-go's 20); ours has its defaults. "
    "A killed operator is started again after a second: ours in the same pod (lease of 120 s), "
    "the peers without leader election. training-operator creates its pods itself and replaces "
    "one pod, not the group, so its row of new pods is about that one; the Job controller's CPU "
    "time, which ours and Trainer rely on, is in no row. training-operator's validating webhook "
    "is left out, Trainer's and JobSet's are included. Useful GPU time is that of a complete "
    "group that later succeeds; all other time that pods held GPUs is lost, as if there were no "
    "checkpoints.",
)
_NOISY = (
    "A tenant creates a small resource twice a second, first alone, then while another tenant "
    "creates bad resources: a third with a claim that does not exist, a third whose Job the API "
    "server refuses, a third whose pods cannot be scheduled (invalid resources are refused by "
    "the API server itself). The start delay is from apply to the first pod. Then the bad "
    "resources are deleted, created again and deleted again: the operator keeps nothing of "
    "them.",
)
