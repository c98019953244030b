"""Define a stage of the plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from video2world_operator.plan.commands import CADENCE, LENGTH

__all__ = ["SAMPLING", "Manifest", "Stage", "container_of", "digest", "run_hash"]

Manifest = dict[str, Any]

SAMPLING = "samples"  # stage label of sampling Jobs during training; their attempt is the iteration


@dataclass(frozen=True)
class Stage:
    """One step of the plan.

    ``inputs_hash`` identifies everything that its result depends on: if the volume records a stage
    with this hash as complete, it is skipped. ``outputs`` are the paths, relative to the volume's
    root, that exist afterwards. ``make`` builds the manifests of an attempt (1, 2, ...).
    """

    name: str
    inputs_hash: str
    outputs: tuple[str, ...]
    argv: tuple[str, ...]
    make: Callable[[int], tuple[Manifest, ...]] = field(repr=False, compare=False)

    @cached_property
    def manifests(self) -> tuple[Manifest, ...]:
        """Manifests of the first attempt; built on demand, as they are rarely needed."""
        return self.make(1)

    @property
    def job(self) -> Manifest:
        """The batch/v1 Job among the manifests."""
        return next(m for m in self.manifests if m["kind"] == "Job")

    @property
    def kind(self) -> str:
        """Stage of the spec whose settings apply to its pods."""
        return container_of(self.name)


def container_of(stage: str) -> str:
    """Return the container name in pods with this stage label."""
    return "inference" if stage == SAMPLING else stage


def digest(value: object) -> str:
    """Hash a JSON value to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def run_hash(argv: tuple[str, ...], needs: list[str]) -> str:
    """Identify a training run by its settings, without its length and cadence."""
    kept = [a for a in argv if not a.startswith((*CADENCE, *LENGTH))]
    return digest([kept, needs])
