"""Define the observed facts that preflight checks work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from video2world_operator.plan.optional_apis import Capabilities
from video2world_operator.preflight.dispatch import DispatchFacts

__all__ = [
    "UNKNOWN_GPU",
    "Access",
    "AgiBotFacts",
    "ClusterFacts",
    "DeviceFacts",
    "Gpu",
    "LeRobotFacts",
    "Machine",
]

Object = Mapping[str, Any]
UNKNOWN_GPU = "a GPU of unknown model"  # of a node without the label nvidia.com/gpu.product


class Access(StrEnum):
    """Answer of the Hugging Face Hub, or of a registry, for the credentials in use."""

    ALLOWED = "allowed"
    GATED = "gated"  # exists, but its licence is not accepted
    REFUSED = "refused"  # no token, or an invalid one
    MISSING = "missing"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in bytes and major compute capability; 0 if unknown."""

    name: str
    memory: float = 0
    major: int = 0


@dataclass(frozen=True)
class Machine:
    """This machine; sizes in bytes.

    ``disk`` is the free space plus what the volume already uses; ``gpus`` is None without a driver.
    """

    disk: float
    memory: float
    gpus: Sequence[Gpu] | None


@dataclass(frozen=True)
class AgiBotFacts:
    """AgiBotWorld on the Hub: sizes of the archives in bytes, by task and path.

    ``revision`` is whether the requested revision exists.
    """

    archives: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    revision: bool = True


@dataclass(frozen=True)
class LeRobotFacts:
    """A LeRobotDataset: the content of its ``meta/info.json``, None if there is no such file.

    ``bytes`` is the size of the camera's files of all episodes on the Hub, if it is known.
    """

    info: Any = None
    bytes: float | None = None
    revision: bool = True


@dataclass(frozen=True)
class DeviceFacts:
    """What a cluster has for Dynamic Resource Allocation; None where permission is lacking.

    ``served`` is whether the cluster serves resource.k8s.io. ``classes`` are DeviceClasses and
    ``templates`` the ResourceClaimTemplates of a plan, by name; a missing template is None.
    """

    served: bool = True
    slices: Sequence[Object] | None = None
    classes: Mapping[str, Object] | None = None
    templates: Mapping[str, Object | None] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()  # templates without permission to read


@dataclass(frozen=True)
class ClusterFacts:
    """Observed facts of a cluster; None where the user lacks permission."""

    namespace: str
    nodes: Sequence[Object] | None = None
    claim: Object | None = None
    storage_classes: Sequence[Object] | None = None
    quotas: Sequence[Object] | None = None
    secrets: Mapping[str, Sequence[str] | None] = field(default_factory=dict)  # keys by name
    unreadable: frozenset[str] = frozenset()  # Secrets without permission to read
    priority_classes: Sequence[str] | None = None
    queues: Mapping[str, str] | None = None  # why each admits nothing; empty: it does
    capabilities: Capabilities = field(default_factory=Capabilities)
    devices: DeviceFacts | None = None  # None: the plan claims none
    leader: str | None = None  # holder of the operator's Lease; empty: none
    definition: str = ""  # problem with the CRD
    refusal: str = ""  # why the API server refuses the resource
    dispatch: DispatchFacts | None = None  # if the resource is MultiKueue's
