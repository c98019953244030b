"""Whether a resource can run here, before a GPU is held: checks of observed facts, all pure.

A check never guesses: what could not be looked at is ``unknown``, and says how to look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import Check, Verdict, _enough, _kind
from video2world_operator.preflight.facts import Access, Machine
from video2world_operator.preflight.requirements import Needs

__all__ = ["check_hub", "check_images", "check_machine", "images_of"]


# ---------------------------------------------------------------------- the Hub


def check_hub(access: Mapping[str, Access]) -> Iterator[Check]:
    """Token and licences, by repository."""
    for repository, answer in access.items():
        page = f"https://huggingface.co/{repository}"
        verdict, text, remedy = _ANSWERS[answer]
        text = f"{repository.removeprefix('datasets/')}: {text}"
        yield Check("Hugging Face", verdict, text, remedy.format(page=page))


_ANSWERS: Mapping[Access, tuple[Verdict, str, str]] = {
    Access.ALLOWED: (Verdict.OK, "may be downloaded with the token in use here", ""),
    Access.GATED: (
        Verdict.FAIL,
        "its licence is not accepted",
        "accept it at {page} with the account of HF_TOKEN",
    ),
    Access.REFUSED: (
        Verdict.FAIL,
        "no token is set here, or one that is not valid",
        "set HF_TOKEN to a read token of https://huggingface.co/settings/tokens, and accept the "
        "licence at {page}",
    ),
    Access.MISSING: (Verdict.FAIL, "is not there", "check the name: {page}"),
    Access.UNREACHABLE: (Verdict.UNKNOWN, "the Hub cannot be reached from here", ""),
}


# ---------------------------------------------------------------------- this machine


def check_machine(plan: Plan, need: Needs, machine: Machine) -> Iterator[Check]:
    """For ``v2w run``: disk, memory and GPUs of this machine."""
    spec = plan.resource.spec
    yield _enough(
        "disk",
        need.disk,
        machine.disk,
        "free or in use on --volume",
        "free some, choose another --volume, or lower spec.training.checkpoint.keep",
    )
    host = need.host * spec.nodes  # every node is on this machine
    yield _enough("host memory", host, machine.memory, "on this machine", "use a larger machine")
    if spec.device == "CPU":
        return
    found = machine.gpus or ()
    wanted = spec.gpus
    if len(found) < wanted:
        remedy = "set spec.training.gpusPerNode (and nodes: 1), or run it on a cluster"
        yield Check("GPUs", Verdict.FAIL, f"{wanted} are asked for, {len(found)} are here", remedy)
    elif spec.inference.every_checkpoint and len(found) == wanted:
        text = f"training takes all {wanted}: samples made meanwhile share the first with it"
        remedy = (
            "train on fewer (spec.training.gpusPerNode), or leave inference.everyCheckpoint out"
        )
        yield Check("GPUs", Verdict.WARN, text, remedy)
    else:
        yield Check("GPUs", Verdict.OK, f"{wanted} of {len(found)} are asked for")
    if found:
        yield from _kind(plan, need, found)


def images_of(plan: Plan) -> list[str]:
    """The images that the stages need."""
    pods = (stage.job["spec"]["template"]["spec"] for stage in plan.stages)
    return sorted({pod["containers"][0]["image"] for pod in pods})


def check_images(plan: Plan, answers: Mapping[str, Access]) -> Iterator[Check]:
    """What the registries said from here; a node may have an image already, or reach others."""
    images = plan.resource.spec.images
    bad = Verdict.FAIL if images.pull_policy == "Always" else Verdict.WARN
    for image, answer in answers.items():
        if images.pull_policy == "Never":
            yield Check("image", Verdict.UNKNOWN, f"{image} must be on the nodes already")
        elif answer is Access.ALLOWED:
            yield Check("image", Verdict.OK, f"{image} can be pulled")
        elif answer is Access.UNREACHABLE:
            text = f"{image}: its registry cannot be reached from here"
            yield Check("image", Verdict.UNKNOWN, text, "v2w explain says so if a node cannot")
        elif images.pull_secrets:
            text = f"{image} is not for everybody: only a node can try {images.pull_secrets[0]}"
            yield Check("image", Verdict.UNKNOWN, text, "v2w explain says so if it cannot")
        elif answer is Access.MISSING:
            remedy = "push it (README, On Kubernetes), or mend spec.images"
            yield Check("image", bad, f"{image} is not in its registry", remedy)
        else:
            remedy = "name a Secret in spec.images.pullSecrets, or mend spec.images"
            yield Check("image", bad, f"{image}: its registry gives it to nobody unknown", remedy)
