"""Collect the measured times of steps and samples for ``v2w preflight`` and docs/sizing.md.

``python -m benchmarks.measured_times`` reads ``benchmarks/results``, fits the rates, and writes
``measured_times.json`` of the operator, which estimates the times of other work from it. Every
record is also estimated from the others alone. ``--check`` fails if the file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from video2world_common.gpu_rates import gpu_kind
from video2world_common.model_sizes import SIZES
from video2world_operator.codegen.write import generate
from video2world_operator.preflight.measured_times import DATA, MeasuredTimes, Record
from video2world_operator.preflight.work import CPU, SampleWork, StepWork
from video2world_trainer.model.sparse_attention import PATTERNS, density, patterns_for

__all__ = ["collect", "main"]

RESULTS = Path(__file__).parent / "results"
GRID = (24, 44, 80)  # of 93 frames of 704x1280; densities are the same for 61
CLIP_720P, CLIP_480P = (93, (704, 1280)), (93, (432, 768))
_RANK_14B = StepWork("14B", *CLIP_720P, gpus=32, context_parallel=8, transfers=False)
STEP_CASES: Mapping[str, StepWork] = {  # of train_step*.json
    "step_2b": StepWork("2B", *CLIP_720P),
    "step_2b_sparse": StepWork("2B", *CLIP_720P, sparse=True),
    "rank_14b": _RANK_14B,
    "rank_14b_sparse": replace(_RANK_14B, sparse=True),
    "lora_14b": StepWork("14B", *CLIP_480P, lora=True),
}
SAMPLE_CASES: Mapping[str, SampleWork] = {  # of inference.json
    "full_16fps": SampleWork("2B", *CLIP_720P),
    "full_10fps": SampleWork("2B", 61, (704, 1280)),
    "full_sparse": SampleWork("2B", *CLIP_720P, sparse=True),
}
# Rates that times of steps determine, and measured_times.py explains
FITTED = ("dense", "sparse", "torch", "products", "elements", "context_parallel", "sharding")

AnyWork = TypeVar("AnyWork", StepWork, SampleWork)


def read(name: str) -> dict[str, Any]:
    """Return a file of ``benchmarks/results``."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def record(work: AnyWork, seconds: float, file: str, machine: Mapping[str, Any]) -> Record[AnyWork]:
    """Return the record of ``work`` on the GPU or CPU of ``machine``."""
    device = machine.get("device")
    gpu = CPU if device is None else gpu_kind(device)
    if gpu is None:
        raise ValueError(f"{file}: {device} is not in gpu_rates.py")
    name = device or f"{machine['cpu']}, {machine['cores']} cores"
    return Record(replace(work, gpu=gpu), seconds, name, file, machine["commit"], machine["date"])


def steps() -> list[Record[StepWork]]:
    """Return the newest record of each measured step."""
    return _newest([*_cases(), *_layouts(), _two_h100(), *_tiny()])


def _newest(records: Iterable[Record[AnyWork]]) -> list[Record[AnyWork]]:
    newest: dict[AnyWork, Record[AnyWork]] = {}
    for one in records:
        if one.work not in newest or newest[one.work].date < one.date:
            newest[one.work] = one
    return list(newest.values())


def _cases() -> Iterator[Record[StepWork]]:
    for path in sorted(RESULTS.glob("train_step*.json")):
        found = read(path.name)
        for case, work in STEP_CASES.items():
            if seconds := found["cases"].get(case, {}).get("seconds"):
                yield record(work, seconds, path.name, found["machine"])


def _layouts() -> Iterator[Record[StepWork]]:
    for path in sorted(RESULTS.glob("many_gpus*.json")):
        found = read(path.name)
        for size, case in found["cases"].items():
            for layout in case.get("layouts", {}).values():
                if layout["gpus"] == 2 and size == "14B":
                    continue  # blocks kept only their inputs, which no default does
                work = StepWork(
                    size,
                    *CLIP_720P,
                    gpus=layout["gpus"],
                    context_parallel=layout["context_parallel"],
                    kernel="Torch" if layout["attention"] == "torch" else "FlashAttention4",
                )
                yield record(work, layout["seconds"], path.name, found["machine"])


def _two_h100() -> Record[StepWork]:
    found = read("train_two_gpus.json")
    # iteration 1 compiles, a checkpoint is saved in 5 and written later
    seconds = statistics.median(
        one["seconds_per_iteration"] for one in found["iterations"] if 2 <= one["iteration"] <= 4
    )
    work = StepWork("2B", *CLIP_720P, gpus=2, context_parallel=2)
    return record(work, seconds, "train_two_gpus.json", found["machine"])


def _tiny() -> Iterator[Record[StepWork]]:
    found = read("tiny_step.json")
    frames, size = SIZES["Tiny"].clip_frames[16], SIZES["Tiny"].frame_sizes["720p"]
    for case in found["cases"]:
        settings = {"batch_size": case["batch_size"], "gpus": case["processes"]}
        work = StepWork("Tiny", frames, size, **settings)
        yield record(work, case["seconds"], "tiny_step.json", found["machine"])


def samples() -> list[Record[SampleWork]]:
    """Return the record of each measured sample."""
    cases, records = read("inference.json")["cases"], []
    for case, work in SAMPLE_CASES.items():
        found, machine = cases[case], cases[case]["machine"]
        work = replace(work, evaluations=found["passes"])
        records.append(record(work, found["seconds"], "inference.json", machine))
        if approximate := found.get("approximate"):
            work = replace(work, approximate=True)
            records.append(record(work, approximate["seconds"], "inference.json", machine))
    return records


def _approximate() -> float:
    """Return the share of an exact sample's denoising time that an approximate one takes."""
    found = [case for case in read("inference.json")["cases"].values() if "approximate" in case]
    return float(statistics.mean(c["approximate"]["denoise"] / c["denoise"] for c in found))


def _speedups() -> dict[int, float]:
    speedups = {1: 1.0}
    for name in ("many_gpus_two_flash_attention_4.json", "many_gpus_flash_attention_4.json"):
        for gpus, found in read(name)["cases"]["2B"]["inference"].items():
            speedups[int(gpus)] = found["speedup"]
    return speedups


def _flex() -> float:
    """Return flex attention's time over FlashAttention-4's: all blocks of 2B, forward pass."""
    found = read("inference.json")["cases"]["sparse"]["patterns"]
    names = dict(zip(dict.fromkeys(PATTERNS["2B"]), "ABCDE", strict=True))
    used = [found[names[one]] for one in PATTERNS["2B"]]
    flex, blocks = (
        sum(one[kernel]["seconds"] for one in used) for kernel in ("flex", "flash_attention_4")
    )
    return float(flex / blocks)


def fit(times: MeasuredTimes) -> dict[str, float]:
    """Fit the rates to the records: least squares of relative errors, no rate below zero."""
    known = [one for one in times.steps if one.work.gpu != CPU]
    costs = [times.costs(one.work) for one in known]
    columns, names = np.array([[c.get(n, 0.0) for n in FITTED] for c in costs]), list(FITTED)
    columns /= np.array([[one.seconds] for one in known])
    scale = columns.max(axis=0)
    names = [name for name, largest in zip(names, scale, strict=True) if largest > 0]
    columns, scale = columns[:, scale > 0], scale[scale > 0]
    while True:
        found, *_ = np.linalg.lstsq(columns / scale, np.ones(len(known)), rcond=None)
        if (lowest := int(np.argmin(found))) is not None and found[lowest] >= 0:
            break
        columns, scale = np.delete(columns, lowest, 1), np.delete(scale, lowest)
        del names[lowest]
    rates = dict.fromkeys(FITTED, 0.0)
    rates |= {name: float(one) for name, one in zip(names, found / scale, strict=True)}
    rest = [
        (one["condition"] + one["decode"] + one["write"]) / times.costs(work)["decoding"]
        for case, work in SAMPLE_CASES.items()
        if (one := read("inference.json")["cases"][case])
    ]
    return rates | {"flex": rates["sparse"] * _flex(), "decoding": statistics.mean(rest)}


def _fitted(times: MeasuredTimes) -> MeasuredTimes:
    rates = {name: float(f"{rate:.4g}") for name, rate in fit(times).items()}
    return replace(times, rates=rates)


def collect() -> MeasuredTimes:
    """Collect the records, fit the rates, and estimate each record from the others."""
    times = MeasuredTimes(
        steps=steps(),
        samples=samples(),
        rates={},
        densities={
            size: round(density(patterns_for(size, GRID), GRID), 4) for size in ("2B", "14B")
        },
        approximate=round(_approximate(), 4),
        speedups=_speedups(),
    )
    fitted = _fitted(times)
    return replace(
        fitted,
        steps=[replace(one, left_out=_step_left_out(fitted, one)) for one in times.steps],
        samples=[replace(one, left_out=_sample_left_out(fitted, one)) for one in times.samples],
    )


def _step_left_out(times: MeasuredTimes, one: Record[StepWork]) -> float | None:
    others = [other for other in times.steps if not _alike(one.work, other.work)]
    found = _fitted(replace(times, steps=others)).step(one.work)
    return None if found is None else round(found.seconds, 3)


def _sample_left_out(times: MeasuredTimes, one: Record[SampleWork]) -> float | None:
    others = [other for other in times.samples if not _alike(one.work, other.work)]
    found = replace(times, samples=others).sample(one.work)
    return None if found is None else round(found.seconds, 3)


def _alike(work: AnyWork, other: AnyWork) -> bool:
    """Whether both differ in the GPU at most; H100 and H200 have the same rated speed."""
    return replace(work, gpu=other.gpu) == other


def content(times: MeasuredTimes) -> str:
    """Return the content of measured_times.json."""
    return json.dumps(asdict(times), indent=1) + "\n"


def errors(records: Sequence[Record[AnyWork]]) -> list[float]:
    """Return by how much each record's estimate from the others is off, as a share of it."""
    return [one.left_out / one.seconds - 1 for one in records if one.left_out is not None]


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or with ``--check`` return 1 if it is not up to date."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.measured_times", description=(__doc__ or "").partition("\n")[0]
    )
    flags.add_argument("--check", action="store_true", help="only compare")
    return generate({DATA: content(collect())}, check=flags.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
