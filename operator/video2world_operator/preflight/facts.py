"""Define the observed facts that preflight checks judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from video2world_operator.plan.gang import Capabilities

__all__ = ["Access", "ClusterFacts", "Gpu", "Machine"]

Object = Mapping[str, Any]


class Access(StrEnum):
    """What the Hugging Face Hub says of a repository and the token in use."""

    ALLOWED = "allowed"
    GATED = "gated"  # known, but its licence is not accepted
    REFUSED = "refused"  # no token, or one that is not valid
    MISSING = "missing"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Gpu:
    """One GPU: its memory in bytes and the first number of its compute capability, 0 unknown."""

    name: str
    memory: float = 0
    major: int = 0


@dataclass(frozen=True)
class Machine:
    """This machine; sizes in bytes. ``disk`` is what is free and what the volume uses already;
    ``gpus`` is None where no driver answers."""

    disk: float
    memory: float
    gpus: Sequence[Gpu] | None


@dataclass(frozen=True)
class ClusterFacts:
    """What is seen of a cluster. None: it may not be looked at."""

    namespace: str
    nodes: Sequence[Object] | None = None
    claim: Object | None = None
    storage_classes: Sequence[Object] | None = None
    quotas: Sequence[Object] | None = None
    secrets: Mapping[str, Sequence[str] | None] = field(default_factory=dict)  # keys by name
    unreadable: frozenset[str] = frozenset()  # Secrets that may not be read
    priority_classes: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    leader: str | None = None  # who holds the operator's Lease; empty: nobody
    definition: str = ""  # what is wrong with the CRD
    refusal: str = ""  # what the API server says to the resource itself
