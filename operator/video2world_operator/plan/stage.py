"""Define a stage of the plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from video2world_operator.plan.commands import CADENCE, LENGTH

__all__ = ["SAMPLING", "Manifest", "Stage", "container_of"]

Manifest = dict[str, Any]

SAMPLING = "samples"  # stage label of the Jobs beside training; their attempt is the iteration


@dataclass(frozen=True)
class Stage:
    """One step of the plan.

    ``inputs_hash`` names all that its result depends on: a stage whose hash stands on the volume
    is skipped; ``outputs`` are the paths, relative to the volume's root, that exist once it is
    done. ``make`` makes the manifests of an attempt (1, 2, ...).
    """

    name: str
    inputs_hash: str
    outputs: tuple[str, ...]
    argv: tuple[str, ...]
    make: Callable[[int], tuple[Manifest, ...]] = field(repr=False, compare=False)

    @cached_property
    def manifests(self) -> tuple[Manifest, ...]:
        """What is applied to start its first attempt; made when it is asked for, as most
        reconciliations do not ask."""
        return self.make(1)

    @property
    def job(self) -> Manifest:
        """The batch/v1 Job among the manifests."""
        return next(m for m in self.manifests if m["kind"] == "Job")

    @property
    def kind(self) -> str:
        """The stage of the spec whose settings hold for its pods."""
        return container_of(self.name)


def container_of(stage: str) -> str:
    """Name of the container in the pods that bear this stage's label."""
    return "inference" if stage == SAMPLING else stage


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _run_hash(argv: tuple[str, ...], needs: list[str]) -> str:
    kept = [a for a in argv if not a.startswith((*CADENCE, LENGTH))]
    return _digest([kept, needs])
