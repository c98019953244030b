"""Check this machine, the Hugging Face Hub and image registries, from observed facts only.

A check never guesses: if a fact could not be observed, its verdict is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import (
    Check,
    Verdict,
    check_capacity,
    check_gpus,
    check_sample_memory,
)
from video2world_operator.preflight.facts import Access, Machine
from video2world_operator.preflight.requirements import ResourceEstimate
from video2world_operator.reconcile.group_size import largest

__all__ = ["check_hub", "check_images", "check_machine", "images_of"]


# ---------------------------------------------------------------------- the Hub


def check_hub(access: Mapping[str, Access]) -> Iterator[Check]:
    """Check token and licences for each repository."""
    for repository, answer in access.items():
        page = f"https://huggingface.co/{repository}"
        verdict, text, remedy = _ANSWERS[answer]
        text = f"{repository.removeprefix('datasets/')}: {text}"
        yield Check("Hugging Face", verdict, text, remedy.format(page=page))


_ANSWERS: Mapping[Access, tuple[Verdict, str, str]] = {
    Access.ALLOWED: (Verdict.OK, "can be downloaded with the token found here", ""),
    Access.GATED: (
        Verdict.FAIL,
        "its licence is not accepted",
        "accept it at {page} with the account of HF_TOKEN",
    ),
    Access.REFUSED: (
        Verdict.FAIL,
        "no token is set here, or it is not valid",
        "set HF_TOKEN to a read token from https://huggingface.co/settings/tokens, and accept the "
        "licence at {page}",
    ),
    Access.MISSING: (Verdict.FAIL, "does not exist", "check the name: {page}"),
    Access.UNREACHABLE: (Verdict.UNKNOWN, "the Hub cannot be reached from here", ""),
}


# ---------------------------------------------------------------------- this machine


def check_machine(plan: Plan, estimate: ResourceEstimate, machine: Machine) -> Iterator[Check]:
    """Check disk, memory and GPUs of this machine, for ``v2w run``."""
    spec = plan.resource.spec
    yield check_capacity(
        "disk",
        estimate.disk,
        machine.disk,
        "free or already used on --volume",
        "free some space, use another --volume, or lower spec.training.checkpoint.keep",
    )
    host = estimate.host * spec.nodes  # every node is on this machine
    yield check_capacity(
        "host memory", host, machine.memory, "on this machine", "use a larger machine"
    )
    if spec.device == "CPU":
        return
    found = machine.gpus or ()
    wanted, pods = spec.gpus, spec.inference.pods(spec.inference.count)
    sampling = spec.inference.pods(1) * spec.inference.gpus  # during training
    fewer = largest(spec.usable_nodes, len(found) // spec.processes_per_node)
    if fewer is not None and fewer < spec.nodes:
        text = f"{wanted} are requested, {len(found)} are available: training runs on {fewer} of "
        text += f"{spec.nodes} nodes (spec.training.minNodes)"
        yield Check("GPUs", Verdict.WARN, text, "use a machine with more, or lower nodes")
    elif len(found) < wanted:
        remedy = "set spec.training.gpusPerNode (and nodes: 1), or run on a cluster"
        yield Check(
            "GPUs", Verdict.FAIL, f"{wanted} are requested, {len(found)} are available", remedy
        )
    elif spec.inference.samples and len(found) < spec.inference.gpus:
        text = f"inference.gpus requests {spec.inference.gpus}, {len(found)} are available"
        yield Check("GPUs", Verdict.FAIL, text, "lower inference.gpus, or run on a cluster")
    elif spec.inference.every_checkpoint and len(found) - wanted < sampling:
        text = (
            f"training uses {wanted} of {len(found)}: samples generated during training need "
            f"{sampling}, and share the first with it"
        )
        remedy = "train on fewer (spec.training.gpusPerNode), or remove inference.everyCheckpoint"
        yield Check("GPUs", Verdict.WARN, text, remedy)
    elif spec.inference.samples and len(found) < pods * spec.inference.gpus:
        text = f"inference requests {pods} pods x {spec.inference.gpus}, {len(found)} are available"
        remedy = "lower inference.parallelism, as its pods share the first otherwise"
        yield Check("GPUs", Verdict.WARN, text, remedy)
    else:
        yield Check("GPUs", Verdict.OK, f"{wanted} of {len(found)} are requested")
    if found:
        yield from check_gpus(plan, estimate, found)
        yield from check_sample_memory(plan, estimate, found)


def images_of(plan: Plan) -> list[str]:
    """Return the images that the stages use."""
    pods = (stage.job["spec"]["template"]["spec"] for stage in plan.stages)
    return sorted({pod["containers"][0]["image"] for pod in pods})


def check_images(plan: Plan, answers: Mapping[str, Access]) -> Iterator[Check]:
    """Check the registries' answers; a node may have an image already, or reach others."""
    images = plan.resource.spec.images
    bad = Verdict.FAIL if images.pull_policy == "Always" else Verdict.WARN
    for image, answer in answers.items():
        if images.pull_policy == "Never":
            yield Check("image", Verdict.UNKNOWN, f"{image} must be on the nodes already")
        elif answer is Access.ALLOWED:
            yield Check("image", Verdict.OK, f"{image} can be pulled")
        elif answer is Access.UNREACHABLE:
            text = f"{image}: its registry cannot be reached from here"
            yield Check(
                "image", Verdict.UNKNOWN, text, "v2w explain reports it if a node cannot pull it"
            )
        elif images.pull_secrets:
            text = f"{image} requires authentication: only a node can try {images.pull_secrets[0]}"
            yield Check(
                "image", Verdict.UNKNOWN, text, "v2w explain reports it if a node cannot pull it"
            )
        elif answer is Access.MISSING:
            remedy = "push it (README, On Kubernetes), or fix spec.images"
            yield Check("image", bad, f"{image} is not in its registry", remedy)
        else:
            remedy = "add a Secret to spec.images.pullSecrets, or fix spec.images"
            yield Check("image", bad, f"{image}: the registry requires authentication", remedy)
