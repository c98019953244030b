"""The evaluation stage: compare checkpoints with the base weights on held-out videos.

Each clip is generated from the first frames of a held-out window, by the base weights and by each
checkpoint with the same noise, and compared with the window's own continuation. Clips that exist
already are kept. The table is written to ``evaluation.json``, ``evaluation.csv`` and ``clips.csv``
in ``--save_dir``, and shown on the results page. Of an action-conditioned checkpoint, it is also
measured whether it follows its actions (video2world_trainer.action_losses).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from video2world_common.events import ProgressReporter, emit, say
from video2world_common.exit_codes import UserError
from video2world_common.markers import Provenance, file_stamps
from video2world_common.stage_runner import run_stage
from video2world_preprocess.video.resize import Geometry
from video2world_trainer.checkpoint.folder import CheckpointFolder, pin_checkpoint
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.checkpoint_runs import (
    Checkpoint,
    SampleTask,
    alpha_flags,
    checkpoint_flags,
    infer,
    refuse_reserved_flags,
    sample_task,
    select_checkpoints,
)
from video2world_trainer.evaluation.action_run import measure_actions, reads_actions
from video2world_trainer.evaluation.base_weights import initial_weights
from video2world_trainer.evaluation.held_out import HeldOutWindows, choose_windows
from video2world_trainer.evaluation.measured_clips import MeasuredClips, has_reference
from video2world_trainer.evaluation.report import write_table
from video2world_trainer.evaluation.table import BASE, METRICS
from video2world_trainer.generation.quality_metrics import default_lpips_weights, why_no_lpips
from video2world_trainer.results.page import write_page

__all__ = ["main", "parser"]

FIELD = "spec.evaluation.checkpoints"
NOT_OF_BASE = ("--load_ema", "--use_lora")  # flags that only trained weights can obey
DEFAULT_METRICS = ("psnr", "ssim", "latent_l2", "latent_frechet")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; arguments after ``--`` go to every inference process."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.evaluate",
        description=__doc__,
        parents=[checkpoint_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add(
        "--base_weights",
        type=Path,
        help="the weights that training started from (default for Tiny: its random ones)",
    )
    add(
        "--dataset_dir",
        type=Path,
        required=True,
        help="data set whose val/ has the held-out windows: videos/*.mp4 and metas/*.txt",
    )
    add("--samples", type=int, default=16, help="windows to evaluate (default: 16)")
    add(
        "--metrics",
        nargs="+",
        default=list(DEFAULT_METRICS),
        metavar="NAME",
        help=f"of {', '.join(METRICS)}; the first one decides whether post-training helped "
        f"(default: {' '.join(DEFAULT_METRICS)})",
    )
    add(
        "--lpips_weights",
        type=Path,
        help="torchvision's AlexNet for lpips (default: the file that torch.hub keeps)",
    )
    add("--save_dir", type=Path, required=True, help="such as results/<job>/evaluation")
    add("--seed", type=int, default=0, help="seed of the noise, with the window's name")
    add(
        "--fail_when_actions_ignored",
        action="store_true",
        help="end with code 2 if the last checkpoint does not follow its actions",
    )
    return flags


def _check_metrics(names: Sequence[str]) -> list[str]:
    """Return the metrics without duplicates.

    Raises:
        UserError: one is unknown.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name.lower(), METRICS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--metrics: {name} is unknown{hint} (known: {', '.join(METRICS)})")
    return list(dict.fromkeys(names))


def _skip_lpips(weights: Path, metrics: list[str]) -> dict[str, str]:
    """Remove LPIPS from ``metrics`` if it cannot be computed, and return why."""
    if "lpips" not in metrics or not (why := why_no_lpips(weights)):
        return {}
    metrics.remove("lpips")
    return {"lpips": why}


def _models(args: argparse.Namespace, geometry: Geometry | None) -> list[Checkpoint]:
    """Return what to evaluate: the base weights, and the checkpoints by iteration.

    Raises:
        UserError: one of them does not exist.
    """
    trained = tuple(flag for flag in args.flags if flag in NOT_OF_BASE)
    found = select_checkpoints(
        args.checkpoints, args.run_folder, FIELD, file_flags=alpha_flags(args.lora_alpha)
    )
    found.sort(key=lambda one: (one.iteration is not None, one.iteration or 0))
    path = args.base_weights or initial_weights(args.run_folder)
    if not path.exists():
        raise UserError(f"--base_weights {path}: there is no such file; run the download stage")
    # frames must be comparable, and weights files do not record how theirs were resized
    fitted = ("--geometry", geometry) if geometry else ()
    models = [Checkpoint(BASE, path, None, fitted)]
    for one in found:
        own = fitted if one.iteration is None else ()
        models.append(Checkpoint(one.label, one.path, one.iteration, (*trained, *own, *one.flags)))
    return models


class _Evaluation:
    """Generate the clips that are missing, and report how many exist."""

    def __init__(
        self,
        args: argparse.Namespace,
        models: Sequence[Checkpoint],
        windows: HeldOutWindows,
        metrics: Sequence[str],
    ) -> None:
        self.args, self.models = args, models
        shared = [flag for flag in args.flags if flag not in NOT_OF_BASE]
        flags = [*shared, "--frames", "first"]  # what follows them is the truth
        flags += ["--latent_metrics", str(args.save_dir / "references")]
        if "lpips" in metrics:  # named, so that clips are measured again when it gets available
            flags += ["--lpips_weights", str(args.lpips_weights)]
        self.flags = flags
        self.tasks: dict[str, list[SampleTask]] = {
            model.label: [
                sample_task(model, entry, flags)
                for entry in windows.entries(args.save_dir / model.label, args.seed)
            ]
            for model in models
        }
        self.refused: dict[str, str] = {}

    def _is_measured(self, task: SampleTask) -> bool:
        """Whether a clip exists, and so do the figures of its floor and ceiling."""
        return task.done and has_reference(task.outputs[1], self.args.save_dir / "references")

    def run(self) -> None:
        """Generate the missing clips of each model.

        Raises:
            UserError: a checkpoint was deleted in the meantime.
        """
        stage = os.environ.get("V2W_STAGE", "evaluation")
        missing = {
            label: [task for task in tasks if not self._is_measured(task)]
            for label, tasks in self.tasks.items()
        }
        total = sum(map(len, missing.values()))
        progress = ProgressReporter(stage, total, "clips", every_seconds=0)
        if total:
            emit("progress", stage, done=0, total=total, unit="clips")

        def on_event(kind: str, fields: dict[str, Any]) -> None:
            if kind == "sample":
                progress.advance()
                emit("sample", stage, **fields)

        for model in self.models:
            todo = missing[model.label]
            if not todo:
                say(f"{model.label}: nothing to do, all clips exist")
                continue
            say(f"{model.label}: {len(todo)} clips")
            with pin_checkpoint(model.path) as exists:
                if not exists:
                    raise UserError(f"{FIELD}: {model.path} was deleted in the meantime")
                refusal = infer(model, todo, self.flags, on_event)
            if refusal is not None:
                self.refused[model.label] = refusal
                say(f"{model.label}: {refusal}")


def _require_followed(actions: Mapping[str, Any] | None) -> None:
    """Check the verdict of the action gate.

    Raises:
        UserError: the actions are not followed, or that is unknown.
    """
    field = "--fail_when_actions_ignored (spec.evaluation.failWhenActionsIgnored)"
    if actions is None:
        raise UserError(f"{field}: the last checkpoint was trained without actions")
    if not actions["followed"]:
        raise UserError(f"{field}: {actions['text']}")


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    refuse_reserved_flags(args.flags)
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: at least 1")
    metrics = _check_metrics(args.metrics)
    args.lpips_weights = args.lpips_weights or default_lpips_weights()
    skipped = _skip_lpips(args.lpips_weights, metrics)
    if not metrics:
        raise UserError(f"--metrics: none can be computed ({skipped['lpips']})")
    run = RunConfig.read(CheckpointFolder(args.run_folder).config_path)
    reads_text = run.actions is None or run.actions.conditioning.uses_text
    windows = choose_windows(args.dataset_dir, args.samples, needs_captions=reads_text)
    geometry = cast("Geometry | None", run.geometry)
    models = _models(args, geometry)
    for name, why in windows.left_out.items():
        say(f"left out: {name}: {why}")
    if args.samples > len(windows.chosen):
        say(f"note: {args.samples} samples requested, all {len(windows.chosen)} windows are used")
    evaluation = _Evaluation(args, models, windows, metrics)
    read = {path for tasks in evaluation.tasks.values() for one in tasks for path in one.files_read}
    provenance = Provenance(files=file_stamps(sorted(read)))
    evaluation.run()
    clips = MeasuredClips(evaluation.tasks, args.save_dir / "references", evaluation.refused)
    table = clips.table(metrics) | {"requested": args.samples, "windows": windows.available}
    table["skipped_metrics"] |= skipped
    table["left_out"] |= windows.left_out
    if "lpips" in table["metrics"]:
        digest = hashlib.sha256(args.lpips_weights.read_bytes()).hexdigest()
        table["lpips_weights"] = {"path": str(args.lpips_weights), "sha256": digest}
    for name, why in table["skipped_metrics"].items():
        say(f"note: {METRICS[name].label} is left out: {why}")
    if reads_actions(models[-1]):
        table["actions"] = measure_actions(models[-1], args)
    written = write_table(args.save_dir, table)
    written += clips.write_strips(args.save_dir / "strips", geometry or "crop")
    write_page(args.save_dir.parent, args.run_folder.parent)
    verdict = {name: value for name, value in table["answer"].items() if value is not None}
    say(verdict["text"])
    if "actions" in table:
        say(table["actions"]["text"])
        if table["actions"]["followed"] is not None:
            names = ("followed", "lift", "low", "high", "clips", "text")
            verdict["actions"] = {name: table["actions"][name] for name in names}
    emit("evaluation", os.environ.get("V2W_STAGE", "evaluation"), **verdict)
    if args.fail_when_actions_ignored:
        _require_followed(table.get("actions"))
    every = [task for tasks in evaluation.tasks.values() for task in tasks]
    written += [path for task in every if task.done for path in task.outputs]
    return provenance.left(written, timed=True), {
        "clips": verdict["clips"],
        "models": len(models),
        "evaluation": verdict,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="evaluation")


if __name__ == "__main__":
    raise SystemExit(main())
