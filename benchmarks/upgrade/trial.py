"""Run one upgrade on a real control plane and compare what runs before and after it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from control_plane import Cluster, binaries
from operators import Operator, Resource, eventually

from . import ROOT
from .previous import CHART, Release
from .situations import SITUATIONS, TRAIN_LOG, manifest, wait_for

__all__ = ["FAULTS", "Upgrade", "upgrade"]

NAMESPACE, SYSTEM = "runs", "video2world-system"
NAME = "v2w-video2world-operator"  # of the chart's Deployment and service account
KINDS = {"jobs": "/apis/batch/v1", "pods": "/api/v1", "services": "/api/v1"}
_RECONCILED = "video2world_reconcile_duration_seconds_count"
State = dict[str, Any]
FAULTS = ("differences", "writes_to_children", "twice", "extra")  # lists that should be empty


class Upgrade:
    """A cluster with the previous release's chart and operator, and resources in all situations.

    Args:
        cluster: an empty one, with nodes.
        release: the previous release.
        count: number of resources; each situation gets about the same share.
        folder: for logs.
    """

    def __init__(self, cluster: Cluster, release: Release, count: int, folder: Path) -> None:
        self.cluster, self.release, self._folder = cluster, release, folder
        self._helm = binaries.find("helm")["helm"]
        chosen = [SITUATIONS[number % len(SITUATIONS)] for number in range(count)]
        self.runs = {
            f"r{number:03}": (situation, Resource(cluster, NAMESPACE, f"r{number:03}"))
            for number, situation in enumerate(chosen)
        }
        self.seconds: dict[str, float] = {}

    def install(self, chart: Path) -> None:
        """Install or upgrade the chart with helm."""
        homes = {f"HELM_{kind}_HOME": str(self._folder / kind) for kind in ("CACHE", "DATA")}
        command: list[str | Path] = [
            self._helm,
            "--kubeconfig",
            self.cluster.kubeconfig,
            "--namespace",
            SYSTEM,
        ]
        done = subprocess.run(
            [*command, "upgrade", "--install", "--create-namespace", "v2w", chart],
            env={**os.environ, **homes, "HELM_CONFIG_HOME": str(self._folder / "CONFIG")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"helm upgrade: {done.stderr}")

    def operator(self, name: str, python_path: str = "") -> Operator:
        """Return the operator of a release, with the rights of the chart's service account."""
        account = self.cluster.service_account(SYSTEM, NAME)
        return Operator(
            self.cluster.write_kubeconfig(account),
            *("--own-namespace", SYSTEM, "--lease-seconds", "15", "--poll-seconds", "2"),
            log=self._folder / f"{name}.log",
            environment={"PYTHONPATH": python_path} if python_path else None,
        )

    def reach_situations(self) -> None:
        """Create all resources and wait until each is where it should be."""
        self.cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        self.cluster.add_volumes(len(self.runs))
        for number, (name, (situation, run)) in enumerate(self.runs.items()):
            tiny = number // len(SITUATIONS) % 2 == 0
            body = manifest(situation, name, tiny)
            text = json.dumps(body).replace("NAME-late", f"{name}-late")
            self.cluster.admin.post(run.path, json.loads(text))
        prepared: set[str] = set()

        def missing() -> list[str]:
            for name, (situation, run) in self.runs.items():
                ready = situation.prepare and name not in prepared and len(run.pods("train")) == 2
                if situation.prepare and ready:
                    situation.prepare(self.cluster, run)
                    prepared.add(name)
            return [
                f"{name} ({situation.name}): {run.status.get('message')}"
                for name, (situation, run) in self.runs.items()
                if not situation.there(run)
            ]

        wait_for("the situations", missing, 60 + 6 * len(self.runs))

    def state(self) -> State:
        """Return what must survive the upgrade: children by UID, stages, restarts."""
        children = {
            f"{kind}/{one['metadata']['name']}": one["metadata"]["uid"]
            for kind, group in KINDS.items()
            for one in self.cluster.admin.get(f"{group}/namespaces/{NAMESPACE}/{kind}")["items"]
        }
        containers = {
            one["metadata"]["name"]: [
                (status["restartCount"], next(iter(status["state"])))
                for status in one["status"].get("containerStatuses", [])
            ]
            for one in self.cluster.admin.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        }
        listed = self.cluster.admin.get(next(iter(self.runs.values()))[1].path)["items"]
        statuses = {one["metadata"]["name"]: _kept(one["status"]) for one in listed}
        return {"children": children, "containers": containers, "statuses": statuses}

    def writes(self, skip: int = 0) -> Iterator[tuple[str, str, str]]:
        """Yield the operators' accepted writes to children, as (verb, kind, name)."""
        user = f"system:serviceaccount:{SYSTEM}:{NAME}"
        for number, event in enumerate(self.cluster.audit(user)):
            about = event.get("objectRef", {})
            if number < skip or event["verb"] not in ("create", "patch", "update", "delete"):
                continue
            kinds = (*KINDS, "persistentvolumeclaims")
            if about.get("resource") in kinds and event["responseStatus"]["code"] < 300:
                yield event["verb"], about["resource"], about.get("name", "")

    def requests(self) -> int:
        """Return how many requests the operators have sent so far."""
        return sum(1 for _ in self.cluster.audit(f"system:serviceaccount:{SYSTEM}:{NAME}"))

    def take_over(self, old: Operator, new: Operator, settle: float) -> None:
        """Upgrade as a Deployment does: the new operator stands by when the old one is stopped.

        Return ``settle`` seconds after the new one has seen every resource.
        """
        started = time.monotonic()
        self.install(ROOT / CHART)
        self.seconds["helm_upgrade"] = round(time.monotonic() - started, 1)
        new.start("waiting")
        stopped = time.monotonic()
        assert old.stop() == 0, old.tail()
        eventually(lambda: new.probe("readyz") == (200, "leading"), 60, new.tail)
        self.seconds["without_leader"] = round(time.monotonic() - stopped, 1)

        def seen_all() -> bool:
            lines = new.probe("metrics")[1].splitlines()
            counts = [float(one.split()[-1]) for one in lines if one.startswith(_RECONCILED)]
            return sum(counts) >= 2 * len(self.runs)

        eventually(seen_all, 120, new.tail)
        time.sleep(settle)
        self.seconds["until_settled"] = round(time.monotonic() - stopped, 1)

    def finish(self) -> None:
        """Let every resource come to its end."""
        for situation, run in self.runs.values():
            if situation.leave is not None:
                situation.leave(self.cluster, run)

        def missing() -> list[str]:
            pods = self.cluster.admin.get(f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
            for pod in pods:
                if (
                    pod["status"].get("phase") == "Running"
                    and "deletionTimestamp" not in (pod["metadata"])
                ):
                    self.cluster.finish_pod(NAMESPACE, pod["metadata"]["name"])
            return [
                f"{name} ({situation.name}): {run.status.get('message')}"
                for name, (situation, run) in self.runs.items()
                if run.status.get("phase") != situation.ends
            ]

        wait_for("the end", missing, 180 + 6 * len(self.runs))


def _kept(status: dict[str, Any]) -> State:
    """Return what of a status says that something was done again.

    GPU seconds go on being counted, and a version may divide an attempt's time otherwise; its
    number stays.
    """
    stages = {
        one["name"]: (one["state"], one.get("attempt"), one.get("completionTime"))
        for one in status["stages"]
    }
    attempts = sorted({one["number"] for one in status.get("attempts", ())})
    kept = ("phase", "restarts", "chargedRestarts", "nextAttemptTime", "startTime")
    return {"stages": stages, "attempts": attempts} | {key: status.get(key) for key in kept}


def upgrade(release: Release, count: int, folder: Path, *, settle: float = 10) -> dict[str, Any]:
    """Upgrade with ``count`` resources in all situations and return the figures.

    ``differences`` lists what the upgrade changed, ``twice`` the Jobs that were created more than
    once, ``extra`` the attempts beyond those that a situation needs; all are empty if all is well.
    """
    nodes = 2 + count // 4
    logs = {"train": TRAIN_LOG}
    with Cluster(nodes=nodes, native_gang=True, roomy=count > 30, worker_logs=logs) as cluster:
        trial = Upgrade(cluster, release, count, folder)
        trial.install(release.chart)
        old = trial.operator("old", release.python_path)
        started = time.monotonic()
        with old:
            trial.reach_situations()
            trial.seconds["to_reach_situations"] = round(time.monotonic() - started, 1)
            before, requests = trial.state(), trial.requests()
            new = trial.operator("new")
            try:
                trial.take_over(old, new, settle)
                differences = list(_differences(before, trial.state()))
                written = [" ".join(one) for one in trial.writes(requests)]
                started = time.monotonic()
                trial.finish()
                trial.seconds["to_finish"] = round(time.monotonic() - started, 1)
            finally:
                new.kill()
        return _figures(trial, before, differences, written)


def _figures(
    trial: Upgrade, before: State, differences: list[str], written: list[str]
) -> dict[str, Any]:
    made = Counter(
        event["objectRef"]["name"]
        for event in trial.cluster.audit()
        if event.get("objectRef", {}).get("resource") == "jobs"
        and event["verb"] in ("create", "patch")
        and event["responseStatus"]["code"] == 201
    )
    extra = []
    for name, (situation, run) in trial.runs.items():
        for entry in run.status["stages"]:
            most = situation.attempts if entry["name"] == situation.last else 1
            if entry.get("attempt", 0) > most:
                extra.append(f"{name} ({situation.name}): {entry['name']} {entry['attempt']}")
    return {
        "previous": trial.release.name,
        "resources": len(trial.runs),
        "situations": dict(Counter(situation.name for situation, _ in trial.runs.values())),
        "jobs_before": sum(key.startswith("jobs/") for key in before["children"]),
        "pods_before": sum(key.startswith("pods/") for key in before["children"]),
        "differences": differences,
        "writes_to_children": written,
        "twice": sorted(name for name, count in made.items() if count > 1),
        "extra": extra,
        "jobs_in_all": len(made),
        "seconds": trial.seconds,
    }


def _differences(before: State, after: State) -> Iterator[str]:
    """Yield what is not as it was before the upgrade, a line each."""
    for part in ("children", "containers", "statuses"):
        old, new = before[part], after[part]
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                yield f"{part} {name}: {old.get(name)} -> {new.get(name)}"
