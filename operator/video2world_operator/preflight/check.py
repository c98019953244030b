"""Define a preflight check, and the checks that machines and clusters share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.facts import Gpu
from video2world_operator.preflight.requirements import GIB, ResourceEstimate

__all__ = [
    "ATTENTION",
    "VOLUME_REMEDY",
    "Check",
    "Verdict",
    "check_capacity",
    "check_gpus",
    "check_sample_memory",
]

GB = 1e9
# Major compute capabilities that each attention backend supports, as in the trainer.
ATTENTION: Mapping[str, tuple[int, ...]] = {
    "FlashAttention4": (9, 10),
    "FlashAttention3": (9,),
    "FlashAttention2": (8, 9, 10, 12),
    "TransformerEngine": (8, 9, 10, 12),
}
VOLUME_REMEDY = "raise spec.storage.size or lower spec.training.checkpoint.keep"


class Verdict(StrEnum):
    """Result of a check; only ``FAIL`` means that the resource cannot run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "?"


@dataclass(frozen=True)
class Check:
    """One check and its result; ``remedy`` is empty if there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


def check_capacity(name: str, needed: float, available: float, where: str, remedy: str) -> Check:
    """Check that ``needed`` bytes are ``available``."""
    short = available < needed
    text = f"needs about {_size(needed)}, has {_size(available)} {where}".rstrip()
    return Check(name, Verdict.FAIL if short else Verdict.OK, text, remedy if short else "")


def _size(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= 10 * GB else f"{count / GB:.1f} GB"


def check_gpus(plan: Plan, estimate: ResourceEstimate, gpus: Sequence[Gpu]) -> Iterator[Check]:
    """Check the memory of the smallest GPU, and the attention backend on all of them."""
    kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
    known = [gpu.memory for gpu in gpus if gpu.memory]
    if known:
        text = f"needs about {estimate.gpu / GIB:.0f} GiB, {kinds} has {min(known) / GIB:.0f} GiB"
        short = min(known) < estimate.gpu
        remedy = "raise contextParallelSize or gpusPerNode, lower batchSize, or use LoRA"
        yield Check(
            "GPU memory", Verdict.FAIL if short else Verdict.OK, text, remedy if short else ""
        )
    attention = plan.resource.spec.training.attention
    majors = ATTENTION.get(attention)
    unfit = {gpu.name for gpu in gpus if majors and gpu.major and gpu.major not in majors}
    if unfit:
        fitting = [name for name, runs in ATTENTION.items() if gpus[0].major in runs]
        remedy = f"use Auto, or one of {', '.join([*fitting, 'Torch'])}"
        text = f"{attention} does not run on {', '.join(sorted(unfit))}"
        yield Check("attention", Verdict.FAIL, text, remedy)
    elif majors and not any(gpu.major for gpu in gpus):
        yield Check("attention", Verdict.UNKNOWN, f"{attention}: the GPU model is not known")
    else:
        yield Check("attention", Verdict.OK, f"{attention} runs on {kinds}")


def check_sample_memory(
    plan: Plan, estimate: ResourceEstimate, gpus: Sequence[Gpu]
) -> Iterator[Check]:
    """Check that samples can be generated on the smallest GPU, with offload if need be."""
    known = [gpu.memory for gpu in gpus if gpu.memory]
    if not plan.resource.spec.inference.samples or not known or not estimate.sample_gpu:
        return
    text = f"needs about {estimate.sample_gpu / GIB:.0f} GiB"
    if min(known) < estimate.sample_gpu:
        text += (
            f" ({estimate.sample_gpu_offload / GIB:.0f} with inference.offload, which is then on)"
        )
    kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
    text += f", {kinds} has {min(known) / GIB:.0f} GiB"
    short = min(known) < estimate.sample_gpu_offload
    remedy = "use larger GPUs for spec.stages.inference, or lower spec.model.resolution"
    verdict = Verdict.FAIL if short else Verdict.OK
    yield Check("GPU memory, samples", verdict, text, remedy if short else "")
