"""From a seed to the resources of a trial and to the faults that they meet: pure functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.validation import parse
from video2world_operator.plan.plan import make_plan

__all__ = ["KINDS", "KNOWN_DATA", "Fault", "edit", "faults", "resources", "told", "work"]

Body = dict[str, Any]
KNOWN_DATA = "known"  # a data set that the download finds on the volume, with all made from it
STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")
LAST = 0.85  # share of the work at which the last fault may come
CHECKPOINT = 50  # iteration of the checkpoint that every training tells of


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, or that somebody does, when the share ``at`` of the work is done.

    Whom it meets is drawn, when its time comes, with a generator of its own ``seed``.
    """

    at: float
    kind: str
    seconds: float = 0.0  # how long it lasts
    seed: int = 0
    how: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As a record has it."""
        return asdict(self)


def _kill(rng: random.Random) -> Body:
    return {"who": rng.choice(["leader", "leader", "standby", "both"])}


def _storm(rng: random.Random) -> Body:
    codes = [["429"], ["500"], ["409"], ["lost"], ["cut"], ["409", "429", "500", "cut", "lost"]]
    return {"answers": rng.choice(codes), "share": rng.choice([0.3, 0.6, 0.9])}


def _blind(rng: random.Random) -> Body:
    return {"kind": rng.choice(["jobs", "pods", "video2worldposttrains"])}


def _some(most: float) -> Callable[[random.Random], Body]:
    return lambda rng: {"share": round(rng.uniform(0.02, most), 2)}


def _pods(rng: random.Random) -> Body:
    return {"share": round(rng.uniform(0.05, 0.5), 2), "grace": rng.choice([None, None, 0])}


def _crash(rng: random.Random) -> Body:
    return {"share": round(rng.uniform(0.05, 0.5), 2), "codes": rng.choice(_CODES)}


def _clock(rng: random.Random) -> Body:
    return {"by": rng.choice([-1, 1]) * rng.choice([5, 90, 3600])}


_CODES = ([1], [137], [143], [1, 137, 143], [1, 2])

# What happens: how long it lasts at least and at most, and what is drawn beside that.
KINDS: Mapping[str, tuple[float, float, Callable[[random.Random], Body]]] = {
    "operator killed": (0, 0, _kill),
    "leader frozen": (5, 22, lambda rng: {}),  # its lease holds for 15
    "leader told to end": (0, 0, lambda rng: {}),
    "lease taken away": (0, 0, lambda rng: {}),
    "API server restarted": (0.5, 3, lambda rng: {}),
    "etcd paused": (1, 8, lambda rng: {}),
    "watches cut": (0.5, 4, lambda rng: {}),
    "watches refused": (3, 9, _blind),
    "storm of refusals": (2, 7, _storm),
    "pods deleted": (0, 0, _pods),
    "Jobs deleted": (0, 0, _some(0.1)),
    "workers crash": (0, 0, _crash),
    "nodes fall silent": (5, 12, _some(0.4)),
    "node vanishes": (3, 8, lambda rng: {}),
    "clock jumps": (2, 8, _clock),
    "users suspend": (0, 0, _some(0.3)),
    "users resume": (0, 0, lambda rng: {"share": 1.0}),
    "users edit": (0, 0, _some(0.3)),
    "users delete": (0, 0, _some(0.05)),
}


def faults(seed: int, count: int, kinds: Sequence[str] = ()) -> list[Fault]:
    """``count`` faults, of every kind as often as of any other, over many seeds."""
    rng = random.Random(f"faults {seed}")
    names = list(kinds or KINDS)
    drawn = (names * (count // len(names) + 1))[: count - count % len(names)]
    drawn += rng.sample(names, count % len(names))
    made = []
    for kind in drawn:
        least, most, details = KINDS[kind]
        made.append(
            Fault(
                round(rng.uniform(0, LAST), 3),
                kind,
                round(rng.uniform(least, most), 2),
                rng.randrange(1 << 30),
                details(rng),
            )
        )
    return sorted(made, key=lambda fault: fault.at)


def resources(seed: int, count: int) -> list[Body]:
    """The resources of a trial: small runs of one to three nodes, each with GPUs."""
    rng = random.Random(f"resources {seed}")
    return [_resource(rng, number) for number in range(count)]


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
    elif chance < 0.25 and number:  # shares its volume with the resource before it
        spec["storage"]["subPath"] = f"run-{number - 1:03d}"
    if rng.random() < 0.1:
        spec["cleanupPolicy"] = "All"
    if rng.random() < 0.1:
        spec["ttlSecondsAfterFinished"] = rng.choice([0, 5])
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def _stage(rng: random.Random, stage: str) -> Body:
    """Short lives; a short grace, too, as a pod on a dead node waits for it in vain."""
    seconds = rng.choice([4, 8, 16]) if stage == "train" else 1
    annotations = {"fake.video2world.dev/seconds": str(seconds)}
    template = {"metadata": {"annotations": annotations}}
    return {"podTemplate": template | {"spec": {"terminationGracePeriodSeconds": 2}}}


def work(bodies: Sequence[Body], known: Set[tuple[str, str]]) -> int:
    """Jobs that the resources need if nothing happens, but for what is ``known`` to be made."""
    plans = [make_plan(parse(body)) for body in bodies]
    return sum((s.name, s.inputs_hash) not in known for plan in plans for s in plan.stages)


def edit(rng: random.Random, body: Body) -> Body:
    """What a user merges into the spec of a resource that is there."""
    spec = body["spec"]
    samples = spec.get("inference", {}).get("samples", [])
    more: list[Body] = [
        {"training": {"iterations": spec["training"]["iterations"] + rng.choice([10, 50])}},
        {"training": {"maxRestarts": rng.randint(0, 6)}},
        {"training": {"checkpoint": {"everyIterations": rng.choice([10, 25])}}},
        {"inference": {"samples": [{"input": f"val/videos/{rng.randrange(9)}.mp4"}]}},
        {"inference": {"guidance": rng.randint(0, 9)}},
        {"activeDeadlineSeconds": 3600},
    ]
    if samples:
        more.append({"inference": {"samples": None, "everyCheckpoint": None}})
    return rng.choice(more)


def told(bodies: Sequence[Body]) -> dict[str, list[Body]]:
    """What the workers of these resources print as events, by the name of their container."""
    known = next(b for b in bodies if b["spec"]["dataset"]["agibot"]["name"] == KNOWN_DATA)
    plan = make_plan(parse(known))
    made = ("dataset", "embeddings", "latents")
    done = [{"event": "skipped", "stage": s, "inputsHash": plan.stage(s).inputs_hash} for s in made]
    saved = {"event": "checkpoint", "stage": "train", "iteration": CHECKPOINT, "path": "iter_50.pt"}
    return {"download": done, "train": [saved]}
