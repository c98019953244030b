"""What users do to their resources during a trial: suspend, resume, edit and delete."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .history import RESOURCES
from .schedule import Body, Fault, draw_edit
from .target import Target, choose, for_each

__all__ = ["FAULTS", "resume"]


def _chosen(target: Target, fault: Fault, rng: random.Random) -> list[Body]:
    found = target.watcher.objects(f"{RESOURCES}{target.namespace}/")
    names = choose(found, fault, rng)
    return [one for one in found if one["metadata"]["name"] in names]


def _patch_specs(target: Target, patches: dict[str, Body]) -> str:
    return for_each(
        list(patches),
        lambda name: target.api.patch(f"{target.resources_path}/{name}", {"spec": patches[name]}),
    )


def _suspend(target: Target, fault: Fault, rng: random.Random) -> str:
    found = _chosen(target, fault, rng)
    return _patch_specs(target, {one["metadata"]["name"]: {"suspend": True} for one in found})


def resume(target: Target, fault: Fault, rng: random.Random) -> str:
    """Resume the suspended ones among the fault's share of resources."""
    found = [one for one in _chosen(target, fault, rng) if one["spec"].get("suspend")]
    return _patch_specs(target, {one["metadata"]["name"]: {"suspend": False} for one in found})


def _edit(target: Target, fault: Fault, rng: random.Random) -> str:
    found = _chosen(target, fault, rng)
    return _patch_specs(target, {one["metadata"]["name"]: draw_edit(rng, one) for one in found})


def _delete(target: Target, fault: Fault, rng: random.Random) -> str:
    """Delete resources, and create half of them again under the same name."""
    names = [one["metadata"]["name"] for one in _chosen(target, fault, rng)]

    def delete(name: str) -> None:
        target.api.delete(f"{target.resources_path}/{name}")
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.2))
            target.api.post(target.resources_path, target.bodies[name])

    return for_each(names, delete)


FAULTS: dict[str, Callable[[Target, Fault, random.Random], str]] = {
    "users suspend": _suspend,
    "users resume": resume,
    "users edit": _edit,
    "users delete": _delete,
}
