"""Draw a trial's resources and faults from its seed (pure functions)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.validation import parse
from video2world_operator.plan.plan import make_plan

__all__ = [
    "KINDS",
    "KNOWN_DATA",
    "KUEUE_KINDS",
    "QUEUE",
    "QUEUE_GPUS",
    "Fault",
    "count_jobs",
    "draw_edit",
    "faults",
    "resources",
    "worker_events",
]

Body = dict[str, Any]
KNOWN_DATA = "known"  # a data set that is already on the volume, with its embeddings and latents
STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")
LATEST = 0.85  # share of the work after which no fault starts
CHECKPOINT = 50  # iteration of the checkpoint that every training reports


@dataclass(frozen=True)
class Fault:
    """A fault or user action that happens when the share ``at`` of the work is done.

    Its targets are drawn when it starts, by a generator seeded with ``seed``.
    """

    at: float
    kind: str
    seconds: float = 0.0  # duration
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def _kill(rng: random.Random) -> Body:
    return {"target": rng.choice(["leader", "leader", "standby", "both"])}


def _errors(rng: random.Random) -> Body:
    codes = [["429"], ["500"], ["409"], ["lost"], ["cut"], ["409", "429", "500", "cut", "lost"]]
    return {"answers": rng.choice(codes), "share": rng.choice([0.3, 0.6, 0.9])}


def _refused_watch(rng: random.Random) -> Body:
    return {"kind": rng.choice(["jobs", "pods", "video2worldposttrains"])}


def _share(most: float) -> Callable[[random.Random], Body]:
    return lambda rng: {"share": round(rng.uniform(0.02, most), 2)}


def _pods(rng: random.Random) -> Body:
    return {"share": round(rng.uniform(0.05, 0.5), 2), "grace": rng.choice([None, None, 0])}


def _crash(rng: random.Random) -> Body:
    return {"share": round(rng.uniform(0.05, 0.5), 2), "codes": rng.choice(_CODES)}


def _clock(rng: random.Random) -> Body:
    return {"by": rng.choice([-1, 1]) * rng.choice([5, 90, 3600])}


_CODES = ([1], [137], [143], [1, 137, 143], [1, 2])

# Kinds of faults: minimum and maximum duration in seconds, and how to draw the other options.
KINDS: Mapping[str, tuple[float, float, Callable[[random.Random], Body]]] = {
    "operator killed": (0, 0, _kill),
    "leader frozen": (5, 22, lambda rng: {}),  # its lease lasts 15 s
    "leader terminated": (0, 0, lambda rng: {}),
    "lease stolen": (0, 0, lambda rng: {}),
    "API server restarted": (0.5, 3, lambda rng: {}),
    "etcd paused": (1, 8, lambda rng: {}),
    "watches cut": (0.5, 4, lambda rng: {}),
    "watches refused": (3, 9, _refused_watch),
    "burst of API errors": (2, 7, _errors),
    "pods deleted": (0, 0, _pods),
    "Jobs deleted": (0, 0, _share(0.1)),
    "workers crash": (0, 0, _crash),
    "nodes stop responding": (5, 12, _share(0.4)),
    "node vanishes": (3, 8, lambda rng: {}),
    "clock jumps": (2, 8, _clock),
    "users suspend": (0, 0, _share(0.3)),
    "users resume": (0, 0, lambda rng: {"share": 1.0}),
    "users edit": (0, 0, _share(0.3)),
    "users delete": (0, 0, _share(0.05)),
}

# The same for a trial in which Kueue admits the GPU stages.
KUEUE_KINDS: Mapping[str, tuple[float, float, Callable[[random.Random], Body]]] = {
    "Kueue killed": (0, 6, lambda rng: {"grace": rng.choice([0, 0, 10])}),
    "queue held": (2, 9, lambda rng: {"policy": rng.choice(["Hold", "HoldAndDrain"])}),
    "quota shrunk": (3, 9, lambda rng: {"gpus": rng.choice([0, 2, 6])}),
}
QUEUE, QUEUE_GPUS = "gpus", 24  # of the 64 that the nodes have


def faults(seed: int, count: int, kinds: Sequence[str] = ()) -> list[Fault]:
    """Draw ``count`` faults; over many seeds every kind is equally frequent."""
    rng = random.Random(f"faults {seed}")
    names = list(kinds or KINDS)
    drawn = (names * (count // len(names) + 1))[: count - count % len(names)]
    drawn += rng.sample(names, count % len(names))
    schedule = []
    for kind in drawn:
        shortest, longest, options = {**KINDS, **KUEUE_KINDS}[kind]
        schedule.append(
            Fault(
                round(rng.uniform(0, LATEST), 3),
                kind,
                round(rng.uniform(shortest, longest), 2),
                rng.randrange(1 << 30),
                options(rng),
            )
        )
    return sorted(schedule, key=lambda fault: fault.at)


def resources(seed: int, count: int, queue: str = "") -> list[Body]:
    """Draw ``count`` resources: small runs on one to three GPU nodes, admitted by ``queue``."""
    rng = random.Random(f"resources {seed}")
    drawn = [_resource(rng, number) for number in range(count)]
    for body in drawn if queue else ():
        body["spec"]["scheduling"] = {"queueName": queue}
    return drawn


def _resource(rng: random.Random, number: int) -> Body:
    name = f"run-{number:03d}"
    data = KNOWN_DATA if rng.random() < 0.85 else name
    training: Body = {
        "iterations": 100,
        "device": "GPU",
        "nodes": rng.choice([1, 1, 2, 3]),
        "gpusPerNode": rng.choice([1, 2]),
        "maxRestarts": rng.randint(0, 6),
        "restartBackoffSeconds": rng.choice([0, 1]),
        "checkpoint": {"everyIterations": CHECKPOINT},
    }
    spec: Body = {
        "model": {"size": "Tiny"},
        "dataset": {"agibot": {"path": "datasets/agibot", "name": data}},
        "training": training,
        "storage": {"claimName": "shared", "subPath": name},
        "stages": {stage: _stage(rng, stage) for stage in STAGES},
    }
    if rng.random() < 0.4:
        every = rng.random() < 0.3
        spec["inference"] = {"samples": [{"input": "val/videos/a.mp4"}], "everyCheckpoint": every}
    chance = rng.random()
    if chance < 0.15:
        spec["storage"] = {"size": "1Gi", "retention": rng.choice(["Keep", "Delete"])}
    elif chance < 0.25 and number:  # shares the volume of the previous resource
        spec["storage"]["subPath"] = f"run-{number - 1:03d}"
    if rng.random() < 0.1:
        spec["cleanupPolicy"] = "All"
    if rng.random() < 0.1:
        spec["ttlSecondsAfterFinished"] = rng.choice([0, 5])
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def _stage(rng: random.Random, stage: str) -> Body:
    """Draw a short duration; the grace period is short because pods on dead nodes use all of it."""
    seconds = rng.choice([4, 8, 16]) if stage == "train" else 1
    annotations = {"fake.video2world.dev/seconds": str(seconds)}
    template = {"metadata": {"annotations": annotations}}
    return {"podTemplate": template | {"spec": {"terminationGracePeriodSeconds": 2}}}


def count_jobs(bodies: Sequence[Body], known: Set[tuple[str, str]]) -> int:
    """Count the Jobs of an undisturbed trial; stages in ``known`` are done already."""
    plans = [make_plan(parse(body)) for body in bodies]
    return sum((s.name, s.inputs_hash) not in known for plan in plans for s in plan.stages)


def draw_edit(rng: random.Random, body: Body) -> Body:
    """Draw a merge patch that a user applies to the spec of an existing resource."""
    spec = body["spec"]
    samples = spec.get("inference", {}).get("samples", [])
    patches: list[Body] = [
        {"training": {"iterations": spec["training"]["iterations"] + rng.choice([10, 50])}},
        {"training": {"maxRestarts": rng.randint(0, 6)}},
        {"training": {"checkpoint": {"everyIterations": rng.choice([10, 25])}}},
        {"inference": {"samples": [{"input": f"val/videos/{rng.randrange(9)}.mp4"}]}},
        {"inference": {"guidance": rng.randint(0, 9)}},
        {"activeDeadlineSeconds": 3600},
    ]
    if samples:
        patches.append({"inference": {"samples": None, "everyCheckpoint": None}})
    return rng.choice(patches)


def worker_events(bodies: Sequence[Body]) -> dict[str, list[Body]]:
    """Return the event lines that workers of these resources print, by container name."""
    known = next(b for b in bodies if b["spec"]["dataset"]["agibot"]["name"] == KNOWN_DATA)
    plan = make_plan(parse(known))
    data_stages = ("dataset", "embeddings", "latents")
    done = [
        {"event": "skipped", "stage": stage, "inputsHash": plan.stage(stage).inputs_hash}
        for stage in data_stages
    ]
    saved = {"event": "checkpoint", "stage": "train", "iteration": CHECKPOINT, "path": "iter_50.pt"}
    return {"download": done, "train": [saved]}
