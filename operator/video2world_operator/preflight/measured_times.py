"""Estimate the time of a training step or a sample from the measured ones.

A time that was measured is returned as it is. Any other is that of the most similar record, times
the ratio of both works' costs. Costs count operations (attention, matrix products), elements
(element-wise work, transfers between context-parallel ranks) and weights (FSDP), over the GPU's
rated speed; rates fitted to all records weight them. measured_times.json holds records and rates;
``make generate`` writes it from benchmarks/results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from video2world_common.gpu_rates import RATED_FLOPS
from video2world_common.model_sizes import SIZES
from video2world_operator.preflight.work import CPU, SampleWork, StepWork

__all__ = ["DATA", "Costs", "Estimate", "MeasuredTimes", "Record", "measured_times"]

DATA = Path(__file__).with_suffix(".json")
Costs = Mapping[str, float]
AnyWork = TypeVar("AnyWork", StepWork, SampleWork)


@dataclass(frozen=True)
class Record(Generic[AnyWork]):
    """A measured time in seconds, and the machine, file, commit and date of the measurement.

    ``left_out`` is the estimate from the other records alone; None if none of them is similar.
    """

    work: AnyWork
    seconds: float
    machine: str
    file: str
    commit: str
    date: str
    left_out: float | None = None

    @property
    def version(self) -> str:
        """The commit, shortened."""
        return self.commit if " " in self.commit else self.commit[:12]


@dataclass(frozen=True)
class Estimate(Generic[AnyWork]):
    """The time of some work in seconds, and the record that it comes from."""

    work: AnyWork
    seconds: float
    record: Record[AnyWork]

    @property
    def measured(self) -> bool:
        """Whether exactly this work was measured."""
        return self.work == self.record.work

    @property
    def basis(self) -> str:
        """Say where the time comes from: in what the measured work differs from this one."""
        if self.measured:
            return f"measured on {self.record.date[:10]}, commit {self.record.version}"
        different = [one for one in self.record.work.parts if one not in self.work.parts]
        return f"estimated from {self.record.seconds:.4g} s measured with {', '.join(different)}"


@dataclass(frozen=True)
class MeasuredTimes:
    """Records, and what estimates from them need.

    ``densities`` are the shares of query-key pairs that sparse self-attention computes, by model
    size; ``approximate`` is the share of an exact sample's evaluations that an approximate one
    takes time for; ``speedups`` are those of a sample by the number of GPUs that share it.
    """

    steps: Sequence[Record[StepWork]]
    samples: Sequence[Record[SampleWork]]
    rates: Costs
    densities: Mapping[str, float]
    approximate: float
    speedups: Mapping[int, float]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> MeasuredTimes:
        """Read the content of measured_times.json."""
        return cls(
            steps=_records(StepWork, data["steps"]),
            samples=_records(SampleWork, data["samples"]),
            rates=data["rates"],
            densities=data["densities"],
            approximate=data["approximate"],
            speedups={int(gpus): speedup for gpus, speedup in data["speedups"].items()},
        )

    def step(self, work: StepWork) -> Estimate[StepWork] | None:
        """Estimate the time of a training step; None if no record is similar."""
        return self._estimate(work, self.steps)

    def sample(self, work: SampleWork) -> Estimate[SampleWork] | None:
        """Estimate the time of a sample; None if no record is similar."""
        return self._estimate(work, self.samples)

    def _estimate(
        self, work: AnyWork, records: Iterable[Record[AnyWork]]
    ) -> Estimate[AnyWork] | None:
        # a CPU says nothing about a GPU, nor the Tiny model about the others
        known = [r for r in records if _family(r.work) == _family(work)]
        if not known:
            return None
        record = min(known, key=lambda one: work.distance(one.work))
        if record.work == work:
            return Estimate(work, record.seconds, record)
        return Estimate(work, record.seconds * self._model(work) / self._model(record.work), record)

    def _model(self, work: StepWork | SampleWork) -> float:
        return sum(cost * self.rates[name] for name, cost in self.costs(work).items())

    def costs(self, work: StepWork | SampleWork) -> dict[str, float]:
        """Count the work of one GPU by kind, in 1e12 operations (or elements) over its speed."""
        speed = 1.0 if work.gpu == CPU else RATED_FLOPS[work.gpu] / 1e12
        counted = self._step(work) if isinstance(work, StepWork) else self._sample(work)
        return {name: cost / 1e12 / speed for name, cost in counted.items()}

    def _step(self, work: StepWork) -> dict[str, float]:
        shape, split = SIZES[work.size], work.context_parallel
        clips = work.batch_size * work.micro_batches / split
        elements = work.tokens * shape.model_channels * shape.num_blocks * clips
        attention = {"FlashAttention4": ("dense", "sparse"), "Torch": ("torch", "flex")}
        costs = {
            # the backward pass counts as 2.5 forward passes, as in the FlashAttention papers
            attention[work.kernel][work.sparse]: 3.5 * self._pairs(work) * clips,
            # with frozen weights (LoRA) 2 forward passes, and 1 that was recomputed in the record
            "products": 3 * _products(work) * clips,
            "elements": elements,
        }
        if work.transfers:
            costs["context_parallel"] = elements * (split - 1) / split
            costs["sharding"] = _weights(work) * work.micro_batches if work.gpus > 1 else 0.0
        return costs

    def _sample(self, work: SampleWork) -> dict[str, float]:
        shape = SIZES[work.size]
        known = max(gpus for gpus in self.speedups if gpus <= work.gpus)
        speedup = self.speedups[known] * work.gpus / known
        passes = work.evaluations * (self.approximate if work.approximate else 1.0) / speedup
        elements = work.tokens * shape.model_channels * shape.num_blocks / 3
        height, width = work.video_size
        return {
            "sparse" if work.sparse else "dense": self._pairs(work) * passes,
            "products": _products(work) * passes,
            "elements": elements * passes,
            "decoding": float(work.frames * height * width),
        }

    def _pairs(self, work: StepWork | SampleWork) -> float:
        """Count the operations of self-attention in one forward pass."""
        shape = SIZES[work.size]
        density = self.densities[work.size] if work.sparse else 1.0
        return 4.0 * density * work.tokens**2 * shape.model_channels * shape.num_blocks


def _weights(work: StepWork | SampleWork) -> float:
    """Count the weights that every token is multiplied by.

    Per block 14 x width^2: self-attention has 4, cross-attention 2 (its keys and values come from
    the caption), the MLP 8.
    """
    shape = SIZES[work.size]
    return 14.0 * shape.model_channels**2 * shape.num_blocks


def _products(work: StepWork | SampleWork) -> float:
    """Count the operations of matrix products in one forward pass."""
    return 2.0 * _weights(work) * work.tokens


def _family(work: StepWork | SampleWork) -> tuple[bool, bool]:
    return work.gpu == CPU, work.size == "Tiny"


def _records(
    kind: type[AnyWork], entries: Iterable[Mapping[str, Any]]
) -> tuple[Record[AnyWork], ...]:
    records = []
    for entry in entries:
        settings = entry["work"] | {"video_size": tuple(entry["work"]["video_size"])}
        records.append(Record(**(dict(entry) | {"work": kind(**settings)})))
    return tuple(records)


@cache
def measured_times() -> MeasuredTimes:
    """Return the times that this release knows."""
    return MeasuredTimes.of(json.loads(DATA.read_text(encoding="utf-8")))
