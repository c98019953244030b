"""Measure how fast the operator is, on a real control plane with KWOK nodes.

Run as ``python -m benchmarks.operator``. Prints a table and writes
``benchmarks/results/operator.json`` and ``docs/operator.md``. The control plane is that of the
cluster tests; on its KWOK nodes containers start in no time. Where the control plane and the fake
nodes take longer than the operator, the figures are theirs: all share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from .host import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tools")]

from control_plane import Cluster  # noqa: E402
from operators import Operator, Resource, grant  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "operator.json"
DOCUMENT = ROOT / "docs" / "operator.md"
NAMESPACE = "bench"
STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")
FLAGS = ("--lease-seconds", "4", "--own-namespace", "video2world-system", "--poll-seconds", "10")
USER = "system:serviceaccount:video2world-system:video2world-operator"


def _quickly(seconds: str) -> dict[str, Any]:
    annotations = {"fake.video2world.dev/seconds": seconds}
    return {"podTemplate": {"metadata": {"annotations": annotations}}}


def _wait(probe: Callable[[], Any], seconds: float = 300) -> float:
    """Wait until ``probe`` is true; return the seconds."""
    began = time.monotonic()
    while not probe():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"error: not within {seconds} s: {probe}")
        time.sleep(0.05)
    return time.monotonic() - began


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {"p50": round(statistics.median(ordered), 2), "p99": round(last, 2)}


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def _running(folder: Path) -> Iterator[tuple[Cluster, Operator]]:
    with Cluster(nodes=8, native_gang=True) as cluster:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        account = grant(cluster, "video2world-system")
        kubeconfig = cluster.write_kubeconfig(account)
        with Operator(kubeconfig, *FLAGS, log=folder / "log") as operator:
            yield cluster, operator


def _audited(cluster: Cluster, since: float) -> list[dict[str, Any]]:
    return [e for e in cluster.audit() if _time(e["requestReceivedTimestamp"]) >= since]


def groups(cluster: Cluster, count: int) -> dict[str, Any]:
    """Create ``count`` 4-node resources at once; measure until all their pods exist."""
    spec = {
        "training": {"nodes": 4},
        "storage": {"claimName": "shared"},
        "stages": {s: _quickly("1") for s in STAGES[:4]},
    }
    claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
    cluster.add_volumes(1)
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    cluster.admin.post(claims, {"metadata": {"name": "shared"}, "spec": wanted})
    began = time.time()
    runs = []
    for number in range(count):
        # separate data, so that none waits for another
        own: dict[str, Any] = {
            "dataset": {"agibot": {"path": f"data-{number}", "name": f"set-{number}"}}
        }
        own["model"] = {"size": "Tiny", "weights": f"w-{number}.pt"}
        own["storage"] = {"claimName": "shared", "subPath": f"team-{number}"}
        runs.append(Resource(cluster, NAMESPACE, f"group-{number}").create(**spec | own))
    applied = time.time() - began
    _wait(lambda: all(len(run.pods("train")) == 4 for run in runs))
    running_after = time.time() - began
    created_at: dict[str, list[float]] = {}
    applied_at: dict[str, float] = {}
    for event in _audited(cluster, began):
        about, verb = event.get("objectRef", {}), event["verb"]
        name, moment = about.get("name", ""), _time(event["stageTimestamp"])
        if verb == "create" and about.get("resource") == "jobs" and "-train-" in name:
            applied_at[name] = moment
    for run in runs:
        job = f"{run.name}-train-1"
        created_at[job] = [
            _time(p["metadata"]["creationTimestamp"])
            for p in run.children("pods")
            if "-train-" in p["metadata"]["name"]
        ]
    lags = [max(times) - int(applied_at[job]) for job, times in created_at.items()]
    durations = [
        max(created_at[f"{run.name}-train-1"]) - _time(run.object["metadata"]["creationTimestamp"])
        for run in runs
    ]
    return {
        "resources": count,
        "training_pods": 4 * count,
        "seconds_to_apply": round(applied, 2),
        "seconds_from_first_apply_to_last_training_pod_running": round(running_after, 2),
        "seconds_from_job_applied_to_its_pods_created_whole_seconds": _spread(lags),
        "seconds_from_apply_through_four_stages_of_1_s_to_training_pods_created": _spread(
            durations
        ),
    }


def _has_pods(run: Resource, attempt: int, count: int) -> bool:
    return len(run.pods("train", attempt)) == count


def restart(cluster: Cluster, rounds: int) -> dict[str, Any]:
    """Fail one pod of four; measure until the group is deleted and the next attempt applied."""
    run = Resource(cluster, NAMESPACE, "restarts").create(
        training={"nodes": 4, "maxRestarts": 100, "restartBackoffSeconds": 0},
        storage={"size": "1Gi"},
        stages={s: _quickly("1") for s in STAGES[:4]},
    )
    cluster.add_volumes(1)
    deleted, created = [], []
    for attempt in range(1, rounds + 1):
        _wait(partial(_has_pods, run, attempt, 4))
        victim = run.pods("train", attempt)[1]["metadata"]["name"]
        began = time.time()
        cluster.finish_pod(NAMESPACE, victim, 1)
        _wait(partial(_has_pods, run, attempt + 1, 4))
        for event in _audited(cluster, began):
            about = event.get("objectRef", {})
            moment = _time(event["stageTimestamp"]) - began
            if about.get("resource") == "jobs" and event["user"]["username"] == USER:
                if (event["verb"], about.get("name")) == ("delete", f"restarts-train-{attempt}"):
                    deleted.append(moment)
                if (event["verb"], about.get("name")) == (
                    "create",
                    f"restarts-train-{attempt + 1}",
                ):
                    created.append(moment)
    return {
        "rounds": rounds,
        "seconds_from_failure_told_to_group_deleted": _spread(deleted),
        "seconds_from_failure_told_to_next_attempt_applied": _spread(created),
    }


def lifetime(cluster: Cluster) -> dict[str, Any]:
    """Count the operator's API requests for one resource, from apply to success."""
    began = time.time()
    run = Resource(cluster, NAMESPACE, "lifetime").create(
        storage={"size": "1Gi"}, stages={s: _quickly("1") for s in STAGES}
    )
    cluster.add_volumes(1)
    _wait(lambda: run.status.get("phase") == "Succeeded")
    verbs: Counter[str] = Counter()
    for event in _audited(cluster, began):
        about = event.get("objectRef", {})
        if event["user"]["username"] != USER or event["verb"] == "watch":
            continue
        if event["stage"] == "ResponseStarted":  # of a log stream; its end is logged, too
            continue
        if not about.get("name", "").startswith("lifetime"):
            continue
        sub = f"/{about['subresource']}" if "subresource" in about else ""
        verbs[f"{event['verb']} {about['resource']}{sub}"] += 1
    writes = sum(n for what, n in verbs.items() if not what.startswith(("get", "list")))
    return {
        "writes": writes,
        "requests": dict(sorted(verbs.items())),
        "seconds": round(time.time() - began, 1),
    }


def recovery(cluster: Cluster, operator: Operator) -> dict[str, Any]:
    """Kill the operator while a pod fails; measure until the next attempt runs."""
    run = Resource(cluster, NAMESPACE, "recovers").create(
        training={"nodes": 4, "restartBackoffSeconds": 0},
        storage={"size": "1Gi"},
        stages={s: _quickly("1") for s in STAGES[:4]},
    )
    cluster.add_volumes(1)
    _wait(lambda: len(run.pods("train")) == 4)
    operator.kill()
    cluster.finish_pod(NAMESPACE, run.pods("train")[0]["metadata"]["name"], 1)
    began = time.monotonic()
    operator.launch()
    _wait(lambda: len(run.pods("train", 2)) == 4)
    return {
        "seconds_from_start_of_the_process_to_next_attempt_running": round(
            time.monotonic() - began, 2
        ),
        "of_which_at_most_seconds_for_the_old_lease": 4,
    }


def memory(operator: Operator) -> dict[str, Any]:
    """Return the resident memory of the operator's process."""
    assert operator.process is not None
    for line in Path(f"/proc/{operator.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return {"resident_mib": round(int(line.split()[1]) / 1024, 1)}
    raise SystemExit("error: the operator has ended")


_WHAT = {
    "lifetime": "One resource, apply to success: 6 stages of 1 s, 2 training nodes, native gang",
    "groups": "Resources of 4 training nodes applied at once, each after 4 stages of 1 s",
    "restart": "One of 4 training pods fails",
    "recovery": "SIGKILL of the operator, a pod fails while it is down, a new process starts",
    "memory_at_rest": "Memory of the operator without resources",
    "memory_at_work": "Memory of the operator after all of the above",
}


_LABELS = {  # of the record's names that do not read well
    "seconds_from_failure_told_to_group_deleted": "seconds from reported failure to group deleted",
    "seconds_from_failure_told_to_next_attempt_applied": (
        "seconds from reported failure to next attempt applied"
    ),
    "seconds_from_job_applied_to_its_pods_created_whole_seconds": (
        "seconds from Job applied to its pods created (resolution 1 s)"
    ),
}


def document(results: dict[str, Any]) -> str:
    """Return docs/operator.md: the results as tables."""
    machine = results["machine"]
    lines = [
        "# Operator benchmark",
        "",
        "Generated by `python -m benchmarks.operator`; do not edit. Real etcd, API server, "
        f"controllers and scheduler (Kubernetes {results['control_plane']}) with KWOK nodes, "
        f"all on one machine: {machine['cores']} cores of {machine['cpu']}, "
        f"Python {machine['python']}, commit {machine['commit']}, {machine['date']}, "
        f"`{machine['command'].strip()}`. No "
        "containers run: these are times of the operator and the control plane.",
    ]
    for part, title in _WHAT.items():
        lines += ["", f"## {title}", "", "| figure | measured |", "| --- | --- |"]
        for name, value in results[part].items():
            shown = value
            if isinstance(value, dict):
                shown = ", ".join(f"{k} {v}" for k, v in value.items())
            lines.append(f"| {_LABELS.get(name, name.replace('_', ' '))} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark and return the exit code."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.operator", description=__doc__)
    flags.add_argument("--groups", type=int, default=8, help="resources of 4 nodes at once (8)")
    flags.add_argument("--restarts", type=int, default=10, help="failures to measure (10)")
    args = flags.parse_args()
    results: dict[str, Any] = {
        "machine": facts(" ".join(["python -m benchmarks.operator", *sys.argv[1:]]))
    }
    with tempfile.TemporaryDirectory() as folder, _running(Path(folder)) as (cluster, operator):
        results["control_plane"] = cluster.admin.get("/version")["gitVersion"]
        results["memory_at_rest"] = memory(operator)
        results["lifetime"] = lifetime(cluster)
        results["groups"] = groups(cluster, args.groups)
        results["restart"] = restart(cluster, args.restarts)
        results["memory_at_work"] = memory(operator)
        results["recovery"] = recovery(cluster, operator)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCUMENT.write_text(document(results))
    for part, values in results.items():
        print(part)
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            print(f"  {name:<62} {value}")
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
