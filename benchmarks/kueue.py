"""Measure how soon a queued run's pods exist once quota is free, next to a bare Job's.

Run as ``python -m benchmarks.kueue``. Both wait under the same Kueue, each in its own queue of 16
GPUs, with two pods of eight GPUs. In each round a Job of higher priority takes the quota, which
evicts them; then that Job is deleted, and the time until both pods have been created again is taken
from the API server's audit log. Writes ``benchmarks/results/kueue.json`` and the table in
``docs/operations.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from .cases import Marks, between, write
from .host import facts
from .operator import _spread, _wait

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tools")]

from control_plane import Cluster  # noqa: E402
from control_plane.kueue import Kueue  # noqa: E402
from operators import Operator, Resource, grant  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "kueue.json"
DOCUMENT = ROOT / "docs" / "operations.md"
MARKS: Marks = ("<!-- kueue: made by `python -m benchmarks.kueue` -->", "<!-- /kueue -->")
BOUND = 0.5  # seconds that a run may take longer than a bare Job, at p99
PODS = 2
FLAGS = ("--own-namespace", "video2world-system")
AUDITED = [{"level": "Metadata", "verbs": ["create"], "resources": [{"resources": ["pods"]}]}]


def bare_job(name: str, priority: str) -> dict[str, Any]:
    """Return a Job of two pods with eight GPUs each in the queue ``gpus``."""
    container = {
        "name": "work",
        "image": "none",
        "resources": {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "8"}},
    }
    pod = {"restartPolicy": "Never", "priorityClassName": priority, "containers": [container]}
    labels = {"kueue.x-k8s.io/queue-name": "gpus"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "completions": PODS,
            "parallelism": PODS,
            "completionMode": "Indexed",
            "backoffLimit": 100,
            "suspend": True,
            "template": {"spec": pod},
        },
    }


class Subject:
    """A Job in a queue of its own, evicted by a Job of higher priority once a round."""

    def __init__(self, kueue: Kueue, namespace: str) -> None:
        self._cluster, self.namespace = kueue.cluster, namespace
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        self._cluster.components.wait(account, lambda: self._cluster.admin.get(account))
        preemption = {"withinClusterQueue": "LowerPriority"}
        kueue.add_queue(namespace, gpus=8 * PODS, preemption=preemption)

    def create_job(self, name: str, priority: str) -> None:
        """Create a bare Job."""
        self._cluster.admin.post(self._jobs, bare_job(name, priority))

    def running(self, job: str) -> bool:
        """Return whether all pods of the Job run, and no other pod is left of it."""
        pods = self._pods(job)
        return len(pods) == PODS and all(p["status"].get("phase") == "Running" for p in pods)

    def waits(self, job: str) -> bool:
        """Return whether the Job is suspended and has no pods left."""
        suspended = self._cluster.admin.get(f"{self._jobs}/{job}")["spec"]["suspend"]
        return bool(suspended) and not self._pods(job)

    def _pods(self, job: str) -> list[dict[str, Any]]:
        selector = f"labelSelector=batch.kubernetes.io/job-name%3D{job}"
        path = f"/api/v1/namespaces/{self.namespace}/pods?{selector}"
        pods: list[dict[str, Any]] = self._cluster.admin.get(path)["items"]
        return pods

    def round(self, job: str, number: int) -> float:
        """Evict the Job, free the quota, and return the seconds until its pods were created."""
        blocker = f"blocker-{number}"
        self.create_job(blocker, "high")
        _wait(lambda: self.running(blocker) and self.waits(job))
        self._cluster.admin.delete(f"{self._jobs}/{blocker}?propagationPolicy=Background")
        _wait(lambda: self.running(job))
        return self._seconds(blocker, job)

    def _seconds(self, blocker: str, job: str) -> float:
        freed, created = 0.0, []
        for event in self._cluster.audit():
            about = event.get("objectRef", {})
            if about.get("namespace") != self.namespace or "subresource" in about:
                continue
            at = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
            if (event["verb"], about.get("resource"), about.get("name")) == (
                "delete",
                "jobs",
                blocker,
            ):
                freed = at
            elif (event["verb"], about.get("resource")) == ("create", "pods") and freed:
                created.append(datetime.fromisoformat(event["stageTimestamp"]).timestamp())
        assert len(created) == PODS, (job, created)
        return max(created) - freed


def measure(rounds: int) -> dict[str, Any]:
    """Return the record of ``rounds`` rounds of each, one after the other."""
    machine = facts(f"python -m benchmarks.kueue --rounds {rounds}")
    with Cluster(nodes=4, audited=AUDITED) as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        cluster.add_volumes(2)
        for name, value in (("low", 10), ("high", 1000)):
            body = {"metadata": {"name": name}, "value": value}
            cluster.admin.post("/apis/scheduling.k8s.io/v1/priorityclasses", body)
        log = Path(folder) / "operator.log"
        kubeconfig = cluster.write_kubeconfig(grant(cluster, "video2world-system"))
        with Kueue(cluster) as kueue, Operator(kubeconfig, *FLAGS, log=log):
            bare, ours = Subject(kueue, "bare"), Subject(kueue, "ours")
            bare.create_job("job", "low")
            resource = Resource(cluster, "ours").create(
                scheduling={"queueName": "gpus", "priorityClassName": "low"},
                training={"nodes": PODS, "gpusPerNode": 8, "device": "GPU", "iterations": 100},
            )
            resource.to_training()
            _wait(lambda: bare.running("job"))
            seconds: dict[str, list[float]] = {"bare": [], "ours": []}
            for number in range(rounds):
                for name, subject, job in (("bare", bare, "job"), ("ours", ours, "run-train-1")):
                    seconds[name].append(round(subject.round(job, number), 3))
                print(f"{number + 1}: {seconds['bare'][-1]} {seconds['ours'][-1]}", flush=True)
            status = resource.status
        kept = (status["attempt"], status["restarts"]) == (1, 0)
        version = kueue.version
    return _judged(
        {"machine": machine, "kueue": version, "rounds": rounds, "seconds": seconds}, kept
    )


def _judged(record: dict[str, Any], kept: bool) -> dict[str, Any]:
    spreads = {name: _spread(values) for name, values in record["seconds"].items()}
    slower = round(spreads["ours"]["p99"] - spreads["bare"]["p99"], 2)
    goals = [
        {
            "goal": f"p99 of a run at most {BOUND} s above that of a bare Job",
            "measured": f"{slower:+} s",
            "met": slower <= BOUND,
        },
        {
            "goal": "every eviction leaves attempt and restarts as they were",
            "measured": "yes" if kept else "no",
            "met": kept,
        },
    ]
    return {**record, "spread": spreads, "goals": goals}


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's table between its marks."""
    machine, spread = record["machine"], record["spread"]
    rows = [("a bare Job", spread["bare"]), ("a run's train Job", spread["ours"])]
    lines = [
        "| seconds from freed quota to created pods | median | p99 |",
        "| --- | --- | --- |",
        *(f"| {name} | {one['p50']:.2f} | {one['p99']:.2f} |" for name, one in rows),
        "",
        f"{record['rounds']} rounds each, Kueue {record['kueue']}; {machine['cores']} cores of "
        f"{machine['cpu']} (load {machine['load_at_start']} at the start), commit "
        f"{machine['commit']}, {machine['date'][:10]}, `{machine['command']}`.",
    ]
    return between(MARKS, text, "\n".join(lines))


def main(arguments: list[str] | None = None, run: Callable[[int], Any] = measure) -> int:
    """Measure, write record and table, and return 0 if every goal is met."""
    flags = argparse.ArgumentParser(prog="benchmarks.kueue", description=__doc__)
    flags.add_argument("--rounds", type=int, default=60)
    record = run(flags.parse_args(arguments).rounds)
    write(RESULTS, record)
    DOCUMENT.write_text(documented(DOCUMENT.read_text(), record))
    for one in record["goals"]:
        print(f"{'met   ' if one['met'] else 'MISSED'} {one['goal']}: {one['measured']}")
    print(json.dumps(record["spread"]))
    return 0 if all(one["met"] for one in record["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
