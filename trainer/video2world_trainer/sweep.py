"""The inference stage: generate samples from several checkpoints, sharded over pods.

``python -m video2world_trainer.sweep ... -- FLAGS`` runs one process of
``python -m video2world_trainer.inference FLAGS`` per checkpoint, so that memory is released in
between. Samples that were already generated with the same settings are kept. Finally the results
page is written.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video2world_common.events import emit, say
from video2world_common.exit_codes import UserError
from video2world_common.markers import Provenance, file_stamps
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_trainer.checkpoint.folder import pin_checkpoint
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
from video2world_trainer.generation.batch_file import read_batch
from video2world_trainer.results.page import write_page

__all__ = ["main", "parser"]

FIELD = "spec.inference.checkpoints"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; arguments after ``--`` go to every inference process."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.sweep",
        description=__doc__,
        parents=[shard_flags(), checkpoint_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add(
        "--batch_input_json",
        type=Path,
        required=True,
        help='[{"input_video", "prompt", "output_video"}, ...]',
    )
    add(
        "--by_checkpoint",
        action="store_true",
        help="write samples to a folder per checkpoint next to output_video, such as "
        "iter_000000500/; required for several checkpoints",
    )
    add(
        "--pass_over_missing",
        action="store_true",
        help="report deleted checkpoints instead of failing",
    )
    return flags


def _checkpoints(args: argparse.Namespace) -> list[Checkpoint]:
    """Return the selected checkpoints.

    Raises:
        UserError: a checkpoint does not exist.
    """
    alpha = args.lora_alpha
    found = select_checkpoints(
        args.checkpoints,
        args.run_folder,
        FIELD,
        allow_missing=args.pass_over_missing,
        file_flags=alpha_flags(alpha),
    )
    if len(found) > 1 and not args.by_checkpoint:
        raise UserError("--checkpoints: several need --by_checkpoint, as they share file names")
    if alpha is not None and all(one.iteration is not None for one in found):
        say("note: --lora_alpha has no effect: it is for weights files; a run's own record it")
    return found


def _tasks(args: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> list[SampleTask]:
    entries = read_batch(args.batch_input_json)
    for number, entry in enumerate(entries):
        if not entry.get("output_video"):
            raise UserError(f"{args.batch_input_json}: entry {number}: output_video is missing")
    tasks = []
    for checkpoint in checkpoints:
        for entry in entries:
            output = Path(entry["output_video"])
            if args.by_checkpoint:
                output = output.parent / checkpoint.label / output.name
            output_entry = entry | {"output_video": str(output)}
            tasks.append(sample_task(checkpoint, output_entry, args.flags))
    return tasks


class _Sweep:
    """Generate one pod's share of the samples, and report the progress of all.

    Args:
        args: the parsed flags.
        checkpoints: the selected checkpoints.
    """

    def __init__(self, args: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> None:
        self.args = args
        self.tasks = _tasks(args, checkpoints)
        self.own_tasks = shard_of(args).of(self.tasks)
        self.allow_missing: bool = args.pass_over_missing
        self.stage = os.environ.get("V2W_STAGE", "inference")
        self.refused: list[str] = []
        self.missing: set[str] = set()

    def report(self, checkpoint: Checkpoint) -> None:
        """Report how many samples of a checkpoint exist, including those of other pods."""
        tasks = [task for task in self.tasks if task.checkpoint == checkpoint]
        fields: dict[str, Any] = {"checkpoint": checkpoint.label}
        if checkpoint.iteration is not None:
            fields["iteration"] = checkpoint.iteration
        if checkpoint.label in self.missing:
            fields["message"] = "the checkpoint was deleted before its samples were generated"
        done = sum(task.done for task in tasks)
        emit("samples", self.stage, done=done, total=len(tasks), **fields)

    def run(self) -> None:
        """Generate the missing samples of this pod's share; user errors are collected."""
        for checkpoint in dict.fromkeys(task.checkpoint for task in self.tasks):
            self.report(checkpoint)
        for checkpoint in dict.fromkeys(task.checkpoint for task in self.own_tasks):
            todo = [one for one in self.own_tasks if one.checkpoint == checkpoint and not one.done]
            if not todo:
                say(f"{checkpoint.label}: nothing to do, all samples of this share exist")
                continue
            with pin_checkpoint(checkpoint.path) as exists:
                if exists:
                    self._infer(checkpoint, todo)
                elif self.allow_missing:
                    self.missing.add(checkpoint.label)
                    say(
                        f"{checkpoint.label} was deleted before its samples were generated: raise "
                        "spec.training.checkpoint.keep to get them"
                    )
                    self.report(checkpoint)
                else:
                    raise UserError(f"{FIELD}: {checkpoint.path} was deleted in the meantime")

    def _infer(self, checkpoint: Checkpoint, todo: Sequence[SampleTask]) -> None:
        say(f"{checkpoint.label}: {len(todo)} samples")

        def on_event(kind: str, fields: dict[str, Any]) -> None:
            if kind == "sample":
                fields = {"checkpoint": checkpoint.label, **fields}
            emit(kind, self.stage, **fields)
            if kind == "sample":
                self.report(checkpoint)

        refusal = infer(checkpoint, todo, self.args.flags, on_event)
        if refusal is not None:
            self.refused.append(f"{checkpoint.label}: {refusal}")


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    refuse_reserved_flags(args.flags)
    sweep = _Sweep(args, _checkpoints(args))
    read = {path for task in sweep.tasks for path in task.files_read}
    provenance = Provenance(files=file_stamps(sorted(read)))
    results = _results(sweep.tasks, by_checkpoint=args.by_checkpoint)
    try:
        sweep.run()
    finally:
        write_page(results, args.run_folder.parent)
    if sweep.refused:
        raise UserError("; ".join(sweep.refused))
    wanted = [task for task in sweep.tasks if task.checkpoint.label not in sweep.missing]
    if not all(task.done for task in wanted):
        return None
    summary = {"samples": len(wanted), "checkpoints": len({one.checkpoint.label for one in wanted})}
    return provenance.left((path for task in wanted for path in task.outputs), timed=True), summary


def _results(tasks: Sequence[SampleTask], *, by_checkpoint: bool) -> Path:
    """Return the resource's results folder, which contains the page."""
    folder = tasks[0].output.parent
    return folder.parent if by_checkpoint else folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
