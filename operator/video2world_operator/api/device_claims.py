"""Define the claims for devices of Dynamic Resource Allocation, and the rules about them.

They are an alternative to limits of ``nvidia.com/gpu``; each rule is one in cel_claim_rules.py too.
https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from video2world_operator.api.constants import GPU, STAGES, STAGES_WITHOUT_GPU
from video2world_operator.api.errors import Problem
from video2world_operator.api.fields import ApiModel, DNSName, NamespaceName, with_example

if TYPE_CHECKING:
    from video2world_operator.api.spec import Spec

__all__ = ["ResourceClaimSpec", "ResourceClaims", "claim_problems", "without_claims"]

MAX_CLAIMS = 8


class ResourceClaimSpec(ApiModel):
    """A ResourceClaim that each pod gets, made from a template."""

    model_config = with_example({"name": "gpus", "resourceClaimTemplateName": "eight-gpus"})

    name: NamespaceName = Field(description="Name of the claim within the pod.")
    resource_claim_template_name: DNSName = Field(
        description="Name of a ResourceClaimTemplate in the resource's namespace."
    )
    request: NamespaceName | None = Field(
        default=None,
        description="Request of the template whose devices the container gets; defaults to all.",
    )


ResourceClaims = Annotated[list[ResourceClaimSpec], Field(max_length=MAX_CLAIMS)]


def claim_problems(spec: Spec) -> Iterator[Problem]:
    """Report what contradicts the claims of a stage."""
    if spec.training.resource_claims and spec.stages.train.resource_claims:
        yield Problem(
            "spec.stages.train.resourceClaims",
            "is set together with spec.training.resourceClaims; keep one of them",
        )
    for field, stage, claims in [
        ("spec.training.resourceClaims", "train", spec.training.resource_claims),
        *(
            (f"spec.stages.{name}.resourceClaims", name, getattr(spec.stages, name).resource_claims)
            for name in STAGES
        ),
    ]:
        if not claims:
            continue
        if stage in STAGES_WITHOUT_GPU:
            yield Problem(field, f"stage {stage} uses no GPU; remove it")
        elif spec.device == "CPU":
            yield Problem(field, "the device is CPU; remove it, or set spec.training.device: GPU")
        resources = getattr(spec.stages, stage).resources
        if resources and GPU in {**resources.requests, **resources.limits}:
            yield Problem(
                f"spec.stages.{stage}.resources",
                f"{GPU} is set together with {field}, which its GPUs come from; remove one of them",
            )
        names = [claim.name for claim in claims]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield Problem(f"{field}[{number}].name", f"{name} is set twice; rename one")


def without_claims(spec: Spec) -> Spec:
    """Return ``spec`` with limits of ``nvidia.com/gpu`` in place of its claims."""
    none = {"resource_claims": list[ResourceClaimSpec]()}
    stages = {name: getattr(spec.stages, name).model_copy(update=none) for name in STAGES}
    changes = {
        "training": spec.training.model_copy(update=none),
        "stages": spec.stages.model_copy(update=stages),
    }
    return spec.model_copy(update=changes)
