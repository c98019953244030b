"""Define the situations in which an upgrade finds resources, and how each is reached and left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane import Cluster, fake_nodes
from operators import Resource
from video2world_operator.api.constants import GROUP

__all__ = ["SITUATIONS", "TRAIN_LOG", "Situation", "manifest", "wait_for"]

STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")
NODE_LABEL = "upgrade.video2world.dev/added-later"

# What every training pod prints: that it has saved iteration 20 of 100, of which samples can be
# made. The checkpoint's path is that of no run, as nothing reads it here.
TRAIN_LOG = (
    '{"event": "progress", "stage": "train", "iteration": 20, "iterations": 100, "loss": 0.5}',
    '{"event": "checkpoint", "stage": "train", "iteration": 20, "path": "checkpoints/iter_20"}',
)


@dataclass(frozen=True)
class Situation:
    """Where a resource is when the operator is upgraded.

    ``last`` is the stage it has reached: all before it are done. ``spec`` is merged into its
    manifest. ``prepare`` and ``leave`` act on it once before and once after the upgrade.
    """

    name: str
    last: str
    there: Callable[[Resource], bool]
    spec: Mapping[str, Any]
    prepare: Callable[[Cluster, Resource], None] | None = None
    leave: Callable[[Cluster, Resource], None] | None = None
    ends: str = "Succeeded"  # phase in the end
    attempts: int = 1  # of its last stage in the end


def manifest(situation: Situation, name: str, tiny: bool) -> dict[str, Any]:
    """Return the manifest of a resource whose stages before ``situation.last`` end by themselves.

    Without ``tiny`` it is a 2B model on one GPU a node.
    """
    quick = {"metadata": {"annotations": {fake_nodes.SECONDS: "1"}}}
    before = STAGES[: STAGES.index(situation.last)] if situation.last else STAGES
    body = Resource.body(
        name,
        model={"size": "Tiny" if tiny else "2B"},
        training={"nodes": 2, "gpusPerNode": 1, "device": "Auto" if tiny else "GPU"},
        stages={stage: {"podTemplate": quick} for stage in before},
    )
    for key, value in situation.spec.items():
        old = body["spec"].get(key)
        body["spec"][key] = old | value if isinstance(old, dict) else value
    return body


def _running(stage: str, attempt: int = 1) -> Callable[[Resource], bool]:
    def there(run: Resource) -> bool:
        entry = run.stage(stage)
        return (
            entry.get("state") == "Running"
            and entry.get("attempt") == attempt
            and entry.get("ready", 0) == (2 if stage == "train" else 1)
        )

    return there


def _fail_training(cluster: Cluster, run: Resource) -> None:
    cluster.finish_pod(run.namespace, run.running("train")[0], 1)


def _suspend(_: Cluster, run: Resource) -> None:
    run.patch(suspend=True)


def _resume(_: Cluster, run: Resource) -> None:
    run.patch(suspend=False)


def _hold_job(value: bool) -> Callable[[Cluster, Resource], None]:
    """Suspend or resume the Job of the training, as Kueue does."""

    def act(cluster: Cluster, run: Resource) -> None:
        path = f"/apis/batch/v1/namespaces/{run.namespace}/jobs/{run.name}-train-1"
        cluster.admin.patch(path, {"spec": {"suspend": value}})

    return act


def _restart_now(cluster: Cluster, run: Resource) -> None:
    """Let the time for the next attempt come."""
    passed = {"status": {"nextAttemptTime": run.status["startTime"]}}
    cluster.admin.patch(f"{run.path}/{run.name}/status", passed)


def _add_claim(cluster: Cluster, run: Resource) -> None:
    claims = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims"
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    body = {"metadata": {"name": f"{run.name}-late"}, "spec": wanted}
    cluster.admin.post(claims, body)


def _add_node(cluster: Cluster, run: Resource) -> None:
    cluster.add_node(f"late-{run.name}", labels={NODE_LABEL: "yes"})


def _condition(kind: str, status: str, reason: str = "") -> Callable[[Resource], bool]:
    def there(run: Resource) -> bool:
        found = run.condition(kind)
        return found.get("status") == status and reason in ("", found.get("reason"))

    return there


def _sampled(run: Resource) -> bool:
    jobs = {job["metadata"]["labels"][f"{GROUP}/stage"] for job in run.children("jobs")}
    return "samples" in jobs and _running("train")(run)


def _settled_failure(run: Resource) -> bool:
    return run.status.get("phase") == "Failed"


_elsewhere = {"spec": {"nodeSelector": {NODE_LABEL: "yes"}}}
SITUATIONS: Sequence[Situation] = (
    *(Situation(f"{stage} runs", stage, _running(stage), {}) for stage in STAGES),
    Situation(
        "claim is missing",
        "download",
        _condition("VolumeReady", "False"),
        {"storage": {"size": None, "claimName": "NAME-late"}},
        leave=_add_claim,
    ),
    Situation(
        "pod is unschedulable",
        "latents",
        _condition("PodsStarted", "False", "Unschedulable"),
        {"stages": {"latents": {"podTemplate": _elsewhere}}},
        leave=_add_node,
    ),
    Situation(
        "suspended in training",
        "train",
        lambda run: run.status.get("phase") == "Suspended" and not run.pods("train"),
        {},
        prepare=_suspend,
        leave=_resume,
        attempts=2,
    ),
    Situation(
        "training waits for its next attempt",
        "train",
        lambda run: "nextAttemptTime" in run.status and run.stage("train")["state"] == "Restarting",
        {"training": {"restartBackoffSeconds": 3600}},
        prepare=_fail_training,
        leave=_restart_now,
        attempts=2,
    ),
    Situation(
        "training runs for the second time",
        "train",
        _running("train", 2),
        {"training": {"restartBackoffSeconds": 0}},
        prepare=_fail_training,
        attempts=2,
    ),
    Situation(
        "training is held by its queue",
        "train",
        _condition("PodsStarted", "False", "Queued"),
        {"scheduling": {"queueName": "team"}},
        prepare=_hold_job(True),
        leave=_hold_job(False),
    ),
    Situation(
        "samples are made while it trains",
        "train",
        _sampled,
        {"inference": {"everyCheckpoint": True}},
    ),
    Situation("succeeded", "", lambda run: run.status.get("phase") == "Succeeded", {}),
    Situation(
        "failed",
        "train",
        _settled_failure,
        {"training": {"maxRestarts": 0}},
        prepare=_fail_training,
        ends="Failed",
    ),
)


def wait_for(what: str, probe: Callable[[], Sequence[str]], seconds: float) -> None:
    """Wait until ``probe`` lists nothing more that is missing."""
    until = time.monotonic() + seconds
    while missing := probe():
        if time.monotonic() > until:
            shown = "; ".join(missing[:5])
            raise AssertionError(f"{what}: not within {seconds:.0f} s for {len(missing)}: {shown}")
        time.sleep(0.5)
