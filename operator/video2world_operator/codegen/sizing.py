"""Generate docs/sizing.md: the memory, disk and time that runs need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from video2world_common.experiments import DATASET, EXPERIMENTS
from video2world_common.progress_events import duration
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.validation import parse
from video2world_operator.codegen.markdown import table
from video2world_operator.preflight import measured_times, requirements
from video2world_operator.preflight.facts import Gpu
from video2world_operator.preflight.measured_times import Record
from video2world_operator.preflight.time_estimate import EvaluationTime, estimate_time
from video2world_operator.preflight.work import SampleWork, StepWork

__all__ = ["sizing_page"]

# Size, resolution, architecture, then nodes, GPUs on each and context parallelism.
_RUNS = (
    ("2B", "720p", "Base", 1, 8, 2),
    ("2B", "720p", "Base", 1, 8, 1),
    ("2B", "720p", "Base", 1, 4, 2),
    ("2B", "720p", "Base", 1, 2, 2),
    ("2B", "720p", "Base", 1, 1, 1),
    ("2B", "480p", "Base", 1, 1, 1),
    ("2B", "720p", "LoRA", 1, 1, 1),
    ("14B", "720p", "Base", 4, 8, 8),
    ("14B", "720p", "Base", 2, 8, 8),
    ("14B", "480p", "Base", 2, 8, 8),
    ("14B", "720p", "LoRA", 1, 8, 8),
    ("14B", "480p", "LoRA", 1, 1, 1),
)
_GPUS = ("H200", "H100", "A100", "B200")  # H200 and H100 were measured
_ITERATIONS = 1000


def sizing_page() -> str:
    """Return the page, without its head."""
    return _requirements() + _samples() + _times()


def _resource(training: dict[str, Any], **spec: Any) -> Video2WorldPostTrain:
    training = {"iterations": _ITERATIONS} | training
    sections: dict[str, Any] = {"dataset": {"agibot": {}}, "training": training} | spec
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}}
    return parse(body | {"spec": sections})


def _text_of(module: Any) -> str:
    """Return a module's docstring without its first line."""
    return " ".join((module.__doc__ or "").partition("\n\n")[2].split())


def _requirements() -> str:
    text = "# Resource requirements\n\nEstimates for 16 fps and batch size 1, as `v2w preflight` "
    text += f"makes them for your file. {_text_of(requirements)}"
    text += "\n\nDisk includes weights, text encoder, one task of AgiBotWorld in progress, three "
    text += "checkpoints and one being written.\n\n"
    rows = []
    for size, resolution, architecture, nodes, gpus, context in _RUNS:
        training: dict[str, Any] = {"nodes": nodes, "gpusPerNode": gpus}
        training |= {"contextParallelSize": context, "architecture": architecture}
        model = {"size": size, "resolution": resolution}
        estimated = requirements.estimate(_resource(training, model=model))
        shown = (
            estimated.gpu / requirements.GIB,
            estimated.host / requirements.GIB,
            estimated.disk / 1e9,
        )
        rows.append(
            (
                f"{size} {resolution} {architecture}",
                f"{nodes} x {gpus}",
                str(context),
                *(f"{number:.0f}" for number in shown),
            )
        )
    head = (
        "run",
        "nodes x GPUs",
        "context parallel",
        "GiB per GPU",
        "GiB host memory per node",
        "GB of disk",
    )
    return text + table(head, rows)


_SAMPLES = (("2B", "720p"), ("2B", "480p"), ("14B", "720p"), ("14B", "480p"))


def _samples() -> str:
    text = (
        "\nSamples with guidance at 16 fps, without and with `inference.offload`, which is on by "
    )
    text += (
        "itself where the GPU is too small otherwise. The text encoder alone needs 9 GiB. Several "
    )
    text += "GPUs (`inference.gpus`) need hardly less each, as every one holds all weights.\n\n"
    rows = []
    for size, resolution in _SAMPLES:
        found = requirements.estimate(_resource({}, model={"size": size, "resolution": resolution}))
        needs = (found.sample_gpu, found.sample_gpu_offload)
        rows.append((f"{size} {resolution}", *(f"{n / requirements.GIB:.0f}" for n in needs)))
    return text + table(("samples of", "GiB per GPU", "GiB per GPU with offload"), rows)


# ---------------------------------------------------------------------- time


def _times() -> str:
    known = measured_times.measured_times()
    text = "\n# Time\n\n"
    text += "`v2w preflight` estimates the time of your file: per iteration, for training, for "
    text += f"samples and for the evaluation. {_text_of(measured_times)} Times are those of "
    text += "training from cached latents with flash-attn-4, without the start (about a minute, "
    text += "most of it compilation), checkpoints, and other stages.\n\n"
    text += "## The guide's experiments\n\n"
    text += f"{_ITERATIONS} iterations on the GPUs of the experiment. Only the times in bold were "
    text += "measured in this layout; transfers between nodes (14B) were not measured at all. "
    text += "Sparse attention exists at 720p only. Times for A100 and B200 follow from the GPUs' "
    text += "rated matrix speed alone: **no such card was available**.\n\n"
    head = ("experiment", "attention", "GPUs", *(f"s per iteration, {gpu}" for gpu in _GPUS))
    text += table((*head, "training, H200", "estimated from"), _experiments())
    text += "\n## Other runs\n\n"
    head = ("run", "GPUs", *(f"s per iteration, {gpu}" for gpu in _GPUS))
    text += table((*head, "training, H200", "estimated from"), _runs())
    text += "\n## Phases\n\n"
    text += "`training.phases` with 700 iterations at 480p and then 300 at 720p, on the default "
    text += "GPUs of the size, and in comparison all of them at 720p (H200, dense).\n\n"
    head = ("model", "GPUs", "s per iteration, 480p", "720p", "training", "all at 720p")
    text += table(head, (_phases(size) for size in ("2B", "14B")))
    text += "\n## Samples and evaluation\n\n"
    text += (
        "Exact samples with guidance and 35 steps at 16 fps, on one GPU. The evaluation has the "
    )
    text += "default 16 held-out windows, each once by the base weights and once by one checkpoint "
    text += "(H200); measuring its clips, four VAE passes each, comes on top.\n\n"
    head = ("model", "attention", *(f"s per sample, {gpu}" for gpu in _GPUS))
    text += table((*head, "evaluation, H200", "estimated from"), _generation())
    text += "\n## What was measured\n\n"
    text += "Medians; the files in `benchmarks/results` name machine and command. The last columns "
    text += "check the estimates: each time is estimated from the other records, without any that "
    text += f"differ in the GPU alone. The largest error is {_largest(known.steps)} for a step and "
    text += f"{_largest(known.samples)} for a sample. What no record resembles (other batch sizes, "
    text += "14B samples, several nodes, other GPUs) may be further off.\n\n"
    head = ("work", "s", "estimate", "error", "machine", "file", "commit")
    rows = [*map(_record, known.steps), *map(_record, known.samples)]
    return text + table(head, rows)


def _experiments() -> Iterator[tuple[str, ...]]:
    for name, experiment in EXPERIMENTS.items():
        for pattern in ("Dense", "Sparse"):
            if pattern == "Sparse" and experiment.resolution != "720p":
                continue
            made = _resource({"experiment": name, "attentionPattern": pattern})
            label = experiment.job_name.replace(DATASET, "...")
            yield (f"`{label}`", pattern, *_row(made))


def _runs() -> Iterator[tuple[str, ...]]:
    for size, resolution, architecture, nodes, gpus, context in _RUNS:
        training: dict[str, Any] = {"nodes": nodes, "gpusPerNode": gpus}
        training |= {"contextParallelSize": context, "architecture": architecture}
        for pattern in ("Dense", "Sparse") if resolution == "720p" else ("Dense",):
            made = _resource(
                training | {"attentionPattern": pattern},
                model={"size": size, "resolution": resolution},
            )
            yield (f"{size} {resolution} {architecture} {pattern}", *_row(made))


def _phases(size: str) -> tuple[str, ...]:
    phases = [
        {"resolution": "480p", "iterations": 700},
        {"resolution": "720p", "iterations": 300},
    ]
    made = _resource({"iterations": None, "phases": phases}, model={"size": size})
    found, plain = estimate_time(made), estimate_time(_resource({}, model={"size": size}))
    assert found is not None
    assert plain is not None
    seconds = [f"{one.step.seconds:.3g}" for one in found.phases]
    totals = [f"{duration(t.seconds)}, {t.gpu_hours:.3g} GPU hours" for t in (found, plain)]
    return size, str(found.gpus), *seconds, *totals


def _generation() -> Iterator[tuple[str, ...]]:
    for size, resolution in _SAMPLES:
        for pattern in ("Dense", "Sparse") if resolution == "720p" else ("Dense",):
            made = _resource(
                {"attentionPattern": pattern},
                model={"size": size, "resolution": resolution},
                dataset={"agibot": {"validationPercent": 5}},
                evaluation={},
            )
            times = [_evaluation(made, gpu) for gpu in _GPUS]
            shown = (f"{time.clip.seconds:.0f}" for time in times)
            cells = (
                f"**{text}**" if time.clip.measured else text
                for time, text in zip(times, shown, strict=True)
            )
            whole = times[0].seconds
            assert whole is not None
            basis = times[0].clip.basis.removeprefix("estimated from ")
            source = "measured" if times[0].clip.measured else basis
            yield f"{size} {resolution}", pattern, *cells, duration(whole), source


def _evaluation(made: Video2WorldPostTrain, gpu: str) -> EvaluationTime:
    found = estimate_time(made, [Gpu(gpu)])
    assert found is not None
    assert found.evaluation is not None
    return found.evaluation


def _row(made: Video2WorldPostTrain) -> Sequence[str]:
    """Return GPUs, seconds per iteration on each kind, total, and source."""
    cells, spec = [], made.spec
    for gpu in _GPUS:
        found = estimate_time(made, [Gpu(gpu)])
        assert found is not None
        (phase,) = found.phases
        shown = f"{phase.step.seconds:.3g}"
        cells.append(f"**{shown}**" if phase.step.measured else shown)
    found = estimate_time(made, [Gpu("H200")])
    assert found is not None
    step = found.phases[0].step
    gpus = f"{spec.gpus} at context parallel {spec.context_parallel}"
    total = f"{duration(found.seconds)}, {found.gpu_hours:.3g} GPU hours"
    source = "measured" if step.measured else step.basis.removeprefix("estimated from ")
    return gpus, *cells, total, source


def _record(one: Record[StepWork] | Record[SampleWork]) -> tuple[str, ...]:
    left_out = ("", "")
    if one.left_out is not None:
        left_out = f"{one.left_out:.4g}", f"{one.left_out / one.seconds - 1:+.1%}"
    return one.work.text, f"{one.seconds:.4g}", *left_out, one.machine, f"`{one.file}`", one.version


def _largest(records: Iterable[Record[StepWork] | Record[SampleWork]]) -> str:
    errors = [abs(r.left_out / r.seconds - 1) for r in records if r.left_out is not None]
    return f"{max(errors):.1%}"
