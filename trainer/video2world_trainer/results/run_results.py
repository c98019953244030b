"""Collect what the volume holds of a run: training records, samples, reports and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.files import cut_name, read_json
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.validation_record import (
    ValidationResult,
    comparable,
    read_results,
)
from video2world_trainer.evaluation.report import read_table
from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.generation.conditioning import read_conditioning
from video2world_trainer.training.history import is_number, read_history

__all__ = ["METRICS", "GeneratedSample", "RunResults", "collect"]

GROUND_TRUTH = "ground-truth"  # folder of the ground truth videos, next to the samples
METRICS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}
REPORTS = {  # file in the data set's folder: title
    "report.json": "Videos",
    "report-captions.json": "Captions",
    "report-embeddings.json": "Embeddings",
    "report-latents.json": "Latents",
}


@dataclass(frozen=True)
class GeneratedSample:
    """A complete sample on the volume; paths are relative to the results folder."""

    video: str
    facts: Mapping[str, Any]  # content of its .json
    contact_sheet: str | None = None
    ground_truth: str | None = None  # the video that the input continues with

    @property
    def name(self) -> str:
        """Name of the sample, the same for all checkpoints."""
        return self.video.rpartition("/")[2].removesuffix(".mp4")

    @property
    def checkpoint(self) -> str:
        """Display name of the checkpoint."""
        path = Path(str(self.facts.get("checkpoint") or "?"))
        iteration = self.iteration
        shown = path.stem if iteration is None else f"iteration {iteration}"
        return f"{shown} (EMA)" if self.facts.get("ema") is True else shown

    @property
    def iteration(self) -> int | None:
        """Iteration of the checkpoint; None for weights that were not trained here."""
        value = self.facts.get("iteration")
        return value if type(value) is int else None

    @property
    def prompt(self) -> str:
        """The prompt; empty if unknown."""
        return str(self.facts.get("prompt") or "")

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics against the ground truth, those of :data:`METRICS` that are known."""
        metrics = self._comparison
        return {name: metrics[name] for name in METRICS if is_number(metrics.get(name))}

    @property
    def metric_texts(self) -> list[str]:
        """The metrics, formatted."""
        return [METRICS[name].format(value) for name, value in self.metrics.items()]

    @property
    def actions(self) -> ActionTrace | None:
        """The actions that the video follows; None if it follows none, or they are damaged."""
        try:
            return ActionTrace.from_json(self.facts["actions"])
        except (KeyError, ValueError):
            return None

    @property
    def baseline_psnr(self) -> float | None:
        """PSNR in dB of repeating the last conditioning frame."""
        baseline = self._comparison.get("repeating_the_input")
        value: Any = baseline.get("psnr") if isinstance(baseline, Mapping) else None
        return float(value) if is_number(value) else None

    @property
    def lpips_missing(self) -> str | None:
        """Why there is no LPIPS; None if there is, or no reason is recorded."""
        reason = self._comparison.get("lpips_missing")
        return str(reason) if reason else None

    @property
    def _comparison(self) -> Mapping[str, Any]:
        metrics = self.facts.get("metrics")
        return metrics if isinstance(metrics, Mapping) else {}


@dataclass(frozen=True)
class RunResults:
    """Everything that the results page shows."""

    name: str
    records: Sequence[Mapping[str, Any]] = ()  # see training/history.py
    samples: Sequence[GeneratedSample] = ()
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by title
    settings: Mapping[str, Any] = field(default_factory=dict)  # model/config.json
    checkpoints: Sequence[int] = ()  # iterations that are on the volume
    validations: Sequence[ValidationResult] = ()  # that compare with each other, oldest first
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # see evaluation/measured_clips.py


def collect(results: Path, job_folder: Path) -> RunResults:
    """Read a run's results; damaged files are skipped."""
    folder = CheckpointFolder(job_folder / "checkpoints")
    settings = _read_object(folder.config_path)
    run = settings.get("run")
    reports = {}
    if isinstance(run, Mapping) and isinstance(run.get("dataset_dir"), str):
        dataset = Path(run["dataset_dir"]).parent
        found = {title: _read_object(dataset / name) for name, title in REPORTS.items()}
        reports = {title: report for title, report in found.items() if report}
    return RunResults(
        name=results.name,
        records=read_history(job_folder),
        samples=_samples(results, settings),
        reports=reports,
        settings=settings,
        validations=_validations(folder.folder),
        evaluation=read_table(results),
        checkpoints=sorted(i for i in folder.iterations() if folder.path("model", i).is_file()),
    )


def _validations(checkpoints: Path) -> list[ValidationResult]:
    try:
        return comparable(read_results(checkpoints))
    except (UserError, OSError):
        return []


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged."""
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _samples(results: Path, settings: Mapping[str, Any]) -> list[GeneratedSample]:
    """List the samples in ``results`` and one folder below, by name and iteration."""
    found = []
    for path in sorted([*results.glob("*.json"), *results.glob("*/*.json")]):
        video, facts = path.with_suffix(".mp4"), _read_object(path)
        if not facts or not video.is_file():
            continue
        sheet = path.with_suffix(".png")
        found.append(
            GeneratedSample(
                video=video.relative_to(results).as_posix(),
                facts=facts,
                contact_sheet=sheet.relative_to(results).as_posix() if sheet.is_file() else None,
                ground_truth=_ground_truth(results, facts, settings),
            )
        )
    return sorted(found, key=lambda s: (s.name, s.iteration is not None, s.iteration or 0, s.video))


def _ground_truth(
    results: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> str | None:
    """Write the input's own continuation, cut like the samples, once; its relative path."""
    if not isinstance(facts.get("metrics"), Mapping):  # inference found no continuation
        return None
    try:
        source = Path(str(facts["input"]))
        frames, (height, width), fps = int(facts["frames"]), facts["size"], float(facts["fps"])
        name = f"{cut_name(source.stem, 80)}-{frames}x{int(height)}x{int(width)}.mp4"
        target = results / GROUND_TRUTH / name
        if not target.is_file():
            condition = read_conditioning(
                source,
                count=1,
                clip_frames=frames,
                size=(int(height), int(width)),
                geometry="stretch" if settings.get("geometry") == "stretch" else "crop",
            )
            if condition.ground_truth is None:
                return None
            write_video(target, condition.ground_truth, fps)
    except (UserError, KeyError, TypeError, ValueError):  # the input was deleted or replaced
        return None
    return target.relative_to(results).as_posix()
