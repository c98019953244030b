"""Define a preflight check and its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.facts import Gpu
from video2world_operator.preflight.requirements import GIB, Needs

__all__ = ["ATTENTION", "Check", "Verdict"]

GB = 1e9
# Compute capabilities (first number) on which each kernel runs, as the trainer has them.
ATTENTION: Mapping[str, tuple[int, ...]] = {
    "FlashAttention4": (9, 10),
    "FlashAttention3": (9,),
    "FlashAttention2": (8, 9, 10, 12),
    "TransformerEngine": (8, 9, 10, 12),
}
_MORE_ROOM = "raise spec.storage.size, or lower spec.training.checkpoint.keep"


class Verdict(StrEnum):
    """How a check came out; only ``FAIL`` keeps the resource from running."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "?"


@dataclass(frozen=True)
class Check:
    """One question and its answer; ``remedy`` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


def _enough(name: str, need: float, there: float, where: str, remedy: str) -> Check:
    short = there < need
    text = f"needs about {_size(need)}, has {_size(there)} {where}".rstrip()
    return Check(name, Verdict.FAIL if short else Verdict.OK, text, remedy if short else "")


def _size(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= 10 * GB else f"{count / GB:.1f} GB"


def _kind(plan: Plan, need: Needs, gpus: Sequence[Gpu]) -> Iterator[Check]:
    """Whether the smallest of ``gpus`` has the memory, and all of them the kernel."""
    kinds = ", ".join(sorted({gpu.name for gpu in gpus}))
    known = [gpu.memory for gpu in gpus if gpu.memory]
    if known:
        text = f"needs about {need.gpu / GIB:.0f} GiB, {kinds} has {min(known) / GIB:.0f} GiB"
        short = min(known) < need.gpu
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
        yield Check("attention", Verdict.UNKNOWN, f"{attention}: the kind of GPU is not known")
    else:
        yield Check("attention", Verdict.OK, f"{attention} runs on {kinds}")
