"""The inference stage: generate samples from several checkpoints, sharded over pods.

``python -m video2world_trainer.sweep ... -- FLAGS`` runs one process of
``python -m video2world_trainer.inference FLAGS`` per checkpoint, so that memory is released in
between. Samples that were already generated with the same settings are kept. Finally the results
page is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.events import emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.files import cut_name
from video2world_common.markers import Marker, Provenance, file_stamps
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_trainer.checkpoint.folder import CheckpointFolder, pin_checkpoint
from video2world_trainer.checkpoint.validation_record import best_checkpoint
from video2world_trainer.generation.batch_file import read_batch
from video2world_trainer.results.page import write_page

__all__ = ["main", "parser"]

INFERENCE = (sys.executable, "-m", "video2world_trainer.inference")
FIELD = "spec.inference.checkpoints"
RESERVED_FLAGS = ("--dit_path", "--batch_input_json", "--input_path", "--save_path", "--prompt")
SPEED_FLAGS = ("--num_gpus=", "--offload")  # change no sample: those that exist are kept
GRACE_SECONDS = 30  # for an inference process to exit after SIGTERM


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; arguments after ``--`` go to every inference process."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.sweep",
        description=__doc__,
        parents=[shard_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--run_folder", type=Path, required=True, help="the run's checkpoints folder")
    add(
        "--checkpoints",
        nargs="+",
        default=["latest"],
        metavar="NAME",
        help="latest, best (by validation loss), all, an iteration's number, or a weights file "
        "(default: latest)",
    )
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
    add(
        "--lora_alpha",
        type=float,
        help="alpha of LoRA adapters in weights files that do not record it (a run's own do)",
    )
    add("flags", nargs="*", help="flags of video2world_trainer.inference, after --")
    return flags


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint; ``label`` is the name of its folder of results."""

    label: str
    path: Path
    iteration: int | None


@dataclass(frozen=True)
class _SampleTask:
    """A sample to generate from a checkpoint; ``digest`` identifies its inputs and settings."""

    checkpoint: _Checkpoint
    entry: dict[str, Any]
    digest: str

    @property
    def output(self) -> Path:
        return Path(self.entry["output_video"])

    @property
    def outputs(self) -> tuple[Path, Path]:
        """The video and its JSON description."""
        return self.output, self.output.with_suffix(".json")

    @property
    def _marker(self) -> Marker:
        return Marker("sample", _digest(str(self.output)))

    @property
    def done(self) -> bool:
        """Whether the video exists and was generated from the same inputs and settings."""
        record = self._marker.read()
        return record is not None and record["summary"].get("wanted") == self.digest

    def finish(self) -> None:
        """Record that the sample is complete."""
        self._marker.write(Provenance().left(self.outputs, timed=True), {"wanted": self.digest})


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _checkpoints(args: argparse.Namespace) -> list[_Checkpoint]:
    """Return the selected checkpoints without duplicates.

    Raises:
        UserError: a checkpoint does not exist.
    """
    folder = CheckpointFolder(args.run_folder)
    existing = sorted(i for i in folder.iterations() if folder.path("model", i).is_file())
    found: dict[str, _Checkpoint] = {}
    for name in args.checkpoints:
        for one in _selected(name, folder, existing, allow_missing=args.pass_over_missing):
            found.setdefault(one.label, one)
    if len(found) > 1 and not args.by_checkpoint:
        raise UserError("--checkpoints: several need --by_checkpoint, as they share file names")
    return list(found.values())


def _selected(
    name: str, folder: CheckpointFolder, existing: list[int], *, allow_missing: bool
) -> list[_Checkpoint]:
    """Return the checkpoints that one value of ``--checkpoints`` selects."""
    if name == "all":
        if not existing:
            raise UserError(f"{FIELD}: all: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, iteration) for iteration in existing]
    if name == "latest":
        newest = folder.latest_complete(("model",))
        if newest is None:
            raise UserError(f"{FIELD}: latest: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, newest)]
    if name == "best":
        return [_of_run(folder, best_checkpoint(folder))]
    if re.fullmatch("[0-9]+", name):
        if int(name) not in existing and not allow_missing:
            listed = ", ".join(map(str, existing)) or "none"
            raise UserError(
                f"{FIELD}: {name}: there is no checkpoint of this iteration in {folder.folder} "
                f"(there is {listed}); name another, or raise spec.training.checkpoint.keep"
            )
        return [_of_run(folder, int(name))]
    path = Path(name)
    if not path.exists():
        raise UserError(f"{FIELD}: {name}: there is no such file on the volume")
    return [_Checkpoint(f"{cut_name(path.stem, 80)}-{_digest(name)[:8]}", path, None)]


def _of_run(folder: CheckpointFolder, iteration: int) -> _Checkpoint:
    path = folder.path("model", iteration)
    return _Checkpoint(path.stem, path, iteration)


def _tasks(args: argparse.Namespace, checkpoints: Sequence[_Checkpoint]) -> list[_SampleTask]:
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
            flags = [one for one in args.flags if not one.startswith(SPEED_FLAGS)]
            flags += _lora_flags(args, checkpoint)
            read = file_stamps(_files_read(checkpoint, entry))
            inputs = (output_entry, flags, str(checkpoint.path), list(read.values()))
            tasks.append(_SampleTask(checkpoint, output_entry, _digest(*inputs)))
    return tasks


def _lora_flags(args: argparse.Namespace, checkpoint: _Checkpoint) -> list[str]:
    """Return the flags that describe the adapters of a weights file."""
    if args.lora_alpha is None or checkpoint.iteration is not None:
        return []
    return ["--lora_alpha", f"{args.lora_alpha:g}"]


def _files_read(checkpoint: _Checkpoint, entry: dict[str, str]) -> list[Path]:
    """Return the files that a sample depends on: checkpoint, input, and the input's caption."""
    source = Path(entry["input_video"])
    return [checkpoint.path, source, source.parent.parent / "metas" / f"{source.stem}.txt"]


class _Sweep:
    """Generate one pod's share of the samples, and report the progress of all.

    Args:
        args: the parsed flags.
        checkpoints: the selected checkpoints.
    """

    def __init__(self, args: argparse.Namespace, checkpoints: Sequence[_Checkpoint]) -> None:
        self.args = args
        self.tasks = _tasks(args, checkpoints)
        self.own_tasks = shard_of(args).of(self.tasks)
        self.allow_missing: bool = args.pass_over_missing
        self.stage = os.environ.get("V2W_STAGE", "inference")
        self.refused: list[str] = []
        self.missing: set[str] = set()

    def report(self, checkpoint: _Checkpoint) -> None:
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

    def _infer(self, checkpoint: _Checkpoint, todo: Sequence[_SampleTask]) -> None:
        say(f"{checkpoint.label}: {len(todo)} samples")
        # variables of the stage, which is this process and not its children
        hidden = ("V2W_INPUTS_HASH", "V2W_LATER_STAGES")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as batch:
            json.dump([task.entry for task in todo], batch)
            batch.flush()
            argv = [
                *INFERENCE,
                "--dit_path",
                str(checkpoint.path),
                "--batch_input_json",
                batch.name,
            ]
            argv += [*self.args.flags, *_lora_flags(self.args, checkpoint)]
            child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
            try:
                refusal = self._follow(child, checkpoint, {str(one.output): one for one in todo})
                code = child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
                    try:
                        child.wait(GRACE_SECONDS)
                    except subprocess.TimeoutExpired:
                        child.kill()
        if code == EXIT_USER_ERROR:
            self.refused.append(f"{checkpoint.label}: {refusal or 'see the log'}")
        elif code:
            raise SystemExit(code if code > 0 else EXIT_FAILURE)

    def _follow(
        self, child: subprocess.Popen[bytes], checkpoint: _Checkpoint, todo: dict[str, _SampleTask]
    ) -> str:
        """Forward the output of an inference process; return the message of its failure, if any."""
        refusal = ""
        assert child.stdout is not None
        for raw in child.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            event = _event(line)
            match event.pop("event", None):
                case None:
                    say(line)
                case "sample":
                    if (task := todo.get(str(event.get("path")))) is not None:
                        task.finish()
                    event.pop("stage", None)
                    emit("sample", self.stage, checkpoint=checkpoint.label, **event)
                    self.report(checkpoint)
                case "failed":
                    refusal = str(event.get("message", ""))
                case "finished" | "skipped":
                    pass
                case str(kind):
                    event.pop("stage", None)
                    emit(kind, self.stage, **event)
        return refusal


def _event(line: str) -> dict[str, Any]:
    if not line.startswith('{"event"'):
        return {}
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    for flag in RESERVED_FLAGS:
        if any(one.partition("=")[0] == flag for one in args.flags):
            raise UserError(f"{flag} after --: it is set for each checkpoint; leave it out")
    checkpoints = _checkpoints(args)
    if args.lora_alpha is not None and all(one.iteration is not None for one in checkpoints):
        say("note: --lora_alpha has no effect: it is for weights files; a run's own record it")
    sweep = _Sweep(args, checkpoints)
    read = {path for task in sweep.tasks for path in _files_read(task.checkpoint, task.entry)}
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


def _results(tasks: Sequence[_SampleTask], *, by_checkpoint: bool) -> Path:
    """Return the resource's results folder, which contains the page."""
    folder = tasks[0].output.parent
    return folder.parent if by_checkpoint else folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
